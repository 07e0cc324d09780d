"""Routing: the walk of a batch through a stack, and the sweep that takes it from begin to finish."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rl_skip.inputs import Inputs, row_count
from rl_skip.policy import JumpPolicy, JumpRules
from rl_skip.stack import Carry, LayerStack

__all__ = ["Rollout", "Walk", "next_landings", "sweep", "whole_route"]

WAITING = -1
Look = tuple[Tensor, Tensor | None]


@dataclass
class Rollout:
    """What one sweep did. Decisions are dense: column i holds the decision taken after layer i."""

    outputs: Tensor
    """(B, ...), what the network says."""
    route: Tensor
    """(B, L) bool, the layers that each row ran."""
    jumps: Tensor
    """(B, L) long, the layers passed over after each layer that ran."""
    decided: Tensor
    """(B, L) bool, where the policy had a choice and took it."""
    log_probs: Tensor
    """(B, L), log-probability of the jump taken; 0 where no decision was taken."""
    entropies: Tensor
    """(B, L), entropy of the policy at each decision; 0 elsewhere."""
    values: Tensor
    """(B, L), what the critic expected at each decision; 0 elsewhere, or without a critic."""
    spent: Tensor
    """(B, L), compute spent at each layer: the layer, its gates, and the decision taken after it."""

    @property
    def compute(self) -> Tensor:
        """(B,), compute of the whole route."""
        return self.spent.sum(dim=1)

    def compute_to_go(self) -> Tensor:
        """(B, L), compute that each row still spent after the decision of column i."""
        return self.spent.sum(dim=1, keepdim=True) - self.spent.cumsum(dim=1)


class Walk:
    """A batch on its way through a stack: where each row is, and what it has spent.

    `visit(i)` runs layer i on exactly the rows that land on it; `jump` sends rows on. The sweep visits the layers in
    order and jumps after each; an environment visits them after each of its steps. There is no other routing.

    Args:
        stack: the layers.
        rules: what a policy may do; None: nobody looks.
        inputs: of the batch.
        price: what compute costs, for each row or for all.
        carry: what `stack.begin(inputs)` gave, where somebody else began.
    """

    def __init__(self, stack: LayerStack, rules: JumpRules | None, inputs: Inputs, price: Tensor | float, carry: Carry | None = None) -> None:
        self.stack, self.rules = stack, rules
        self.carry = stack.begin(inputs) if carry is None else carry
        B, L, device = row_count(inputs), stack.depth, self.carry.hidden.device
        self.price = torch.as_tensor(price, dtype=torch.float32, device=device).expand(B).clone()  # (B,)
        self.landing = torch.zeros(B, dtype=torch.long, device=device)  # next layer; L: finished; WAITING: for a jump
        self.position = torch.zeros(B, dtype=torch.long, device=device)  # last layer run
        self.route = torch.zeros(B, L, dtype=torch.bool, device=device)
        self.spent = torch.zeros(B, L, device=device)
        self.first_look = self._look(None) if rules is not None and rules.scope == "input" else None

    def visit(self, i: int) -> Tensor | None:
        """Runs layer `i` on the rows that land on it. Returns them, (R,); None where there are none."""
        rows = (self.landing == i).nonzero().squeeze(1)
        if rows.shape[0] == 0:
            return None
        everyone = rows.shape[0] == self.landing.shape[0]
        self.spent[rows, i] = self.stack.run(i, self.carry, None if everyone else rows).detach().float()
        self.route[rows, i] = True
        self.position[rows] = i
        self.landing[rows] = WAITING
        return rows

    def observe(self, rows: Tensor) -> Tensor:
        """(R, 2 D + 3), what the policy sees of rows that wait for a jump."""
        if self.rules is None:
            raise ValueError("a walk without rules has nobody who looks")
        hidden, memory = self._look(rows) if self.first_look is None else _index(self.first_look, rows)
        return self.rules.layout.build(hidden, memory, self.position[rows], self.spent[rows].sum(dim=1), self.price[rows])

    def charge_decision(self, rows: Tensor) -> None:
        """Charges rows for asking the policy once."""
        assert self.rules is not None
        self.spent[rows, self.position[rows]] += self.rules.decision_flops / self.carry.full_flops[rows]

    def jump(self, rows: Tensor, jumps: Tensor) -> None:
        """Sends rows on by `jumps` (R,): past the last layer they land on it, or leave where exits are allowed."""
        depth = self.stack.depth
        end = depth if self.rules is not None and self.rules.allow_exit else depth - 1
        following = self.position[rows] + 1
        self.send(rows, torch.maximum((following + jumps).clamp(max=end), following))

    def send(self, rows: Tensor, landing: Tensor) -> None:
        """Sends rows to the layers `landing` (R,), L to leave, and lets the stack mark the jump."""
        self.stack.jumped(self.carry, rows, landing - self.position[rows] - 1)
        self.landing[rows] = landing

    def restart(self, rows: Tensor, inputs: Inputs, price: Tensor | float) -> None:
        """Puts new inputs, one for each of `rows`, in the place of the old ones; they land on layer 0.

        The inputs must have the shapes of the old ones: an environment takes both from the same examples.
        """
        fresh = Walk(self.stack, self.rules, inputs, price)
        self.carry.put(rows, fresh.carry)
        for name in ("price", "landing", "position", "route", "spent"):
            getattr(self, name)[rows] = getattr(fresh, name)
        if self.first_look is not None and fresh.first_look is not None:
            (hidden, memory), (new_hidden, new_memory) = self.first_look, fresh.first_look
            # Not in place: a working memory may still be the parameter it began as, seen by every row.
            both = None if memory is None or new_memory is None else memory.index_copy(0, rows, new_memory)
            self.first_look = (hidden.index_copy(0, rows, new_hidden), both)

    def _look(self, rows: Tensor | None) -> Look:
        memory = self.stack.memory(self.carry, rows)
        return self.stack.pooled(self.carry, rows).detach(), None if memory is None else memory.detach()


def _index(look: Look, rows: Tensor) -> Look:
    hidden, memory = look
    return hidden[rows], None if memory is None else memory[rows]


def next_landings(route: Tensor) -> Tensor:
    """For each layer of a route (B, L), the next layer that the route runs; L where it runs no more. (B, L) long."""
    depth = route.shape[1]
    index = torch.arange(depth, device=route.device).expand_as(route)
    run_at = torch.where(route, index, depth).flip(1).cummin(dim=1).values.flip(1)  # first run layer at or after i
    return torch.cat([run_at[:, 1:], torch.full_like(run_at[:, :1], depth)], dim=1)


def sweep(
    stack: LayerStack,
    policy: JumpPolicy | None,
    inputs: Inputs,
    *,
    price: Tensor | float = 0.0,
    mode: Literal["sample", "greedy"] = "greedy",
    route: Tensor | None = None,
    critic: nn.Module | None = None,
    generator: torch.Generator | None = None,
) -> Rollout:
    """Takes a batch from `begin` to `finish`, each row on its own route, each layer called at most once.

    Args:
        stack: the layers.
        policy: who decides. None with a given `route`, whose decisions then cost nothing.
        inputs: B rows.
        price: what a unit of compute costs, one for all rows or (B,); the policy sees it.
        mode: "sample" draws jumps from the policy, "greedy" takes the likeliest.
        route: (L,) or (B, L) bool, the layers to run instead of those the policy would choose; with a policy,
            `log_probs` says how likely it was to choose them.
        critic: observation (N, 2 D + 3) → value (N,), asked once for all decisions.
        generator: where the random numbers of "sample" come from.

    Raises:
        ValueError: if there is neither policy nor route, one of them does not fit the stack, or the route is one that
            the policy's rules do not allow.
    """
    if policy is None and route is None:
        raise ValueError("sweep needs a policy that decides or a route to follow")
    rules = None if policy is None else policy.rules
    if rules is not None and (rules.layout.depth, rules.layout.width) != (stack.depth, stack.width):
        raise ValueError(
            f"the policy is for {rules.layout.depth} layers of width {rules.layout.width}, the stack has {stack.depth} of width {stack.width}"
        )
    walk = Walk(stack, rules, inputs, price)
    landings = None if route is None else next_landings(whole_route(route, walk.route, rules))
    taken = _Decisions()
    for i in range(stack.depth):
        rows = walk.visit(i)
        if rows is None:
            continue
        landing = None if landings is None else landings[rows, i]
        if policy is None or not policy.rules.choices[i]:
            jumps = torch.zeros_like(rows)
        else:
            observation = walk.observe(rows)
            walk.charge_decision(rows)
            log_probs = torch.log_softmax(policy(observation), dim=1)  # (R, J + 1)
            jumps = _choose(log_probs.detach(), mode, generator) if landing is None else landing - i - 1
            taken.add(i, rows, observation, log_probs, jumps)
        if landing is None:
            walk.jump(rows, jumps)
        else:
            walk.send(rows, landing)
    return Rollout(
        outputs=stack.finish(walk.carry),
        route=walk.route,
        jumps=(next_landings(walk.route) - torch.arange(1, stack.depth + 1, device=walk.route.device)) * walk.route,
        spent=walk.spent,
        **taken.dense(walk.spent, critic),
    )


def _choose(log_probs: Tensor, mode: str, generator: torch.Generator | None) -> Tensor:
    if mode == "greedy":
        return log_probs.argmax(dim=1)
    if mode != "sample":
        raise ValueError(f"a sweep's mode is greedy or sample, got {mode!r}")
    return torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(1)


def whole_route(route: Tensor, like: Tensor, rules: JumpRules | None) -> Tensor:
    """`route`, (L,) or (B, L), as (B, L) bool like `like`.

    Raises:
        ValueError: if it has another shape, leaves out layer 0, or makes a jump that `rules` do not allow.
    """
    route = route.to(device=like.device, dtype=torch.bool)
    if route.shape not in (like.shape, like.shape[1:]):
        raise ValueError(f"a route must have shape {tuple(like.shape[1:])} or {tuple(like.shape)}, got {tuple(route.shape)}")
    if not route[..., 0].all():
        raise ValueError("layer 0 always runs, and the route leaves it out")
    if rules is not None:
        depth = route.shape[-1]
        jumps = next_landings(route.reshape(-1, depth)) - torch.arange(1, depth + 1, device=route.device)
        longest = rules.legal.sum(dim=1).to(route.device) - 1  # (L,)
        if (route & (jumps > longest)).any():
            raise ValueError(f"the route makes a jump that the policy may not: max_jump is {rules.max_jump}, allow_exit {rules.allow_exit}")
    return route.expand_as(like)


class _Decisions:
    """Collects the decisions of a sweep, layer by layer, and lays them out densely."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.columns: list[Tensor] = []
        self.observations: list[Tensor] = []
        self.log_probs: list[Tensor] = []
        self.entropies: list[Tensor] = []

    def add(self, i: int, rows: Tensor, observation: Tensor, log_probs: Tensor, jumps: Tensor) -> None:
        self.rows.append(rows)
        self.columns.append(torch.full_like(rows, i))
        self.observations.append(observation)
        self.log_probs.append(log_probs.gather(1, jumps.unsqueeze(1)).squeeze(1))
        self.entropies.append(-(log_probs.exp() * log_probs).sum(dim=1))

    def dense(self, like: Tensor, critic: nn.Module | None) -> dict[str, Tensor]:
        """The parts of a `Rollout`, each (B, L) as `like`, zero where nothing was decided."""
        zeros = torch.zeros_like(like)
        if not self.rows:
            return {"decided": zeros.bool(), "log_probs": zeros, "entropies": zeros, "values": zeros}
        where = (torch.cat(self.rows), torch.cat(self.columns))
        return {
            "decided": zeros.bool().index_put(where, torch.ones((), dtype=torch.bool, device=like.device)),
            "log_probs": zeros.index_put(where, torch.cat(self.log_probs)),
            "entropies": zeros.index_put(where, torch.cat(self.entropies)),
            "values": zeros if critic is None else zeros.index_put(where, critic(torch.cat(self.observations))),
        }
