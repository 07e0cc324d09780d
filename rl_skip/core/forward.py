"""The routed forward pass: a batch from the beginning of a stack to its end, each row on its own route."""

from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn

from rl_skip.core.inputs import Inputs, device_of, row_count, take_rows
from rl_skip.core.policy import JumpPolicy, JumpRules
from rl_skip.core.routers import as_router, check_layout, next_layers
from rl_skip.core.routing import Decision, Router, RoutingState
from rl_skip.core.stack import LayerStack
from rl_skip.core.tracing import PRUNE, refuse_tracing

__all__ = ["Rollout", "routed_forward"]


@dataclass
class Rollout:
    """What one routed forward pass did. Decisions are dense: column i holds the decision taken after layer i."""

    outputs: Tensor
    """(B, ...), the network's outputs."""
    route: Tensor
    """(B, L) bool, the layers that each row ran."""
    jumps: Tensor
    """(B, L) long, the layers passed over after each layer that ran."""
    decided: Tensor
    """(B, L) bool, where a policy had a choice and took it."""
    log_probs: Tensor
    """(B, L), log-probability of the jump taken; 0 where no decision was taken."""
    entropies: Tensor
    """(B, L), entropy of the policy at each decision; 0 elsewhere."""
    values: Tensor
    """(B, L), the critic's values at each decision; 0 elsewhere, or without a critic."""
    spent: Tensor
    """(B, L), relative compute spent at each layer: the layer, its gates, and the decision taken after it."""

    @property
    def compute(self) -> Tensor:
        """(B,), compute of the whole route."""
        return self.spent.sum(dim=1)

    def kept(self) -> "Rollout":
        """The same without its outputs and without gradients."""
        values = {field.name: getattr(self, field.name).detach() for field in fields(self)}
        return Rollout(**{**values, "outputs": self.outputs.new_empty(0)})


class _Unlearned(Rollout):
    """A rollout whose decisions carry no gradient: they are laid out once somebody looks at them."""

    LATE = ("jumps", "decided", "log_probs", "entropies", "values")

    def __init__(self, outputs: Tensor, route: Tensor, spent: Tensor, decisions: "_Decisions") -> None:
        self.outputs, self.route, self.spent, self._decisions = outputs, route, spent, decisions

    def __getattr__(self, name: str) -> Tensor:
        if name not in self.LATE or "_decisions" not in vars(self):
            raise AttributeError(f"a {type(self).__name__} has no {name}")
        with torch.no_grad():
            vars(self).update(self._decisions.dense(self.spent, None), jumps=_jumps(self.route))
        found: Tensor = vars(self)[name]
        return found

    def kept(self) -> Rollout:
        return _Unlearned(self.outputs.new_empty(0), self.route, self.spent, self._decisions)


def routed_forward(
    stack: LayerStack,
    router: Router | JumpPolicy | Tensor,
    inputs: Inputs,
    *,
    price: Tensor | float = 0.0,
    critic: nn.Module | None = None,
    copies: int = 1,
) -> Rollout:
    """Takes a batch from `begin` to `finish`, each row on its own route, each layer called at most once.

    Args:
        stack: the layers.
        router: decides after each layer; a policy takes the likeliest jump, and a route, (L,) or (B, L) bool, is followed.
        inputs: B rows.
        price: the price λ, in score per unit of relative compute, one for all rows or (B,); a policy sees it.
        critic: observation (N, S) → value (N,), called once for all decisions.
        copies: G, how many routes each input takes, side by side: routes, prices and what is returned are of B · G rows then, of which everything
            up to layer 0, where no route has parted yet, is run once for each input.

    Raises:
        ValueError: if policy, route or prices do not fit, there are to be no copies, or the route is one that the policy's rules do not allow.
        UserError: where the operations are recorded as a whole, to be run on other rows. `torch.compile` leaves the call as it is, and compiles
            the layers where each was compiled by itself, `layer.compile()`.

    Example:
        >>> from rl_skip import ModuleStack
        >>> stack = ModuleStack(nn.Linear(3, 8), [nn.Linear(8, 8) for _ in range(4)], nn.Linear(8, 2), width=8, layer_flops=[1.0] * 4)
        >>> routed_forward(stack, torch.tensor([True, False, False, True]), torch.zeros(5, 3)).compute.tolist()
        [0.5, 0.5, 0.5, 0.5, 0.5]
    """
    refuse_tracing(PRUNE)
    if torch.compiler.is_dynamo_compiling():
        from rl_skip.core.compiled import eager

        return eager(routed_forward)(stack, router, inputs, price=price, critic=critic, copies=copies)
    router = as_router(router)
    if router.rules is not None:
        check_layout(router.rules.layout, stack)
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    if isinstance(price, Tensor) and price.numel() != 1 and price.shape != (rows := row_count(inputs) * copies,):
        raise ValueError(f"a price is one number or one for each of {rows} rows, got shape {tuple(price.shape)}")
    if stack.split is None:
        return _routed(stack, router, inputs, price, critic, copies)
    return stack.split.passed(partial(_routed, stack, router, inputs, price, critic, copies))


def _routed(stack: LayerStack, router: Router, inputs: Inputs, price: Tensor | float, critic: nn.Module | None, copies: int) -> Rollout:
    state, ran = _begun(stack, router.rules, inputs, price, copies)
    taken = _Decisions()
    # where weights are split over processes, each layer is gathered for all of them, whichever run it
    if stack.split is None and ran == 0 and (layers := router.known(stack.depth)) is not None:
        state.run_together(layers, router if router.looks else None)
    for i in range(stack.depth):
        rows = state.everyone if i < ran else state.visit(i)
        if rows is None:
            if stack.split is not None:
                stack.split.passed_over(i)
            continue
        decision = router.decide(state, i, rows)
        taken.add(i, rows, decision)
        state.follow(rows, decision)
    if not state.ended:
        raise ValueError(f"{type(router).__name__} sent rows to layers that do not come after theirs, or beyond {stack.depth}; mend its decide")
    if critic is None and not (torch.is_grad_enabled() and taken.rows):
        return _Unlearned(state.outputs(), state.route, state.spent, taken)
    outputs, jumps = state.outputs(), _jumps(state.route)
    return Rollout(outputs, state.route, jumps, spent=state.spent, **taken.dense(state.spent, critic))


def _begun(stack: LayerStack, rules: JumpRules | None, inputs: Inputs, price: Tensor | float, copies: int) -> tuple[RoutingState, int]:
    """The state of B · G rows, G = `copies` of each input side by side, and how many layers have run: layer 0, unless a policy looks before it."""
    if copies == 1:
        return RoutingState(stack, rules, inputs, price), 0
    rows, device = torch.arange(row_count(inputs), device=device_of(inputs)).repeat_interleave(copies), device_of(inputs)
    ran = 0 if rules is not None and rules.scope == "input" else 1
    with stack.computing(device):
        carry = stack.begin(inputs)
        counted = stack.run(0, carry, None) if ran else None
    state = RoutingState(stack, rules, take_rows(inputs, rows), price, carry=carry.take(rows))
    if counted is not None:
        state.ran(0, state.everyone, counted.index_select(0, rows))
    return state, ran


def _jumps(route: Tensor) -> Tensor:
    """(B, L) long, the layers that a route (B, L) passes over after each that it runs."""
    return (next_layers(route) - torch.arange(1, route.shape[1] + 1, device=route.device)) * route


class _Decisions:
    """Collects a policy's decisions, layer by layer, and lays them out densely."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.layers: list[int] = []
        self.next_layers: list[Tensor | int] = []
        self.observations: list[Tensor] = []
        self.logits: list[Tensor] = []

    def add(self, i: int, rows: Tensor, decision: Decision) -> None:
        if decision.logits is None or decision.observation is None:
            return
        self.rows.append(rows)
        self.layers.append(i)
        self.next_layers.append(decision.next_layer)
        self.observations.append(decision.observation)
        self.logits.append(decision.logits)

    def dense(self, like: Tensor, critic: nn.Module | None) -> dict[str, Tensor]:
        """The parts of a `Rollout`, each (B, L) as `like`, zero where nothing was decided."""
        zeros = torch.zeros_like(like)
        if not self.rows:
            return {"decided": zeros.bool(), "log_probs": zeros, "entropies": zeros, "values": zeros}
        where = (torch.cat(self.rows), torch.cat([torch.full_like(rows, i) for rows, i in zip(self.rows, self.layers, strict=True)]))
        log_probs = torch.log_softmax(torch.cat(self.logits), dim=1)  # (N, J + 1)
        each = zip(self.rows, self.next_layers, strict=True)
        following = [layer if isinstance(layer, Tensor) else torch.full_like(rows, layer) for rows, layer in each]
        taken = log_probs.gather(1, (torch.cat(following) - where[1] - 1).unsqueeze(1)).squeeze(1)
        return {
            "decided": zeros.bool().index_put(where, torch.ones((), dtype=torch.bool, device=like.device)),
            "log_probs": zeros.index_put(where, taken),
            "entropies": zeros.index_put(where, -(log_probs.exp() * log_probs).sum(dim=1)),
            "values": zeros if critic is None else zeros.index_put(where, critic(torch.cat(self.observations))),
        }
