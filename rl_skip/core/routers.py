"""Routers: a given route for all rows or for each, and a jump policy; and what routes are allowed."""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from rl_skip.core.devices import uploaded
from rl_skip.core.policy import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.core.routing import Decision, Router, RoutingState
from rl_skip.core.stack import LayerStack

__all__ = ["FixedRoute", "PolicyRouter", "as_router", "check_layout", "checked_route", "next_layers", "only_way"]


class FixedRoute(Router):
    """The same route for every row, or a given one for each; deciding costs nothing.

    Args:
        route: (L,) or (B, L) bool.
        rules: those that the route must keep to; None: every route with layer 0 will do.

    Raises:
        ValueError: if the route leaves out layer 0, or makes a jump that `rules` do not allow.
    """

    def __init__(self, route: Tensor, rules: JumpRules | None = None) -> None:
        self.route = checked_route(route, rules)
        self.layers: list[int] | None = None
        """Those that all rows run; None where each row has a route of its own."""
        if self.route.dim() == 1:
            runs = self.route.tolist()
            self.layers = [i for i, runs_here in enumerate(runs) if runs_here]
            self._together = [self.layers[before] if before < len(self.layers) else len(runs) for before in accumulate(runs)]
        else:
            self.next_layers = next_layers(self.route).cpu()  # so that nobody waits for a device to say what was known before

    def known(self, depth: int) -> list[int] | None:
        # A subclass may decide otherwise, and a route of another depth is refused where it is followed.
        return self.layers if type(self) is FixedRoute and self.route.shape[0] == depth else None

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        shape = state.route.shape
        if self.route.shape not in (shape, shape[1:]):
            raise ValueError(f"a route must have shape {tuple(shape[1:])} or {tuple(shape)}, got {tuple(self.route.shape)}")
        if self.layers is not None:
            return Decision(self._together[i])
        return Decision(self.next_layers.select(1, i).index_select(0, state.on_host(rows)))


class PolicyRouter(Router):
    """A jump policy decides after each layer that leaves a choice.

    Args:
        policy: the policy.
        sample: draws jumps from the policy; else the likeliest is taken.
        generator: of the random numbers.
        chances: (B, L), even in [0, 1), from which jumps are drawn in place of a generator: a row's route then depends on its own numbers, and not on
            which rows run together.
        route: (L,) or (B, L) bool, followed in place of the policy's own choice; the rollout says how likely that was.

    Raises:
        ValueError: if the route is one that the policy's rules do not allow.
    """

    def __init__(
        self,
        policy: JumpPolicy,
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
        chances: Tensor | None = None,
        route: Tensor | None = None,
    ) -> None:
        self.policy, self.rules = policy, policy.rules
        self._told = type(policy).forward is JumpPolicy.forward  # a policy of one's own finds the layer in the observation
        self.sample, self.generator, self.chances = sample, generator, chances
        self.given = None if route is None else FixedRoute(route, policy.rules)

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        rules = self.policy.rules
        given = None if self.given is None else self.given.decide(state, i, rows).next_layer
        given = uploaded(given, rows.device) if isinstance(given, Tensor) else given
        if not rules.choices[i]:
            return only_way(rules, i, rows) if given is None else Decision(given)
        observation, logits, likeliest = self._ask(state, i, rows)
        following = self._follow(state, i, rows, logits.detach(), likeliest) if given is None else given
        seen: Any = {"read": rules.layout.reads, "observation": observation, "logits": logits}
        return Decision(following, rules.decision_flops, onward=not rules.jumps, **seen)

    def _ask(self, state: RoutingState, i: int, rows: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(R, S), what the policy sees; (R, J + 1), its logits; (R,), the likeliest jumps where they are known with them."""
        decided = None if self.policy.compiled is None else self.policy.compiled(state, i, rows)
        if decided is not None:
            return decided
        observation = state.observe(rows)
        return observation, self.policy(observation, i) if self._told and not torch.is_grad_enabled() else self.policy(observation), None

    def _follow(self, state: RoutingState, i: int, rows: Tensor, logits: Tensor, likeliest: Tensor | None) -> Tensor | int:
        """Where R rows go after layer `i`, by their logits (R, J + 1)."""
        drawn = self.sample or self.chances is not None
        jumps = self._choose(state, i, rows, logits) if drawn or likeliest is None else likeliest
        rules = self.policy.rules
        return rules.next_after(i, int(jumps)) if jumps.shape[0] == 1 else rules.next_layer(i, jumps)

    def _choose(self, state: RoutingState, i: int, rows: Tensor, logits: Tensor) -> Tensor:
        if self.chances is not None:
            below = torch.softmax(logits, dim=1).cumsum(dim=1)  # (R, J + 1), of each jump the probability of it or a shorter one
            return (self.chances[rows, i].unsqueeze(1) >= below / below[:, -1:]).sum(dim=1)
        if not self.sample:
            return self.policy.likeliest(logits, state.price[rows]) if state.cheap else logits.argmax(dim=1)
        return torch.multinomial(torch.log_softmax(logits, dim=1).exp(), 1, generator=self.generator).squeeze(1)


def only_way(rules: JumpRules, i: int, rows: Tensor) -> Decision:
    """Where rows go after a layer with only one legal jump; no policy is run, so it costs nothing."""
    return Decision(rules.next_after(i, 0))


def as_router(router: Router | JumpPolicy | Tensor) -> Router:
    """A router as it is; a policy as one that takes the likeliest jump; a route, (L,) or (B, L) bool, as one to follow.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(router, Router):
        return router
    if not isinstance(router, JumpPolicy | Tensor):
        raise TypeError(f"a router is an instance of a subclass of rl_skip.Router, a JumpPolicy, or a route, got {router!r}")
    return PolicyRouter(router) if isinstance(router, JumpPolicy) else FixedRoute(router)


def check_layout(layout: ObservationLayout, stack: LayerStack) -> None:
    """Refuses a policy for another stack.

    Raises:
        ValueError: if depth or width differ.
    """
    if (layout.depth, layout.width) != (stack.depth, stack.width):
        raise ValueError(f"the policy is for {layout.depth} layers of width {layout.width}, the stack has {stack.depth} of width {stack.width}")


def next_layers(route: Tensor) -> Tensor:
    """For each layer of a route (..., L), the next layer that the route runs; L where it runs no more. (..., L) long."""
    depth = route.shape[-1]
    index = torch.arange(depth, device=route.device).expand_as(route)
    run_at = torch.where(route, index, depth).flip(-1).cummin(dim=-1).values.flip(-1)  # first run layer at or after i
    return torch.cat([run_at[..., 1:], torch.full_like(run_at[..., :1], depth)], dim=-1)


def checked_route(route: Tensor, rules: JumpRules | None) -> Tensor:
    """A route, (L,) or (B, L), as bool.

    Raises:
        ValueError: if it leaves out layer 0, has another depth than `rules`, or makes a jump that they do not allow.
    """
    route = route.bool()
    if not route[..., 0].all():
        raise ValueError("layer 0 always runs, and the route leaves it out")
    if rules is not None:
        depth = route.shape[-1]
        if depth != rules.layout.depth:
            raise ValueError(f"a route must have shape (rows, {rules.layout.depth}) or ({rules.layout.depth},), got {tuple(route.shape)}")
        jumps = next_layers(route) - torch.arange(1, depth + 1, device=route.device)
        legal = torch.nn.functional.pad(rules.legal, (0, depth - rules.legal.shape[1])).to(route.device)  # (L, L)
        if (route & ~legal[torch.arange(depth, device=route.device), jumps]).any():
            said = f"max_jump is {rules.max_jump}, allow_exit {rules.allow_exit}, jumps {rules.jumps}"
            raise ValueError(f"the route makes a jump that the policy may not: {said}")
    return route
