"""Straight-through Gumbel gates, one for each layer, trained end to end: the strongest known rival.

Veit and Belongie 2018, "Convolutional Networks with Adaptive Inference Graphs"; the relaxation is that of Jang et al. 2017
and Maddison et al. 2017.
"""

import math
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.agent import AGENTS, AgentConfig
from agents.calibration import SETTLING_ROWS, leaning_within
from agents.config import positive
from agents.learner import Learner
from agents.rival import Rival, Routed, Setting, batch_metrics
from rl_skip.costs import linear_flops
from rl_skip.errors import UserError
from rl_skip.inputs import Inputs, row_count
from rl_skip.routing import Walk
from rl_skip.stack import Carry, LayerStack

__all__ = ["Gate", "Gates", "Gumbel", "GumbelConfig", "gated_sweep", "relaxed_sweep", "straight_through_gumbel"]

OPEN_AT_FIRST = 0.85


@dataclass(frozen=True)
class GumbelConfig(AgentConfig):
    """Gumbel gates."""

    gate_hidden: int = 16
    """Width of a gate's hidden layer. More sees finer differences and costs more at every layer; 16 to 128."""
    gate_temperature: float = 1.0
    """Of the relaxed gates in training. Lower is nearer to hard gates, with a noisier gradient; 0.3 to 2."""
    gate_target_weight: float = 10.0
    """Weight of the squared distance of a batch's mean compute from the budget. More keeps it nearer; 2 to 50."""

    def __post_init__(self) -> None:
        if self.gate_hidden < 1:
            raise UserError(f"a gate's hidden layer needs a width of at least 1, got {self.gate_hidden}; set --gate-hidden")
        for name in ("gate_temperature", "gate_target_weight"):
            positive(name, getattr(self, name), f"--{name.replace('_', '-')}")


class Gate(nn.Module):
    """What one layer's gate sees, (R, D) → its two logits, (R, 2): closed and open."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, 2)
        nn.init.normal_(self.leave.weight, std=0.01)
        with torch.no_grad():
            self.leave.bias.copy_(torch.tensor([0.0, math.log(OPEN_AT_FIRST / (1 - OPEN_AT_FIRST))]))
        self.flops = linear_flops(width, hidden) + linear_flops(hidden, 2)

    def forward(self, seen: Tensor) -> Tensor:
        return self.leave(torch.relu(self.enter(self.norm(seen))))


class Gates(nn.Module):
    """The gates of a stack: before each layer but the first, and the last unless rows may leave early.

    A gate looks at the pooled hidden state before its layer, and at the working memory where the stack has one.

    Args:
        stack: whose layers they open.
        sees_memory: whether the stack has a working memory.
        hidden: width of a gate's hidden layer.
        allow_exit: whether the last layer has a gate too.
    """

    def __init__(self, stack: LayerStack, sees_memory: bool, hidden: int, allow_exit: bool) -> None:
        super().__init__()
        self.gated = range(1, stack.depth if allow_exit else stack.depth - 1)
        self.each = nn.ModuleList(Gate(stack.width * (1 + sees_memory), hidden) for _ in self.gated)
        self.register_buffer("lean", torch.zeros(()))
        """Taken from the logit of open when a gate decides without noise: higher skips more, of every row alike."""

    lean: Tensor

    def logits(self, i: int, stack: LayerStack, carry: Carry) -> Tensor:
        """(B, 2), of the gate of layer `i`."""
        memory = stack.memory(carry, None)
        seen = stack.pooled(carry, None).float()
        return self.gate(i)(seen if memory is None else torch.cat([seen, memory.float()], dim=1))

    def gate(self, i: int) -> Gate:
        """The gate of layer `i`, which must have one."""
        gate = self.each[i - 1]
        assert isinstance(gate, Gate)
        return gate


def straight_through_gumbel(logits: Tensor, temperature: float) -> Tensor:
    """(B, 2) logits → (B,), 1 with the probability of open, else 0; backwards the gradient of the soft sample.

    soft = softmax((logits + Gumbel noise) / temperature), hard = argmax of it.
    """
    noise = -torch.empty_like(logits).exponential_().log()
    soft = torch.softmax((logits + noise) / temperature, dim=1)[:, 1]
    return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())


def relaxed_sweep(stack: LayerStack, gates: Gates, inputs: Inputs, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """A training pass: every layer is computed for every row, h ← h + g · (f(h) − h), so that closed gates learn too.

    Returns:
        Outputs; gates (B, L), 0 or 1, with the straight-through gradient; and compute (B,), with a gradient to the gates.
    """
    carry, B = stack.begin(inputs), row_count(inputs)
    position = torch.zeros(B, dtype=torch.long, device=carry.hidden.device)  # last layer run
    opened = [torch.ones(B, device=carry.hidden.device)]
    compute = stack.run(0, carry, None).detach().float()
    for i in range(1, stack.depth):
        if i in gates.gated:
            opened.append(straight_through_gumbel(gates.logits(i, stack, carry), temperature))
            compute = compute + gates.gate(i).flops / carry.full_flops
        else:
            opened.append(torch.ones_like(opened[0]))
        rows = opened[i].detach().nonzero().squeeze(1)
        moved = copy(carry)
        if rows.shape[0] > 0:
            stack.jumped(moved, rows, i - position[rows] - 1)
        compute = compute + opened[i] * stack.run(i, moved, None).detach().float()
        carry = _blended(carry, moved, opened[i])
        position[rows] = i
    everyone = torch.arange(B, device=position.device)
    stack.jumped(carry, everyone, stack.depth - position - 1)
    return stack.finish(carry), torch.stack(opened, dim=1), compute


def _blended(before: Carry, after: Carry, gate: Tensor) -> Carry:
    """`after` with a hidden state and a memory that are `before`'s where the gate (B,) is 0."""

    def blend(old: Tensor, new: Tensor) -> Tensor:
        return old + gate.view(-1, *[1] * (old.dim() - 1)).to(old.dtype) * (new - old)

    after.hidden = blend(before.hidden, after.hidden)
    if before.memory is not None and after.memory is not None:
        after.memory = blend(before.memory, after.memory)
    return after


def gated_sweep(stack: LayerStack, gates: Gates, inputs: Inputs) -> Routed:
    """A pass without noise: each layer is computed for the rows whose gate is open, and for no others."""
    walk = Walk(stack, None, inputs, 0.0)
    everyone = torch.arange(row_count(inputs), device=walk.landing.device)
    walk.visit(0)
    for i in range(1, stack.depth):
        rows = everyone
        if i in gates.gated:
            logits = gates.logits(i, stack, walk.carry)
            rows = (logits[:, 1] - logits[:, 0] > gates.lean).nonzero().squeeze(1)
        if rows.shape[0] > 0:
            walk.send(rows, torch.full_like(rows, i))
            walk.visit(i)
        if i in gates.gated:
            walk.spent[:, i] += gates.gate(i).flops / walk.carry.full_flops
    walk.send(everyone, torch.full_like(everyone, stack.depth))
    return Routed(stack.finish(walk.carry), walk.route, walk.spent.sum(dim=1))


class Gumbel(Rival):
    """Gates and network trained together: the supervised loss, and the squared distance of a batch's mean compute from the budget."""

    title = "Gumbel gates"
    config_class = GumbelConfig

    def __init__(self, learner: Learner) -> None:
        config, memory = learner.config.agent_config, self._has_memory(learner)
        assert isinstance(config, GumbelConfig)
        with torch.random.fork_rng(devices=[]):  # so that the warm-up is that of a policy's run
            torch.manual_seed(learner.config.seed)
            gates = Gates(learner.stack, memory, config.gate_hidden, learner.rules.allow_exit)
        super().__init__(learner, gates)
        self.gates, self.config = gates, config

    @staticmethod
    @torch.no_grad()
    def _has_memory(learner: Learner) -> bool:
        learner.stack.eval()
        carry = learner.stack.begin(learner.validation.take(slice(0, 1)).inputs)
        return learner.stack.memory(carry, None) is not None

    def update(self, update: int) -> dict[str, Tensor]:
        """One update of network and gates."""
        learner = self.learner
        batch = learner.batch(update)
        learner.prepare(learns=learner.tunes)
        outputs, opened, compute = relaxed_sweep(learner.stack, self.gates, batch.inputs, self.config.gate_temperature)
        supervised = learner.task.loss(outputs, batch.labels).mean()
        missed = compute.mean() - self.budget
        told = self.learn(supervised + self.config.gate_target_weight * missed.square(), update)
        accuracy = learner.task.accuracy(outputs, batch.labels)
        return batch_metrics(supervised, accuracy, compute, opened) | {"train/budget_missed": missed} | told

    def settle(self) -> None:
        """Leans all gates alike until the routes spend the budget on validation data, as a policy is settled on its budget."""
        validation = self.learner.validation.some(SETTLING_ROWS)

        def compute(lean: float) -> float:
            self.gates.lean.fill_(lean)
            return self.measure(validation).compute

        self.gates.lean.fill_(leaning_within(compute, self.budget))

    def run(self, inputs: Inputs) -> Routed:
        """Every row through the layers whose gates it opens."""
        return gated_sweep(self.learner.stack, self.gates, inputs)

    def settings(self) -> list[Setting]:
        """The one budget."""
        return [Setting(f"budget {self.budget:g}", self.run)]


AGENTS.register("gumbel", Gumbel)
