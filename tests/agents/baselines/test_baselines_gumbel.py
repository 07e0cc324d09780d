"""Gumbel gates: what is run is what the gates say, what it costs is what it cost, and they learn where to look."""

import math

import pytest
import torch
from torch import Tensor, nn

from agents.baselines.gumbel import Gate, GateRouter, Gates, Gumbel, GumbelConfig, RelaxedStack, straight_through_gumbel
from agents.options.config import PriceConfig, ScheduleConfig, TrainConfig
from agents.run.learner import Learner
from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import take_rows
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, Split, Task
from rl_skip.measure.evaluation import all_routes, evaluate_routes
from rl_skip.nets.module_stack import ModuleStack
from tests.agents.baseline_stacks import DEPTH, KINDS, ROWS, WIDTH, Calls, alone, build

HIDDEN = 4


def opinionated(stack: LayerStack, kind: str, allow_exit: bool) -> Gates:
    """Gates that tell rows apart."""
    torch.manual_seed(1)
    gates = Gates(stack, kind == "skip-layer", HIDDEN, allow_exit)
    for gate in gates.each:
        assert isinstance(gate, Gate)
        gate.fc_out.weight.data.normal_(std=2.0)
        gate.fc_out.bias.data.zero_()
    return gates


def wants_open(gate: Gate, seen: Tensor) -> bool:
    """By hand, (D,) → whether the second logit is the larger."""
    normed = (seen - seen.mean()) / (seen.var(unbiased=False) + 1e-5).sqrt() * gate.norm.weight + gate.norm.bias
    logits = gate.fc_out.weight @ (gate.fc_in.weight @ normed + gate.fc_in.bias).clamp(min=0) + gate.fc_out.bias
    return bool(logits[1] > logits[0])


@pytest.mark.parametrize("allow_exit", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_row_gives_what_its_route_gives_in_a_network_of_no_other_layers(kind: str, allow_exit: bool) -> None:
    stack, inputs = build(kind)
    found = routed_forward(stack, GateRouter(opinionated(stack, kind, allow_exit)), inputs)
    assert len(found.route.unique(dim=0)) > 2 and found.route[:, 0].all() and (allow_exit or found.route[:, -1].all())
    for row in range(ROWS):
        expected = alone(stack, found.route[row], take_rows(inputs, slice(row, row + 1)))
        torch.testing.assert_close(found.outputs[row : row + 1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["blocks", "tied"])
@torch.no_grad()
def test_a_layer_runs_where_its_gate_says_so_of_the_state_before_it(kind: str) -> None:
    stack, inputs = build(kind)
    assert isinstance(stack, ModuleStack) and isinstance(inputs, Tensor)
    gates = opinionated(stack, kind, allow_exit=False)
    found = routed_forward(stack, GateRouter(gates), inputs)
    for row in range(ROWS):
        hidden = stack.embed(inputs[row : row + 1])  # (1, T, D)
        for i in range(DEPTH):
            runs = i in (0, DEPTH - 1) or wants_open(gates.gate(i), hidden.mean(dim=1)[0])
            assert found.route[row, i] == runs
            hidden = stack.layers[i](hidden) if runs else hidden


@pytest.mark.parametrize("kind", ["unequal", "masked"])
@torch.no_grad()
def test_compute_is_the_layers_that_ran_and_every_gate(kind: str) -> None:
    stack, inputs = build(kind)
    found = routed_forward(stack, GateRouter(opinionated(stack, kind, allow_exit=False)), inputs)
    flops = torch.tensor([1e5 * (1 + (kind == "unequal") * i) for i in range(DEPTH)])
    gate = 2 * WIDTH * HIDDEN + 2 * HIDDEN * 2
    torch.testing.assert_close(found.compute, (found.route.float() @ flops + 3 * gate) / flops.sum())


@pytest.mark.parametrize("kind", ["blocks", "skip-layer"])
@torch.no_grad()
def test_a_skipped_layer_is_computed_for_no_row_that_skips_it(kind: str) -> None:
    stack, inputs = build(kind)
    gates, calls = opinionated(stack, kind, allow_exit=True), Calls(stack)
    gates.gate(2).fc_out.bias.data.copy_(torch.tensor([1e4, 0.0]))  # never opens
    found = routed_forward(stack, GateRouter(gates), inputs)
    assert calls.rows == found.route.sum(dim=0).tolist() and calls.times[2] == 0
    assert 0 < calls.rows[1] < ROWS


@pytest.mark.parametrize("allow_exit", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_in_training_a_batch_gives_what_the_sampled_routes_give(kind: str, allow_exit: bool) -> None:
    stack, inputs = build(kind)
    gates = opinionated(stack, kind, allow_exit)
    relaxed = RelaxedStack(stack, gates, temperature=1.0)
    outputs = routed_forward(relaxed, torch.ones(DEPTH, dtype=torch.bool), inputs).outputs
    opened, compute = torch.stack(relaxed.opened, dim=1), relaxed.compute
    assert set(opened.detach().unique().tolist()) == {0.0, 1.0}
    found = routed_forward(stack, opened.detach().bool(), inputs)
    torch.testing.assert_close(outputs, found.outputs, atol=1e-4, rtol=1e-4)
    asked = sum(gates.gate(i).flops for i in gates.gated) / stack.begin(inputs).full_flops
    torch.testing.assert_close(compute, found.compute + asked)


def test_a_sample_is_open_as_often_as_its_logits_say_and_passes_back_the_gradient_of_the_soft_one() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, math.log(3.0)]]).repeat(20_000, 1)
    sample = straight_through_gumbel(logits, 0.7)
    assert set(sample.unique().tolist()) == {0.0, 1.0}
    assert sample.mean().item() == pytest.approx(0.75, abs=0.015)
    torch.manual_seed(3)
    noise = -torch.empty(50, 2).exponential_().log()
    torch.manual_seed(3)
    leaf = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (gradient,) = torch.autograd.grad(straight_through_gumbel(leaf, 0.7).sum(), leaf)
    soft = torch.sigmoid(((leaf + noise)[:, 1] - (leaf + noise)[:, 0]) / 0.7)
    torch.testing.assert_close(gradient[:, 1], soft * (1 - soft) / 0.7)
    torch.testing.assert_close(gradient[:, 0], -gradient[:, 1])


# ------------------------------------------------------------------------------- rows that need few layers and rows that need all

REQUIRED = DEPTH - 2


class Count(nn.Module):
    """A layer that counts itself, in the last channel."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + torch.tensor([0.0, 0.0, 0.0, 1.0])


class Verdict(nn.Module):
    """Sure of the label once a row's layers are as many as the row needs, and of the other before."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))  # something for the optimiser to hold

    def forward(self, hidden: Tensor) -> Tensor:
        label, required, count = hidden[:, 0], hidden[:, 1], hidden[:, 3] - 2
        margin = self.scale * label * torch.tanh(3 * (count - required) + 1.5)
        return torch.stack([-margin, margin], dim=1)


def _load(split: Split) -> Examples:
    rows = torch.arange(128)
    label, required = rows % 2, rows // 2 % 2 * REQUIRED
    x = torch.stack([2.0 * label - 1, required.float(), torch.zeros(128), torch.zeros(128)], dim=1)
    return Examples(x, label)


def _learner(budget: float, updates: int) -> Learner:
    task = Task("needs", ("minus", "plus"), _load, embedding=lambda _width: nn.Identity(), tokens=1)
    stack = ModuleStack(nn.Identity(), [Count() for _ in range(DEPTH)], Verdict(), width=4, layer_flops=[1e7] * DEPTH)
    schedule = ScheduleConfig(warmup_epochs=0, epochs=updates, batch_size=128, policy_learning_rate=1e-2)
    config = TrainConfig(agent="gumbel", pricing=PriceConfig(budget=budget), schedule=schedule, agent_config=GumbelConfig(gate_temperature=1.0))
    return Learner(config, task, torch.device("cpu"), stack=stack)


def test_gates_give_their_layers_to_the_rows_that_need_them_and_beat_every_fixed_route() -> None:
    budget = (2 + DEPTH) / 2 / DEPTH  # half of the rows need all layers, half the two that always run
    learner = _learner(budget, 300)
    gumbel = Gumbel(learner)
    assert gumbel.measure(learner.validation).compute == pytest.approx(1.0, abs=0.001)
    history = [gumbel.update(update) for update in range(learner.updates)]
    assert sum(one["rollout/compute"].item() for one in history[-20:]) / 20 == pytest.approx(budget, abs=0.03)
    gumbel.calibrate()
    found = gumbel.measure(learner.validation)
    assert found.score >= 0.99 and found.compute == pytest.approx(budget, abs=0.006)
    routes = all_routes(DEPTH, allow_exit=False)
    right, compute = evaluate_routes(learner.stack, learner.task, learner.validation, routes)
    assert right.mean(dim=1)[compute.mean(dim=1) <= budget + 0.01].max() == 0.5


def test_a_calibrated_gumbel_keeps_to_a_budget_that_it_was_not_trained_to() -> None:
    learner = _learner(0.5, 1)
    gumbel = Gumbel(learner)
    for gate in gumbel.gates.each:
        assert isinstance(gate, Gate)
        gate.fc_out.weight.data.normal_(std=1.0)
    gumbel.calibrate()
    spent = gumbel.measure(learner.validation).compute
    biases = torch.linspace(-20, 20, 2001)
    tried = []
    for bias in biases.tolist():
        gumbel.gates.logit_bias.fill_(bias)
        tried.append(gumbel.measure(learner.validation).compute)
    assert spent == pytest.approx(max(one for one in tried if one <= 0.505), abs=1e-6)


def test_the_gradient_reaches_every_gate(tiny_learner) -> None:
    learner = tiny_learner(agent="gumbel", pricing=PriceConfig(budget=0.5))
    gumbel = Gumbel(learner)
    before = {name: parameter.clone() for name, parameter in gumbel.gates.named_parameters()}
    gumbel.update(learner.warmup_updates)
    gumbel.update(learner.warmup_updates + 1)
    assert len(before) == 2 * 6
    assert all(not parameter.equal(before[name]) for name, parameter in gumbel.gates.named_parameters())
    for gate in gumbel.gates.each:
        opening = gate.fc_out.bias - before["each.0.fc_out.bias"]
        assert opening[1] < 0 < opening[0], "more is spent than the budget, so gates learn to close"


def test_where_the_network_is_frozen_the_gates_learn_alone(tiny_learner) -> None:
    schedule = ScheduleConfig(warmup_epochs=2, epochs=3, batch_size=32, tune="frozen")
    learner = tiny_learner(agent="gumbel", pricing=PriceConfig(budget=0.5), schedule=schedule)
    gumbel = Gumbel(learner)
    before = {name: tensor.clone() for name, tensor in learner.stack.state_dict().items()}
    gates = [parameter.clone() for parameter in gumbel.gates.parameters()]
    gumbel.update(learner.warmup_updates)
    assert all(tensor.equal(before[name]) for name, tensor in learner.stack.state_dict().items())
    assert any(not now.equal(then) for now, then in zip(gumbel.gates.parameters(), gates, strict=True))
