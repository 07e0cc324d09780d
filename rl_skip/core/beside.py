"""Routes beside full depth: the layers that a row runs on its route as at full depth, up to its first jump or its end, are run once for both."""

from copy import copy

import torch
from torch import Tensor

from rl_skip.core.devices import uploaded
from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import Inputs, row_count
from rl_skip.core.routers import FixedRoute
from rl_skip.core.routing import Decision, RoutingState
from rl_skip.core.stack import LayerStack

__all__ = ["routed_beside_full"]


def routed_beside_full(stack: LayerStack, route: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The outputs of rows on their routes, (B, ...), and at full depth, (B, ...), with the gradients of both.

    Args:
        stack: the layers. Those that are run once for both see all rows once: drop-out is the same for both there, and statistics of a batch are
            kept once.
        route: (L,) or (B, L) bool, where all rows or each of them go.
        inputs: B rows.

    Raises:
        ValueError: if the route leaves out layer 0, or has another shape.
    """
    if stack.split is not None:  # whose layers all processes gather together, once in a pass
        return routed_forward(stack, route, inputs).outputs, routed_forward(stack, torch.ones_like(route), inputs).outputs
    shape, depth = (row_count(inputs), stack.depth), stack.depth
    if route.shape not in (shape, shape[1:]):
        raise ValueError(f"a route must have shape {shape[1:]} or {shape}, got {tuple(route.shape)}")
    router, full = FixedRoute(route.expand(shape)), RoutingState(stack, None, inputs, 0.0)
    full.visit(0)
    own = RoutingState(stack, None, inputs, 0.0, carry=copy(full.carry))  # with what layer 0 hands on to later ones
    part, everyone = partings(router.next_layers), full.everyone
    for i in range(depth):
        if i > 0:
            full.visit(i)
            rows = own.visit(i)
            if rows is not None:
                own.follow(rows, router.decide(own, i, rows))
        here = (part == i).nonzero().squeeze(1)
        if here.shape[0] > 0:
            rows = uploaded(here, everyone.device)
            own.carry.put(rows, full.carry.take(rows))
            own.ran(i, rows, full.spent.new_zeros(rows.shape))  # what it costs is not asked
            own.follow(rows, router.decide(own, i, rows))
        full.follow(everyone, Decision(i + 1))
    return own.outputs(), full.outputs()


def partings(following: Tensor) -> Tensor:
    """(B,) long, the last layer up to which a row runs all, of the next layer after each, (B, L)."""
    depth = following.shape[1]
    parts = following != torch.arange(1, depth + 1)
    parts[:, -1] = True
    return parts.int().argmax(dim=1)
