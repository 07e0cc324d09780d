"""A network of fewer layers, trained from scratch: what there is without any routing."""

import torch
from torch import Tensor

from agents.agent import AGENTS
from agents.learner import Learner
from agents.report import SEARCH_ROWS
from agents.rival import Rival, Routed, Setting, Unsuited
from rl_skip.inputs import Inputs

__all__ = ["Shallow"]

SLACK = 0.005
"""How much more than the budget may be spent, as where a policy is settled on one."""


class Shallow(Rival):
    """The first layers of the freshly made network, as many as the budget allows, trained alone for all updates of a run.

    The other layers are never called and never change: as if they were not there. Compute stays in units of the whole stack.
    There is no warm-up: the updates that the others spend on it are spent on the plain loss.
    """

    title = "shallower network"
    warms_up = False
    routed = False

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner)
        if not learner.tunes:
            raise Unsuited("a frozen network cannot be trained with fewer layers; leave --agent shallow out, or train the network too")
        self.layers = self._affordable()

    @torch.no_grad()
    def _affordable(self) -> int:
        """The largest number of layers within the budget on validation data, at least 1."""
        learner = self.learner
        learner.stack.eval()
        carry = learner.stack.begin(learner.validation.some(SEARCH_ROWS).inputs)
        spent = torch.stack([learner.stack.run(i, carry, None).float().mean() for i in range(learner.stack.depth)]).cumsum(dim=0)  # (L,)
        return max(int((spent <= self.budget + SLACK).sum()), 1)

    def update(self, update: int) -> dict[str, Tensor]:
        """One supervised update of the layers that there are."""
        return self.learn_from_labels(update, self.run)

    def run(self, inputs: Inputs) -> Routed:
        """The first layers, one after the other, and nothing that marks a jump after them."""
        stack = self.learner.stack
        carry = stack.begin(inputs)
        compute = torch.stack([stack.run(i, carry, None).detach().float() for i in range(self.layers)]).sum(dim=0)  # (B,)
        route = torch.arange(stack.depth, device=compute.device) < self.layers  # (L,)
        return Routed(stack.finish(carry), route.expand(len(compute), -1), compute)

    def settings(self) -> list[Setting]:
        """The one network."""
        return [Setting(f"{self.layers} layer{'s' * (self.layers > 1)}", self.run)]


AGENTS.register("shallow", Shallow)
