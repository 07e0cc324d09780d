"""Confidence exits: a head after each layer, and a row leaves as soon as one of them is confident.

Teerapittayanon et al. 2016, "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks".
"""

from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from agents.agent import AGENTS
from agents.baselines.baseline import Baseline, Setting, Unsuited, batch_metrics
from agents.policy.calibration import CALIBRATION_ROWS
from agents.run.learner import Learner
from agents.run.telemetry import score_metric
from rl_skip.core.batches import deployed, in_batches
from rl_skip.core.costs import count_flops, counting
from rl_skip.core.forward import routed_forward
from rl_skip.core.routing import Decision, Router, RoutingState
from rl_skip.core.stack import Carry, LayerStack
from rl_skip.core.task import Examples
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.style import GREEN

__all__ = ["ConfidenceExits", "EveryHead", "ExitHeads", "Exits", "entropy"]

BATCH = 256
THRESHOLDS = 25
WATCHED = 0.1
"""The threshold, in nats, at which a run in progress is validated."""


def entropy(logits: Tensor) -> Tensor:
    """(R, C) → (R,), −Σ p log p in nats."""
    log_probs = torch.log_softmax(logits, dim=1)
    return -(log_probs.exp() * log_probs).sum(dim=1)


class ExitHeads(nn.Module):
    """A copy of the stack's own head after each layer but the last, whose head is the stack's own.

    Raises:
        Unsuited: if the stack has no head that reads a hidden state of any layer.
    """

    def __init__(self, stack: LayerStack) -> None:
        super().__init__()
        own = own_head(stack)
        self.read = stack.read
        self.each = nn.ModuleList(deepcopy(own).requires_grad_(True) for _ in range(stack.depth - 1))
        self.flops = 0.0
        """Operations of one head for one row."""

    def logits(self, i: int, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """(R, C), the outputs of the head after layer `i`."""
        return self.read(self.each[i], hidden, mask)

    def begin_as(self, stack: LayerStack) -> None:
        """Gives all heads the weights of the stack's own."""
        for head in self.each:
            head.load_state_dict(own_head(stack).state_dict())

    def count(self, carry: Carry) -> None:
        """Counts the operations of a head, on the rows of a carry."""
        with counting(self):
            self.flops = count_flops(partial(self.logits, 0, carry.hidden, carry.mask)) / carry.hidden.shape[0]


def own_head(stack: LayerStack) -> nn.Module:
    """The module of a stack that turns a hidden state into outputs."""
    readout = stack.readout()
    if readout is None:
        raise Unsuited(f"a {type(stack).__name__} has no head of its own that could be copied after each layer; leave --agent exits out")
    return readout


class ConfidenceExits(Router):
    """A row leaves after the first layer whose head has an entropy below `threshold`, in nats, and is computed no further."""

    def __init__(self, heads: ExitHeads, threshold: float) -> None:
        self.heads, self.threshold = heads, threshold

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        if i == state.stack.depth - 1:
            return Decision(torch.full_like(rows, i + 1))
        logits = self.heads.logits(i, *state.hidden(rows))  # (R, C)
        confident = entropy(logits) < self.threshold
        return Decision(torch.where(confident, state.stack.depth, i + 1), self.heads.flops, "readout", answers=logits)


class EveryHead(Router):
    """All rows run all layers, and every head computes its outputs.

    `logits` holds those, (B, C), of each layer's head but the last, once the pass is done.
    """

    def __init__(self, heads: ExitHeads) -> None:
        self.heads = heads
        self.logits: list[Tensor] = []

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        if i < state.stack.depth - 1:
            self.logits.append(self.heads.logits(i, *state.hidden(rows)))
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
        self.heads = ExitHeads(learner.stack)
        super().__init__(learner, self.heads)
        with deployed(learner.stack):
            self.heads.count(learner.stack.begin(learner.validation.take(slice(0, 2)).inputs))
        self.thresholds: list[float] = []

    def update(self, update: int) -> dict[str, Tensor]:
        """One update of network and heads."""
        learner, task = self.learner, self.learner.task
        if update == learner.warmup_updates:
            self.heads.begin_as(learner.stack)
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
            router = EveryHead(self.heads)
            routed_forward(stack, router, batch.inputs)
            return (torch.stack([entropy(logits) for logits in router.logits], dim=1),)

        (measured,) = in_batches(entropies, validation, BATCH, stack, self.heads)  # (N, L - 1)
        shares = torch.linspace(0, 1, THRESHOLDS - 2, dtype=torch.float64)
        quantiles = measured.flatten().double().quantile(shares).tolist()
        self.thresholds = sorted({0.0, *(float(f"{quantile:.4g}") for quantile in quantiles), float("inf")})

    def settings(self) -> list[Setting]:
        """One for each threshold."""
        return [Setting(f"threshold {threshold:.4g}", ConfidenceExits(self.heads, threshold)) for threshold in self.thresholds]

    def validation_setting(self) -> Setting:
        return Setting(f"threshold {WATCHED:g}", ConfidenceExits(self.heads, WATCHED))


AGENTS.register("exits", Exits)
