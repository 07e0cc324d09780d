"""A feature of one's own: by how much the last layer changed the hidden state, seen beside the state itself.

    python train.py --feature hidden --feature examples/own_feature.py:ChangeNorm --out runs/change-norm
    python -m rl_skip eval runs/change-norm --allow-code

Where layers change little, the rest may not be worth running. Whoever has the exported folder alone gives the feature:
rl_skip.load(folder, features=[ChangeNorm()]).
"""

from torch import Tensor

from rl_skip import Feature, View


class ChangeNorm(Feature):
    """The norm of the hidden state's change since the policy last looked, one layer that ran ago; of the state itself after layer 0."""

    name, low = "change_norm", 0.0

    def flops(self, width: int) -> int:
        return 2 * width  # a vector times itself

    def read(self, view: View) -> Tensor:
        change = view.hidden - view.previous(self.name, view.hidden)  # (R, D)
        return change.norm(dim=1, keepdim=True)
