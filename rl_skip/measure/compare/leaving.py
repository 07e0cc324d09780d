"""Leaving without a policy: thresholds on the entropies of the readouts, one, or one for each exit or each class, and patience."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rl_skip.core.batches import in_batches
from rl_skip.core.exits import EveryExit, left_at, passed_by
from rl_skip.core.forward import routed_forward
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.reward import LINEAR, Reward
from rl_skip.core.routing import Decision, Router, RoutingState
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, Task
from rl_skip.measure.evaluation import Evaluation
from rl_skip.measure.every_price import ExitOutcomes, outcome_columns

__all__ = [
    "EntropyExits",
    "ExitTable",
    "Patience",
    "agreed",
    "entropy",
    "exit_table",
    "exits_seen",
    "one_threshold",
    "threshold_for_each_class",
    "threshold_for_each_exit",
]

BATCH = 256
CANDIDATES = 23
"""Thresholds that are tried, or that a curve has: quantiles of the entropies, and those of no row and of every row."""
ROUNDS = 5
"""Most passes over the exits while a threshold for each is sought."""


class EntropyExits(Router):
    """A row leaves after the first layer whose readout has an entropy below its threshold, in nats: nobody learned when.

    Args:
        thresholds: one for all exits, or one for each of the L - 1.
        by_class: one for each of the C classes that the readout may answer, instead.
    """

    def __init__(self, thresholds: float | Sequence[float], *, by_class: bool = False) -> None:
        self.thresholds, self.by_class = thresholds, by_class

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        if i == state.stack.depth - 1:
            return Decision(torch.full_like(rows, i + 1))
        said = state.said(rows)
        return _leave(state, i, rows, entropy(said) < self._below(i, said))

    def _below(self, i: int, said: Tensor) -> Tensor | float:
        """The threshold of rows of which the readout after layer `i` has `said` (R, ..., C): one for all, or (R,)."""
        if isinstance(self.thresholds, int | float):
            return self.thresholds
        return torch.tensor(self.thresholds, device=said.device)[said.argmax(dim=-1)] if self.by_class else self.thresholds[i]


class Patience(Router):
    """A row leaves once so many readouts in a row have given the same class as the one before (Zhou et al. 2020, "BERT Loses Patience").

    Args:
        patience: how many, 1 … L - 2.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self._class = self._agreed = torch.empty(0)  # (B,) each, of the batch whose layer 0 ran last

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        if i == state.stack.depth - 1:
            return Decision(torch.full_like(rows, i + 1))
        said = state.said(rows).argmax(dim=-1)  # (R,)
        if i == 0:
            self._class, self._agreed = said, torch.zeros_like(said)
            return _leave(state, i, rows, torch.zeros_like(said, dtype=torch.bool))
        agreed = torch.where(said == self._class[rows], self._agreed[rows] + 1, 0)
        self._class[rows], self._agreed[rows] = said, agreed
        return _leave(state, i, rows, agreed >= self.patience)


def _leave(state: RoutingState, i: int, rows: Tensor, leaving: Tensor) -> Decision:
    assert state.stack.readouts is not None
    following = torch.where(leaving, state.stack.depth, i + 1)
    return Decision(following, state.stack.readouts.flops, "readout", onward=True, read=True)


def entropy(logits: Tensor) -> Tensor:
    """(R, C) → (R,), −Σ p log p in nats; of tokens (R, T, C) the mean."""
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1).reshape(len(logits), -1).mean(dim=1)


@dataclass(frozen=True)
class ExitTable:
    """What leaving after each of the L layers would give each of N rows."""

    score: Tensor
    """(N, L)."""
    entropy: Tensor
    """(N, L - 1), of the readouts, in nats."""
    answer: Tensor
    """(N, L, ...), what the task predicts of it, such as the likeliest class."""
    layers: Tensor
    """(N, L), relative compute of the layers alone."""
    look: Tensor
    """(N, 1), relative compute of looking at one readout."""
    looked: Tensor
    """(N, 1), relative compute of being answered by a readout that was looked at."""
    unlooked: Tensor
    """(N, 1), relative compute of being answered by one that was not."""

    @property
    def alone(self) -> Tensor:
        """(N, L), relative compute where only the readout that answers is asked."""
        return self.layers + self.unlooked * (torch.arange(self.layers.shape[1]) < self.layers.shape[1] - 1)

    @property
    def asked(self) -> Tensor:
        """(N, L), relative compute where the readouts after all layers on the way are looked at, and the last of them answers."""
        layer, last = torch.arange(self.layers.shape[1]), self.layers.shape[1] - 1
        return self.layers + self.look * (layer + 1).clamp(max=last) + self.looked * (layer < last)

    def evaluation(self, layer: Tensor, compute: Tensor, price: float = 0.0, reward: Reward = LINEAR) -> Evaluation:
        """Every row leaving after its `layer`, (N,) long, and spending as `compute` (N, L) says."""
        at = layer.unsqueeze(1)
        route = torch.arange(self.score.shape[1]) <= at
        score, spent, everyone = self.score.gather(1, at).squeeze(1), compute.gather(1, at).squeeze(1), torch.arange(len(layer))
        return Evaluation(price, route, score, spent, self.answer[everyone, layer], reward)


class _Kept:
    """Of a batch whose rows run all layers: what each cost, and of what its readout says how sure that is."""

    def __init__(self) -> None:
        self.layers: list[Tensor] = []
        """(B,) each, relative compute of the layer."""
        self.entropies: list[Tensor] = []
        """(B,) each, after all layers but the last."""
        self.parts: list[Tensor] = []
        """(B, 1) of looking, of being answered after a look, and without one."""

    def keep(self, state: RoutingState, i: int, rows: Tensor) -> None:
        """What there is after layer `i`, before anyone is charged for a decision."""
        stack, readouts = state.stack, state.stack.readouts
        assert readouts is not None
        self.layers.append(state.spent[:, i].clone())
        if i < stack.depth - 1:
            self.entropies.append(entropy(state.said(rows)))
        else:
            flops = (readouts.flops, *(stack.answer_flops(readouts, state.carry, rows, looked) for looked in (True, False)))
            self.parts = [stack.costs.part("readout", part / state.carry.full_flops).unsqueeze(1) for part in flops]

    def columns(self, answers: Sequence[Tensor], task: Task, batch: Examples) -> tuple[Tensor, ...]:
        """What an `ExitTable` has of the batch, in the order of its fields.

        Args:
            answers: (B, ...) after each layer.
        """
        scores = torch.stack([task.score(outputs, batch.labels) for outputs in answers], dim=1)
        predictions = torch.stack([task.prediction(outputs) for outputs in answers], dim=1)
        return scores, torch.stack(self.entropies, dim=1), predictions, torch.stack(self.layers, dim=1).cumsum(dim=1), *self.parts


class _EveryReadout(Router):
    """All rows run all layers, and what every readout says is kept."""

    def __init__(self) -> None:
        self.kept, self.answers = _Kept(), list[Tensor]()

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        self.kept.keep(state, i, rows)
        if i < state.stack.depth - 1:
            self.answers.append(state.answer(rows))
        return Decision(torch.full_like(rows, i + 1))


class _EveryReadoutSeen(EveryExit):
    """The same, and what a policy would see after each layer."""

    def __init__(self, policy: JumpPolicy, kept: _Kept) -> None:
        super().__init__(policy)
        self.kept = kept

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        self.kept.keep(state, i, rows)
        return super().decide(state, i, rows)


def exit_table(stack: LayerStack, task: Task, examples: Examples) -> ExitTable:
    """One pass of all rows through all layers of a stack with readouts."""

    def run(batch: Examples, _rows: Tensor) -> tuple[Tensor, ...]:
        router = _EveryReadout()
        rollout = routed_forward(stack, router, batch.inputs)
        return router.kept.columns([*router.answers, rollout.outputs], task, batch)

    return ExitTable(*in_batches(run, examples, BATCH, stack))


def exits_seen(stack: LayerStack, policy: JumpPolicy, task: Task, examples: Examples) -> tuple[ExitTable, ExitOutcomes]:
    """What `exit_table` and `exit_outcomes` find, from one pass for both.

    Args:
        policy: which a pass shows at every price, see `shown_by_one_pass`.
    """

    def run(batch: Examples, _rows: Tensor) -> tuple[Tensor, ...]:
        kept = _Kept()  # apart from the router, which holds every output a second time and is not needed on
        exits = passed_by(_EveryReadoutSeen(policy, kept), stack, batch.inputs, torch.ones(len(batch), device=batch.labels.device))
        return *kept.columns([*exits.answers], task, batch), *outcome_columns(exits, task, batch)

    columns, own = in_batches(run, examples, BATCH, stack, policy), len(fields(ExitTable))
    return ExitTable(*columns[:own]), ExitOutcomes(*columns[own:])


def one_threshold(entropies: Tensor, count: int = CANDIDATES) -> list[float]:
    """Thresholds for all exits alike: quantiles of the entropies (N, L - 1) on validation rows, and those of no row and of every row."""
    return _candidates(entropies.flatten(), count)


def _candidates(entropies: Tensor, count: int = CANDIDATES) -> list[float]:
    quantiles = entropies.double().quantile(torch.linspace(0, 1, count, dtype=torch.float64)).tolist()
    return sorted({0.0, *(float(f"{quantile:.4g}") for quantile in quantiles), float("inf")})


def threshold_for_each_exit(table: ExitTable, price: float) -> list[float]:
    """L - 1 thresholds that earn the most on validation rows, score − price · compute.

    The best single threshold, and then one exit after the other until none gains: they are few, and their reward is no smooth function.
    """
    return _threshold_for_each(table, torch.arange(table.entropy.shape[1]).expand_as(table.entropy), table.entropy.shape[1], price)


def threshold_for_each_class(table: ExitTable, classes: int, price: float) -> list[float]:
    """C = `classes` thresholds, one for each that a readout may answer, found likewise."""
    return _threshold_for_each(table, table.answer[:, :-1], classes, price)


def _threshold_for_each(table: ExitTable, kind: Tensor, kinds: int, price: float) -> list[float]:
    """One threshold for each of the `kinds`; `kind` (N, L - 1) says which holds."""
    rewards, entropies = (table.score - price * table.asked).double(), table.entropy  # (N, L), (N, L - 1)

    def earned(tried: list[float]) -> float:
        return rewards.gather(1, left_at(entropies < torch.tensor(tried)[kind]).unsqueeze(1)).mean().item()

    thresholds = max(([threshold] * kinds for threshold in one_threshold(entropies)), key=earned)
    best = earned(thresholds)
    for _ in range(ROUNDS):
        before = best
        for k in range(kinds):
            own = entropies[kind == k]
            for candidate in _candidates(own) if own.shape[0] > 0 else []:
                tried = [*thresholds[:k], candidate, *thresholds[k + 1 :]]
                if (reward := earned(tried)) > best:
                    best, thresholds = reward, tried
        if best == before:
            break
    return thresholds


def agreed(answer: Tensor) -> Tensor:
    """(N, L) classes → (N, L) long, how many exits in a row up to each have given the class of the one before."""
    count = torch.zeros_like(answer)
    for k in range(1, answer.shape[1]):
        count[:, k] = torch.where(answer[:, k] == answer[:, k - 1], count[:, k - 1] + 1, 0)
    return count
