"""How often a policy is asked, by the size of the batch: where batches are small, asking it can take longer than what it saves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from rl_skip.core.clock import REPEATS, seconds_per_batch
from rl_skip.core.fields import Fields
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.routers import FixedRoute, PolicyRouter, only_way
from rl_skip.core.routing import Decision, Router, RoutingState

__all__ = ["MODES", "CoarsePolicy", "Mode", "Tuned", "retuned", "router_for", "tune"]

Mode = Literal["rows", "other layers", "batch", "everything"]
"""Who decides: the policy for each row after every layer, or after every other one, or for the batch as a whole; or nobody, and everything runs."""
MODES: tuple[Mode, ...] = get_args(Mode)
SAME = "the same routes, given"
AS_FAST = 1.02
"""Times that differ by less are taken for the same."""
WORDS = {
    "rows": "the policy decides for each row after every layer",
    "other layers": "the policy decides for each row after every other layer",
    "batch": "the policy decides for all rows together, and skips a layer only where it would for each of them",
    "everything": "the policy is not asked, and every layer runs",
}
TIMED = {
    "rows": "deciding for each row after every layer",
    "other layers": "for each row after every other layer",
    "batch": "for all rows together",
    "everything": "without the policy, every layer run",
}


class CoarsePolicy(PolicyRouter):
    """A policy that is asked less often. It never passes over more layers at once than the policy would for any row of the batch.

    Args:
        policy: the policy.
        mode: "other layers", or "batch".
    """

    def __init__(self, policy: JumpPolicy, mode: Mode) -> None:
        super().__init__(policy)
        self.mode = mode

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        if self.mode == "other layers" and i % 2 == 1:
            return only_way(self.policy.rules, i, rows)
        decision = super().decide(state, i, rows)
        if self.mode == "batch" and isinstance(decision.next_layer, Tensor):
            return replace(decision, next_layer=int(decision.next_layer.min()))
        return decision


@dataclass(frozen=True)
class Tuned:
    """What was found to be fastest at a batch size, at the price that was set."""

    batch_size: int
    mode: Mode
    milliseconds: tuple[float, ...]
    """Of a batch, in each of `MODES`."""
    break_even: float
    """The share of the layers up to which deciding for each row is faster than running everything, 0 to 1."""

    def in_words(self) -> str:
        """Two sentences, for a model card."""
        times = ", ".join(f"{taken:.3g} ms {TIMED[mode]}" for mode, taken in zip(MODES, self.milliseconds, strict=True))
        rows = f"{self.batch_size} row{'s' * (self.batch_size > 1)}"
        chosen = f"In batches of {rows} {WORDS[self.mode]}, which was the fastest where it was measured: a batch took {times}."
        return f"{chosen} Deciding for each row is faster than running every layer up to a compute of {self.break_even:.2f}."

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, from which `read` makes the same."""
        taken = dict(zip(MODES, self.milliseconds, strict=True))
        return {"batch_size": self.batch_size, "mode": self.mode, "milliseconds": taken, "break_even": self.break_even}

    @classmethod
    def read(cls, fields: Fields) -> "Tuned":
        """From JSON, checked field by field."""
        mode = next(mode for mode in MODES if mode == fields.text("mode", MODES))
        taken = fields.object("milliseconds")
        times = tuple(taken.number(name) for name in MODES)
        return cls(fields.integer("batch_size"), mode, times, fields.number("break_even", 0.0, 1.0))


def _router(policy: JumpPolicy, mode: Mode) -> Router:
    if mode == "everything":
        return FixedRoute(torch.ones(policy.rules.layout.depth, dtype=torch.bool))
    return PolicyRouter(policy) if mode == "rows" else CoarsePolicy(policy, mode)


def router_for(policy: JumpPolicy, tuned: Sequence[Tuned], rows: int) -> Router:
    """Who decides in a batch of so many rows: as was found for the largest tuned size that is not larger, or else the smallest."""
    if not tuned:
        return PolicyRouter(policy)
    fitting = [one for one in tuned if one.batch_size <= rows]
    return _router(policy, (max(fitting, key=lambda one: one.batch_size) if fitting else min(tuned, key=lambda one: one.batch_size)).mode)


@torch.no_grad()
def tune(policy: JumpPolicy, run: Callable[[Router], Tensor], device: torch.device, repeats: int = REPEATS) -> Tuned:
    """Measures all ways to decide on one batch, and takes the fastest; where two are as fast, the one that decides more finely.

    Args:
        policy: who decides.
        run: sends the batch through the network by a router, and returns its routes, (B, L) bool.
        repeats: timed calls of each way.
    """
    route = run(PolicyRouter(policy))
    calls: dict[str, Callable[[], object]] = {mode: partial(run, _router(policy, mode)) for mode in MODES}
    taken = seconds_per_batch(calls | {SAME: partial(run, FixedRoute(route))}, device, repeats)
    fastest = min(taken[mode] for mode in MODES)
    mode = next(mode for mode in MODES if taken[mode] <= fastest * AS_FAST)
    return Tuned(route.shape[0], mode, tuple(1000 * taken[mode] for mode in MODES), _break_even(taken, float(route.float().mean())))


def _break_even(taken: dict[str, float], share: float) -> float:
    """What the layers take per unit of compute, over that and what deciding takes, from a batch that ran a `share` of them."""
    everything, same = taken["everything"], taken[SAME]
    layers = max(everything - same, 0.0) / (1 - share) if share < 1 else everything
    deciding = max(taken["rows"] - same, 0.0) / share
    return layers / (layers + deciding) if layers > 0 else 0.0


def retuned(tuned: Sequence[Tuned], found: Tuned) -> tuple[Tuned, ...]:
    """What was found for each batch size, in their order, with `found` in place of what was known for its size."""
    others = [one for one in tuned if one.batch_size != found.batch_size]
    return tuple(sorted([*others, found], key=lambda one: one.batch_size))
