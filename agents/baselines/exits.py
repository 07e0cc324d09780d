"""Confidence exits: a head after each layer, and a row leaves as soon as one of them is confident.

Teerapittayanon et al. 2016, "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks".
"""

import torch
from torch import Tensor

from agents.agent import AGENTS
from agents.baselines.baseline import Baseline, Setting, batch_metrics
from agents.run.learner import Learner
from agents.run.telemetry import score_metric
from rl_skip.core.batches import deployed, in_batches
from rl_skip.core.forward import routed_forward
from rl_skip.core.readouts import Readouts
from rl_skip.core.routing import Decision, Router, RoutingState
from rl_skip.core.task import Examples
from rl_skip.learning.calibration import CALIBRATION_ROWS
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.leaving import entropy
from rl_skip.measure.compare.style import GREEN

__all__ = ["ConfidenceExits", "EveryHead", "Exits"]

BATCH = 256
THRESHOLDS = 25
WATCHED = 0.1
"""The threshold, in nats, at which a run in progress is validated."""


class ConfidenceExits(Router):
    """A row leaves after the first layer whose head has an entropy below `threshold`, in nats, and is computed no further."""

    def __init__(self, heads: Readouts, threshold: float) -> None:
        self.heads, self.threshold = heads, threshold

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        if i == state.stack.depth - 1:
            return Decision(torch.full_like(rows, i + 1))
        head, depth = self.heads.each[i], state.stack.depth
        logits = state.look(head, rows)  # (R, ..., C)
        confident = entropy(logits) < self.threshold
        following = torch.where(confident, depth, i + 1)
        if state.stack.looks_at_answers:
            return Decision(following, self.heads.flops, "readout", answers=logits)
        flops = self.heads.flops + confident * state.stack.answer_flops(self.heads, state.carry, rows, looked=True)
        return Decision(following, flops, "readout", answers=state.read(head, rows) if confident.any() else None)


class EveryHead(Router):
    """All rows run all layers, and every head computes its outputs, or with `looks` what its entropy is taken of.

    `logits` holds those, (B, ..., C), of each layer's head but the last, once the pass is done.
    """

    def __init__(self, heads: Readouts, looks: bool = False) -> None:
        self.heads, self.looks = heads, looks
        self.logits: list[Tensor] = []

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        if i < state.stack.depth - 1:
            ask = state.look if self.looks else state.read
            self.logits.append(ask(self.heads.each[i], rows))
        return Decision(torch.full_like(rows, i + 1))


class Exits(Baseline):
    """All heads trained with the network, at full depth, on the mean of their losses; one run serves every threshold."""

    record = BaselineRecord(
        "exits",
        "confidence exits",
        about="a head after each layer; a row leaves when one is confident enough",
        advice="train it with train.py --agent exits",
        trained=True,
        colour=GREEN,
        marker="X",
        line=(1, 1),
    )

    def __init__(self, learner: Learner) -> None:
        with deployed(learner.stack):
            example = learner.validation.take(slice(0, 2)).inputs
            self.heads = learner.stack.new_readouts(example, plan=learner.readout_plan(example))
        super().__init__(learner, self.heads)
        self.thresholds: list[float] = []

    def update(self, update: int) -> dict[str, Tensor]:
        """One update of network and heads."""
        learner, task = self.learner, self.learner.task
        if update == learner.warmup_updates:
            self.heads.begin_as(learner.stack.make_readout(self.heads.plan).to(learner.device))
        rows = learner.batch_rows(update)
        batch = learner.train.take(rows)
        learner.prepare(learns=learner.tunes)
        self.heads.train()
        router = EveryHead(self.heads)
        rollout = routed_forward(learner.stack, router, batch.inputs)
        loss = torch.stack([learner.taught_loss(outputs, batch, rows) for outputs in (*router.logits, rollout.outputs)]).mean()
        metrics = self.learn(loss, update) | score_metric(task, "rollout", rollout.outputs, batch.labels)
        return batch_metrics(loss, rollout.compute, rollout.route) | metrics

    def calibrate(self) -> None:
        """Chooses thresholds: quantiles of the entropies of all heads on validation data, and those of no row and of every row."""
        stack, validation = self.learner.stack, self.learner.validation.some(CALIBRATION_ROWS)

        def entropies(batch: Examples, _rows: Tensor) -> tuple[Tensor]:
            router = EveryHead(self.heads, looks=True)
            routed_forward(stack, router, batch.inputs)
            return (torch.stack([entropy(logits) for logits in router.logits], dim=1),)

        (measured,) = in_batches(entropies, validation, BATCH, stack, self.heads)  # (N, L - 1)
        shares = torch.linspace(0, 1, THRESHOLDS - 2, dtype=torch.float64)
        quantiles = measured.flatten().double().quantile(shares).tolist()
        self.thresholds = sorted({0.0, *(float(f"{quantile:.4g}") for quantile in quantiles), float("inf")})

    def settings(self) -> list[Setting]:
        """One for each threshold."""
        return [Setting(f"threshold {threshold:.4g}", ConfidenceExits(self.heads, threshold)) for threshold in self.thresholds]

    @property
    def points(self) -> int:
        return THRESHOLDS

    def validation_setting(self) -> Setting:
        return Setting(f"threshold {WATCHED:g}", ConfidenceExits(self.heads, WATCHED))


AGENTS.register("exits", Exits)
