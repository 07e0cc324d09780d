"""Straight-through Gumbel gates, one for each layer, trained end to end: the strongest known baseline.

Veit and Belongie 2018, "Convolutional Networks with Adaptive Inference Graphs"; the relaxation is that of Jang et al. 2017
and Maddison et al. 2017.
"""

import math
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from agents.agent import AGENTS, AgentConfig
from agents.baselines.baseline import Baseline, Setting, batch_metrics
from agents.run.learner import Learner
from agents.run.telemetry import score_metric
from rl_skip.core.costs import linear_flops
from rl_skip.core.errors import UserError, positive
from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import Inputs, row_count
from rl_skip.core.routing import Decision, Router, RoutingState
from rl_skip.core.stack import Carry, LayerStack
from rl_skip.learning.calibration import CALIBRATION_ROWS, logit_bias_within
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.style import VERMILLION

__all__ = ["Gate", "GateRouter", "Gates", "Gumbel", "GumbelConfig", "RelaxedStack", "straight_through_gumbel"]

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
    """One layer's gate: observation (R, D) → its two logits, (R, 2): closed and open."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.fc_in, self.fc_out = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, 2)
        nn.init.normal_(self.fc_out.weight, std=0.01)
        with torch.no_grad():
            self.fc_out.bias.copy_(torch.tensor([0.0, math.log(OPEN_AT_FIRST / (1 - OPEN_AT_FIRST))]))
        self.flops = linear_flops(width, hidden) + linear_flops(hidden, 2)

    def forward(self, observation: Tensor) -> Tensor:
        return self.fc_out(torch.relu(self.fc_in(self.norm(observation))))


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
        self.register_buffer("logit_bias", torch.zeros(()))
        """Subtracted from the logit of open when a gate decides without noise, for every row alike; higher skips more."""

    logit_bias: Tensor

    def logits(self, i: int, stack: LayerStack, carry: Carry, rows: Tensor | None) -> Tensor:
        """(R, 2), of the gate of layer `i` for the named rows; None: for all."""
        memory = stack.memory(carry, rows)
        hidden = stack.pooled(carry, rows).float()
        return self.gate(i)(hidden if memory is None else torch.cat([hidden, memory.float()], dim=1))

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


class RelaxedStack(LayerStack):
    """A stack in one training pass: every layer is computed for every row, h ← h + g · (f(h) − h), so that closed gates learn too.

    Args:
        stack: the layers.
        gates: the gates of its layers.
        temperature: of the relaxed samples.
    """

    def __init__(self, stack: LayerStack, gates: Gates, temperature: float) -> None:
        super().__init__()
        self.stack, self.gates, self.temperature = stack, gates, temperature
        self.depth, self.width, self.layer_flops, self.autocast = stack.depth, stack.width, stack.layer_flops, stack.autocast
        self.opened: list[Tensor] = []
        """For each layer that was run, its gates (B,), 0 or 1, with the straight-through gradient."""
        self.compute: Tensor | float = 0.0
        """(B,), compute so far, with a gradient to the gates."""

    def begin(self, inputs: Inputs) -> Carry:
        B, carry = row_count(inputs), self.stack.begin(inputs)
        self.opened, self.compute = [], 0.0
        self.everyone = torch.arange(B, device=carry.hidden.device)
        self.position = torch.zeros_like(self.everyone)  # (B,), the last layer whose gate was open
        return carry

    def run(self, i: int, carry: Carry, rows: Tensor | None) -> Tensor:
        assert rows is None, "a relaxed pass runs every layer for every row"
        opened = carry.full_flops.new_ones(len(self.everyone))
        if i in self.gates.gated:
            opened = straight_through_gumbel(self.gates.logits(i, self.stack, carry, None), self.temperature)
            self.compute = self.compute + self.stack.costs.part("gate", self.gates.gate(i).flops / carry.full_flops)
        moved, through = copy(carry), opened.detach().nonzero().squeeze(1)
        if i > 0 and through.shape[0] > 0:
            self.stack.on_jump(moved, through, i - self.position[through] - 1)
        counted = self.stack.run(i, moved, None).detach().float()
        self.compute = self.compute + opened * self.stack.costs.layer(i, counted)
        if i > 0:
            _blend(carry, moved, opened)
        vars(carry).update(vars(moved))
        self.position[through] = i
        self.opened.append(opened)
        return counted

    def finish(self, carry: Carry) -> Tensor:
        self.stack.on_jump(carry, self.everyone, self.depth - self.position - 1)
        return self.stack.finish(carry)


def _blend(before: Carry, after: Carry, gate: Tensor) -> None:
    """Gives `after` a hidden state and a memory that are `before`'s where the gate (B,) is 0."""

    def blended(old: Tensor, new: Tensor) -> Tensor:
        return old + gate.view(-1, *[1] * (old.dim() - 1)).to(old.dtype) * (new - old)

    after.hidden = blended(before.hidden, after.hidden)
    if before.memory is not None and after.memory is not None:
        after.memory = blended(before.memory, after.memory)


class GateRouter(Router):
    """Without noise: the next layer of a row is the first whose gate is open; each gate is evaluated once."""

    def __init__(self, gates: Gates) -> None:
        self.gates = gates

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        gates, depth = self.gates, state.stack.depth
        following, flops = torch.full_like(rows, depth), torch.zeros(rows.shape, device=rows.device)
        waiting = torch.arange(rows.shape[0], device=rows.device)  # rows that have found no open gate yet
        for j in range(i + 1, depth):
            if j not in gates.gated:
                following[waiting] = j
                break
            flops[waiting] += gates.gate(j).flops
            logits = gates.logits(j, state.stack, state.carry, rows[waiting])
            opened = logits[:, 1] - logits[:, 0] > gates.logit_bias
            following[waiting[opened]] = j
            waiting = waiting[~opened]
            if waiting.shape[0] == 0:
                break
        own = state.stack.readouts is not None  # gates were trained with the stack's own head after every layer
        return Decision(following, flops, "gate", answers=state.finish(rows) if own and (following == depth).any() else None)


class Gumbel(Baseline):
    """Gates and network trained together: the supervised loss, and the squared distance of a batch's mean compute from the budget."""

    config_class = GumbelConfig
    record = BaselineRecord(
        "gumbel",
        "Gumbel gates",
        about="a straight-through gate before each layer, trained end to end towards the budget",
        advice="train it with train.py --agent gumbel",
        trained=True,
        per_budget=True,
        colour=VERMILLION,
        marker="P",
        line="-.",
    )

    def __init__(self, learner: Learner) -> None:
        config = learner.config.agent_config
        assert isinstance(config, GumbelConfig)
        with torch.random.fork_rng(devices=[]):  # so that the warm-up is that of a policy's run
            torch.manual_seed(learner.config.seed)
            gates = Gates(learner.stack, learner.stack.has_memory, config.gate_hidden, learner.rules.allow_exit)
        super().__init__(learner, gates)
        self.gates, self.config = gates, config

    def update(self, update: int) -> dict[str, Tensor]:
        """One update of network and gates."""
        learner = self.learner
        rows = learner.batch_rows(update)
        batch = learner.train.take(rows)
        learner.prepare(learns=learner.tunes)
        relaxed = RelaxedStack(learner.stack, self.gates, self.config.gate_temperature)
        outputs = routed_forward(relaxed, learner.full_route, batch.inputs).outputs
        compute, opened = torch.as_tensor(relaxed.compute), torch.stack(relaxed.opened, dim=1)
        supervised = learner.taught_loss(outputs, batch, rows)
        missed = compute.mean() - self.budget
        metrics = self.learn(supervised + self.config.gate_target_weight * missed.square(), update)
        metrics |= score_metric(learner.task, "rollout", outputs, batch.labels)
        return batch_metrics(supervised, compute, opened) | {"train/budget_missed": missed} | metrics

    def calibrate(self) -> None:
        """Biases the logits of all gates alike until the routes spend the budget on validation data, as a policy is calibrated to its budget."""
        validation = self.learner.validation.some(CALIBRATION_ROWS)

        def compute(logit_bias: float) -> float:
            self.gates.logit_bias.fill_(logit_bias)
            return self.measure(validation).compute

        self.gates.logit_bias.fill_(logit_bias_within(compute, self.budget))

    def settings(self) -> list[Setting]:
        """The one budget."""
        return [Setting(f"budget {self.budget:g}", GateRouter(self.gates))]


AGENTS.register("gumbel", Gumbel)
