"""`--precision`: what is multiplied in 16 bits, and what is not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.agent import AgentConfig
from agents.options.config import NetworkConfig, PolicyConfig, PriceConfig, ScheduleConfig, TrainConfig
from agents.run.learner import Learner
from agents.run.session import Session
from rl_skip import UserError, load_task
from rl_skip.core import devices
from rl_skip.core.forward import routed_forward

CPU = torch.device("cpu")
LEAVES = PolicyConfig(readouts=True, jumps=False)


def config(agent: str = "reinforce", policy: PolicyConfig = LEAVES, precision: Any = "bf16", budget: float | None = None) -> TrainConfig:
    schedule = ScheduleConfig(warmup_epochs=1, epochs=1, precision=precision)
    network = NetworkConfig(layers=3, width=32)
    pricing = PriceConfig(budget=budget)
    return TrainConfig(agent=agent, agent_config=AgentConfig(), network=network, policy=policy, schedule=schedule, pricing=pricing, train_rows=130)


@pytest.mark.parametrize(
    ("agent", "policy", "budget", "precision"),
    [
        ("reinforce", LEAVES, None, "bf16"),
        ("reinforce", LEAVES, None, "fp16"),
        ("reinforce", PolicyConfig(), None, "bf16"),
        ("reinforce", PolicyConfig(), None, "fp16"),
        ("reinforce", replace(LEAVES, jumps=True), None, "bf16"),
        ("ppo", LEAVES, None, "bf16"),
        ("gumbel", PolicyConfig(), 0.7, "bf16"),
        ("gumbel", PolicyConfig(), 0.7, "fp16"),
        ("static", LEAVES, 0.7, "bf16"),
        ("shallow", LEAVES, 0.7, "bf16"),
        ("exits", LEAVES, None, "bf16"),
    ],
)
def test_matrices_are_multiplied_in_16_bits_while_agents_learn_and_nothing_else_is(
    agent: str, policy: PolicyConfig, budget: float | None, precision: str
) -> None:
    session = Session(config(agent, policy, precision, budget), load_task("digits"), CPU)
    learner, seen, losses = session.learner, set(), []
    linear = next(module for module in learner.stack.modules() if isinstance(module, nn.Linear))
    linear.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    scale = learner.descent.scaler.scale

    def watched(loss: Tensor) -> Tensor:
        losses.append(loss.dtype)
        return scale(loss)

    learner.descent.scaler.scale = watched
    before = {name: weight.clone() for name, weight in learner.stack.named_parameters()}
    for update in (0, learner.warmup_updates):
        if update == learner.warmup_updates:
            learner.end_warm_up()
            seen.clear()
        with learner.stack.computing_in(learner.precision):
            metrics = session.warm_up.update(update) if update < learner.warmup_updates else session.agent.update(update)
        assert all(value.isfinite().all() for value in metrics.values())
    assert {"bf16": torch.bfloat16, "fp16": torch.float16}[precision] in seen
    assert set(losses) == {torch.float32}
    assert all(weight.dtype == torch.float32 for weight in learner.stack.parameters())
    assert any(not torch.equal(weight, before[name]) for name, weight in learner.stack.named_parameters())
    seen.clear()
    session.agent.evaluate(learner.validation.take(slice(0, 8)))
    assert seen == {torch.float32}


def test_outputs_are_near_those_of_single_precision() -> None:
    learner = Learner(config(), load_task("digits"), CPU)
    batch, route = learner.validation.take(slice(0, 8)), torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        exact = routed_forward(learner.stack.eval(), route, batch.inputs).outputs
        with learner.stack.computing_in(torch.bfloat16):
            near = routed_forward(learner.stack, route, batch.inputs).outputs
    assert near.dtype == torch.float32 and not torch.equal(near, exact)
    torch.testing.assert_close(near, exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("known", [True, False])
def test_auto_takes_it_where_the_processor_does(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: known, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert devices.multiplies_bfloat16(CPU) is known
    learner = Learner(config(precision="auto"), load_task("digits"), CPU)
    assert learner.precision == (torch.bfloat16 if known else None)


def test_another_precision_is_refused() -> None:
    with pytest.raises(UserError, match="the precision is one of no, bf16, fp16, auto, got 'half'; set --precision"):
        ScheduleConfig(precision="half")  # type: ignore[arg-type]


def test_the_step_in_float16_is_that_of_single_precision_whatever_the_scale() -> None:
    """The loss is scaled up for the pass back alone."""
    steps = []
    for precision in ("no", "fp16"):
        learner = Learner(config(precision=precision), load_task("digits"), CPU)
        before = learner.policy.fc_in.weight.detach().clone()
        weights = next(learner.stack.parameters())
        norm = learner.descent.apply((weights.sum() + learner.policy.fc_in.weight.square().sum()) * 1e-7)
        steps.append((norm, weights.detach().clone(), learner.policy.fc_in.weight.detach() - before))
    torch.testing.assert_close(steps[0], steps[1])


def test_updates_that_overflow_float16_are_left_out_until_the_scale_is_small_enough() -> None:
    learner = Learner(config(precision="fp16"), load_task("digits"), CPU)
    weights, decides = next(learner.stack.parameters()), learner.policy.fc_in.weight
    before, decided, scales = weights.detach().clone(), decides.detach().clone(), []
    while torch.equal(weights, before):
        scales.append(learner.descent.scaler.get_scale())
        norm = learner.descent.apply(3 * weights.flatten()[0].half().float() + 1e-3 * decides.sum())  # float16 ends at 65,504
        assert norm == (0 if torch.equal(weights, before) else 3)
        assert torch.equal(decides, decided) == torch.equal(weights, before)  # whose own gradient was never too large
    assert scales == [65536.0, 32768.0, 16384.0]
    with pytest.raises(UserError, match="the gradient of network.* is not finite"):
        for _ in range(20):
            learner.descent.apply(weights.flatten()[0] * float("inf"))
    state = learner.state_dict()
    again = Learner(config(precision="fp16"), load_task("digits"), CPU)
    again.load_state_dict(state)
    assert again.descent.scaler.get_scale() == learner.descent.scaler.get_scale() == 1.0
