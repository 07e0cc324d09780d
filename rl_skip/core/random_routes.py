"""Random routes: on which a network is trained in the warm-up, and a control that a policy is compared with."""

import torch
from torch import Tensor

from rl_skip.core.policy import JumpRules

__all__ = ["random_routes", "random_routes_at"]

HALVINGS = 24
"""Bits of the chances, beyond which a finer search changes no route."""


def random_routes(chances: Tensor, keep: Tensor | float, rules: JumpRules) -> Tensor:
    """(N, L) bool: each layer whose chance is below the row's probability of keeping one, and those that no jump may pass over.

    Without jumps a row leaves: it runs as many layers, but the first ones.

    Args:
        chances: (N, L), even in [0, 1).
        keep: (N, 1), or one for all rows.
        rules: how far a jump may go, if there are any, and whether rows may leave before the last layer.
    """
    routes = chances < keep
    routes[:, 0] = True
    if not rules.jumps:
        return torch.arange(routes.shape[1]) < routes.sum(dim=1, keepdim=True)
    passed = torch.zeros(len(routes), dtype=torch.long)  # layers passed over since the last that runs
    for i in range(1, routes.shape[1]):
        routes[:, i] |= passed == rules.max_jump
        passed = torch.where(routes[:, i], 0, passed + 1)
    routes[:, -1] |= not rules.allow_exit
    return routes


def random_routes_at(compute: float, rows: int, layer_costs: Tensor, rules: JumpRules, *, full: float = 1.0, seed: int = 0) -> Tensor:
    """(N, L) bool, random routes whose mean compute is `compute`, or as near as the rules allow.

    All rows keep as many layers, but for the rounding: at one mean compute, rows that differ in their number of layers lose more on
    the short ones than they gain on the long, and the control would be weaker than it need be.

    Args:
        compute: the mean compute wanted.
        rows: N.
        layer_costs: (L,), the shares of the layers in the cost of all of them.
        rules: what routes are allowed.
        full: the compute of all layers; above 1 where there are gates.
        seed: of the chances.
    """
    generator, depth = torch.Generator().manual_seed(seed), rules.layout.depth
    chances, rounding = torch.rand(rows, depth, generator=generator), torch.rand(rows, 1, generator=generator)
    always = [0] if rules.allow_exit else [0, depth - 1]
    chances[:, always] = 0.0
    ladder = torch.cat([chances.sort(dim=1).values, torch.ones(rows, 1)], dim=1)  # (N, L + 1), below the k-th of which k layers lie
    costs = layer_costs.detach().double().cpu()

    def drawn(layers: float) -> Tensor:
        count = (layers + rounding).floor().long().clamp(len(always), depth)  # (N, 1)
        return random_routes(chances, ladder.gather(1, count), rules)

    def missed(layers: float) -> float:
        return full * float((drawn(layers).double() @ costs).mean()) - compute

    low, high = float(len(always)), float(depth)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if missed(middle) < 0 else (low, middle)
    return drawn(min(low, high, key=lambda layers: abs(missed(layers))))
