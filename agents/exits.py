"""Confidence exits: a head after each layer, and a row leaves as soon as one of them is sure.

Teerapittayanon et al. 2016, "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks".
"""

from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from agents.agent import AGENTS
from agents.calibration import SETTLING_ROWS
from agents.learner import Learner
from agents.rival import BATCH, Rival, Routed, Setting, Unsuited, batch_metrics
from rl_skip.costs import count_flops, counting
from rl_skip.gated import HeadedStack
from rl_skip.inputs import Inputs, row_count
from rl_skip.routing import Walk
from rl_skip.stack import Carry, LayerStack, ModuleStack

__all__ = ["ExitHeads", "Exits", "entropy", "exit_sweep"]

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
        self.takes_mask = not isinstance(stack, ModuleStack) or stack.layers_take_mask
        self.each = nn.ModuleList(deepcopy(own).requires_grad_(True) for _ in range(stack.depth - 1))
        self.flops = 0.0
        """Operations of one head for one row."""

    def ask(self, i: int, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """(R, C), what the head after layer `i` says."""
        return self.each[i](hidden, mask) if self.takes_mask else self.each[i](hidden)

    def begin_as(self, stack: LayerStack) -> None:
        """Gives all heads the weights of the stack's own."""
        for head in self.each:
            head.load_state_dict(own_head(stack).state_dict())

    def count(self, carry: Carry) -> None:
        """Counts the operations of a head, on the rows of a carry."""
        with counting(self):
            self.flops = count_flops(partial(self.ask, 0, carry.hidden, carry.mask)) / carry.hidden.shape[0]


def own_head(stack: LayerStack) -> nn.Module:
    """The module of a stack that turns a hidden state into outputs."""
    if isinstance(stack, ModuleStack | HeadedStack):
        return stack.head
    raise Unsuited(f"a {type(stack).__name__} has no head of its own that could be copied after each layer; leave --agent exits out")


def exit_sweep(stack: LayerStack, heads: ExitHeads, inputs: Inputs, threshold: float) -> Routed:
    """Each row leaves after the first layer whose head has an entropy below `threshold`, and is computed no further."""
    walk = Walk(stack, None, inputs, 0.0)
    outputs: Tensor | None = None
    for i in range(stack.depth - 1):
        rows = walk.visit(i)
        if rows is None:
            break
        hidden, mask = walk.carry.hidden.index_select(0, rows), walk.carry.mask
        logits = heads.ask(i, hidden, None if mask is None else mask.index_select(0, rows))  # (R, C)
        walk.spent[rows, i] += heads.flops / walk.carry.full_flops[rows]
        outputs = logits.new_zeros(row_count(inputs), logits.shape[1]) if outputs is None else outputs
        sure = entropy(logits) < threshold
        outputs = outputs.index_copy(0, rows[sure], logits[sure])
        walk.send(rows[~sure], torch.full_like(rows[~sure], i + 1))
    rows = walk.visit(stack.depth - 1)
    if rows is not None:
        ends = stack.finish(walk.carry.take(rows))
        outputs = ends if outputs is None else outputs.index_copy(0, rows, ends)
    assert outputs is not None
    return Routed(outputs, walk.route, walk.spent.sum(dim=1))


class Exits(Rival):
    """All heads trained with the network, at full depth, on the mean of their losses; one run serves every threshold."""

    title = "confidence exits"
    trained_for = "every budget"

    def __init__(self, learner: Learner) -> None:
        self.heads = ExitHeads(learner.stack)
        super().__init__(learner, self.heads)
        with torch.no_grad():
            self.heads.count(learner.stack.eval().begin(learner.validation.take(slice(0, 2)).inputs))
        self.thresholds: list[float] = []

    def update(self, update: int) -> dict[str, Tensor]:
        """One update of network and heads."""
        learner, task = self.learner, self.learner.task
        if update == learner.warmup_updates:
            self.heads.begin_as(learner.stack)
        batch = learner.batch(update)
        learner.prepare(learns=learner.tunes)
        self.heads.train()
        carry = learner.stack.begin(batch.inputs)
        losses = []
        compute = torch.zeros(len(batch), device=learner.device)
        for i in range(learner.stack.depth):
            compute = compute + learner.stack.run(i, carry, None).detach()
            last = i == learner.stack.depth - 1
            outputs = learner.stack.finish(carry) if last else self.heads.ask(i, carry.hidden, carry.mask)
            losses.append(task.loss(outputs, batch.labels).mean())
        loss = torch.stack(losses).mean()
        told = self.learn(loss, update)
        everything = learner.full_route.expand(len(batch), -1)
        return batch_metrics(loss, task.accuracy(outputs, batch.labels), compute, everything) | told

    @torch.no_grad()
    def settle(self) -> None:
        """Chooses thresholds: quantiles of the entropies of all heads on validation data, and those of no row and of every row."""
        stack, validation = self.learner.stack, self.learner.validation.some(SETTLING_ROWS)
        stack.eval()
        self.heads.eval()
        seen: list[Tensor] = []
        for start in range(0, len(validation), BATCH):
            carry = stack.begin(validation.take(slice(start, start + BATCH)).inputs)
            for i in range(stack.depth - 1):
                stack.run(i, carry, None)
                seen.append(entropy(self.heads.ask(i, carry.hidden, carry.mask)))
        shares = torch.linspace(0, 1, THRESHOLDS - 2, dtype=torch.float64)
        quantiles = torch.cat(seen).double().cpu().quantile(shares).tolist()
        self.thresholds = sorted({0.0, *(float(f"{quantile:.4g}") for quantile in quantiles), float("inf")})

    def run(self, threshold: float, inputs: Inputs) -> Routed:
        """Every row until a head is sure of it."""
        return exit_sweep(self.learner.stack, self.heads, inputs, threshold)

    def settings(self) -> list[Setting]:
        """One for each threshold."""
        return [Setting(f"threshold {threshold:.4g}", partial(self.run, threshold)) for threshold in self.thresholds]

    def typical(self) -> Setting:
        return Setting(f"threshold {WATCHED:g}", partial(self.run, WATCHED))


AGENTS.register("exits", Exits)
