"""Random routes: what a network is made used to in the warm-up, and the control that a policy is compared with."""

import torch
from torch import Tensor

from rl_skip.policy import JumpRules

__all__ = ["random_routes", "random_routes_at"]

HALVINGS = 24
"""As fine as the chances are."""


def random_routes(chances: Tensor, keep: Tensor | float, rules: JumpRules) -> Tensor:
    """(N, L) bool: each layer whose chance is below the row's probability of keeping one, and those that no jump may pass over.

    Args:
        chances: (N, L), even in [0, 1).
        keep: (N, 1), or one for all rows.
        rules: how far a jump may go, and whether rows may leave before the last layer.
    """
    routes = chances < keep
    routes[:, 0] = True
    passed = torch.zeros(len(routes), dtype=torch.long)  # layers passed over since the last that runs
    for i in range(1, routes.shape[1]):
        routes[:, i] |= passed == rules.max_jump
        passed = torch.where(routes[:, i], 0, passed + 1)
    routes[:, -1] |= not rules.allow_exit
    return routes


def random_routes_at(compute: float, rows: int, layer_costs: Tensor, rules: JumpRules, *, full: float = 1.0, seed: int = 0) -> Tensor:
    """(N, L) bool, random routes whose mean compute is `compute`, or as near as the rules allow: all rows keep layers with one probability.

    Args:
        compute: the mean compute wanted.
        rows: N.
        layer_costs: (L,), the shares of the layers in the cost of all of them.
        rules: what routes are allowed.
        full: the compute of all layers; above 1 where there are gates.
        seed: of the chances.
    """
    chances = torch.rand(rows, rules.layout.depth, generator=torch.Generator().manual_seed(seed))
    costs = layer_costs.detach().double().cpu()

    def missed(keep: float) -> float:
        return full * float((random_routes(chances, keep, rules).double() @ costs).mean()) - compute

    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if missed(middle) < 0 else (low, middle)
    return random_routes(chances, min(low, high, key=lambda keep: abs(missed(keep))), rules)
