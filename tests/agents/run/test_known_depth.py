"""Training on a known depth, and a policy on a network that stays as it is."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from agents.agent import find_agent
from agents.options.config import PolicyConfig, PriceConfig, ScheduleConfig, TrainConfig
from agents.policy.policy_agent import PolicyAgent
from agents.policy.ppo import PpoConfig
from agents.policy.reinforce import ReinforceConfig
from agents.run.checkpoints import load_random_states, random_states
from agents.run.known_depth import KnownDepth
from agents.run.learner import Learner
from agents.run.warmup import RandomRoutes, WarmUp, warm_up_for
from rl_skip.core.errors import UserError
from rl_skip.core.task import Examples, Split, Task
from rl_skip.learning.prices import PriceRange
from rl_skip.nets.network import NetworkConfig

ROWS, DEPTH = 160, 4
AGENTS = ["reinforce", "ppo", "maskable-ppo"]


def load(split: Split) -> Examples:
    """Rows whose first number says how many layers they need, 1 to 4."""
    generator = torch.Generator().manual_seed(len(split))
    x = torch.randn(ROWS, 5, 3, generator=generator)
    x[:, 0, 0] = torch.arange(ROWS) % DEPTH + 1.0
    return Examples(x, (x[:, 1:].sum(dim=(1, 2)) > 0).long())


def first_number(examples: Examples) -> Tensor:
    assert isinstance(examples.inputs, Tensor)
    return examples.inputs[:, 0, 0].long()


def make(task_options: dict[str, Any] | None = None, **options: Any) -> Learner:
    task = Task("depths", ("no", "yes"), load, lambda width: nn.Linear(3, width), 5, **{"required_depth": first_number, **(task_options or {})})
    reinforce = options.get("agent", "reinforce") == "reinforce"
    config: dict[str, Any] = {
        "network": NetworkConfig(DEPTH, 16, 2, dropout=0.1),
        "policy": PolicyConfig(allow_exit=True, policy_hidden=16),
        "pricing": PriceConfig(price_range=(0.05, 0.5)),
        "schedule": ScheduleConfig(warmup_epochs=1, epochs=3, batch_size=32, tune="frozen"),
        "agent_config": ReinforceConfig(baseline="value", imitation_weight=0.3)
        if reinforce
        else PpoConfig(num_envs=8, steps=4, minibatch=32, imitation_weight=0.3),
    }
    return Learner(TrainConfig(**(config | options)), task, torch.device("cpu"))


def agent_of(learner: Learner) -> PolicyAgent:
    kind = find_agent(learner.config.agent)
    assert issubclass(kind, PolicyAgent)
    return kind(learner, PriceRange(0.05, 0.5))


def count_rows(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows run each layer from now on."""
    counts = [0] * DEPTH
    run = learner.stack.run

    def watched(i: int, carry: Any, rows: Tensor | None) -> Tensor:
        counts[i] += len(carry.hidden) if rows is None else len(rows)
        return run(i, carry, rows)

    monkeypatch.setattr(learner.stack, "run", watched)
    return counts


def test_the_warm_up_runs_just_the_layers_that_rows_need(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make()
    known = KnownDepth(learner)
    known.level = DEPTH
    required_depth = first_number(learner.train.take(known.batch_rows(0)))
    counts = count_rows(learner, monkeypatch)
    known.update(0)
    assert counts == [int((required_depth > i).sum()) for i in range(DEPTH)]
    assert len(required_depth.unique()) == DEPTH


def test_rows_that_need_more_layers_wait_until_the_others_are_right() -> None:
    known = KnownDepth(make())
    assert first_number(known.learner.train.take(known.batch_rows(3))).tolist() == [1] * 32
    known.observe_accuracy(torch.tensor(0.94))
    assert known.level == 1 and "more than 1 layers were not learned in the warm-up; raise --warmup-epochs" in str(known.shortfall())
    known.observe_accuracy(torch.tensor(0.96))
    assert sorted(first_number(known.learner.train.take(known.batch_rows(3))).unique().tolist()) == [1, 2]
    for _ in range(9):
        known.observe_accuracy(torch.tensor(1.0))
    assert known.level == DEPTH and known.shortfall() is None


@pytest.mark.parametrize("other", [{"policy": PolicyConfig()}, {"network": NetworkConfig(3, 16, 2)}])
def test_a_network_that_learns_on_can_do_without_what_a_task_knows(other: dict[str, Any]) -> None:
    learns_on = ScheduleConfig(warmup_epochs=1, epochs=3, batch_size=32)
    assert isinstance(warm_up_for(make(schedule=learns_on)), KnownDepth)
    learner = make(schedule=learns_on, **other)
    assert isinstance(warm_up_for(learner), RandomRoutes)
    assert torch.equal(learner.batch(0).labels, make(schedule=learns_on, task_options={"required_depth": None}).batch(0).labels)


def test_rows_must_be_allowed_to_leave_and_have_layers_enough() -> None:
    with pytest.raises(UserError, match="leave after the layers that they need; set --allow-exit, or --tune all"):
        warm_up_for(make(policy=PolicyConfig()))
    with pytest.raises(UserError, match="needs 4 layers, the network has 3; set --layers, or --tune all"):
        warm_up_for(make(network=NetworkConfig(3, 16, 2)))


@pytest.mark.parametrize("agent", AGENTS)
def test_a_frozen_network_does_not_move_by_a_bit_while_the_policy_does(agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make(agent=agent)
    warm_up = warm_up_for(learner)
    for update in range(learner.warmup_updates):
        warm_up.update(update)
    trainer = agent_of(learner)
    network, policy, critic = (deepcopy(module.state_dict()) for module in (learner.stack, learner.policy, learner.critic))
    full_depth: list[None] = []
    monkeypatch.setattr(learner, "full_depth_loss", lambda batch: full_depth.append(None))
    for update in range(learner.warmup_updates, learner.warmup_updates + 3):
        trainer.update(update)
        assert not learner.stack.training
    assert full_depth == []
    assert all(torch.equal(value, network[name]) for name, value in learner.stack.state_dict().items())
    assert not any(torch.equal(value, policy[name]) for name, value in learner.policy.state_dict().items() if "norms.memory" not in name)
    assert not torch.equal(learner.critic.body.fc_out.weight, critic["body.fc_out.weight"])


@pytest.mark.parametrize("agent", AGENTS)
def test_a_frozen_run_goes_on_exactly_where_its_state_was_taken(agent: str) -> None:
    def go_on(learner: Learner, warm_up: WarmUp, trainer: PolicyAgent, begin: int, end: int) -> None:
        for update in range(begin, end):
            (warm_up if update < learner.warmup_updates else trainer).update(update)

    def parameters(learner: Learner) -> Tensor:
        return torch.cat([one.detach().flatten() for module in (learner.stack, learner.policy, learner.critic) for one in module.parameters()])

    for stop in (3, 7):  # in the warm-up, and after it
        learner = make(agent=agent)
        trainer, warm_up = agent_of(learner), KnownDepth(learner)
        warm_up.level = 2
        go_on(learner, warm_up, trainer, 0, stop)
        states = deepcopy((learner.state_dict(), trainer.state_dict(), warm_up.state_dict(), random_states()))
        go_on(learner, warm_up, trainer, stop, 9)
        other = make(agent=agent)
        other_trainer, other_warm_up = agent_of(other), KnownDepth(other)
        torch.rand(3)
        other.load_state_dict(states[0])
        other_trainer.load_state_dict(states[1])
        other_warm_up.load_state_dict(states[2])
        load_random_states(states[3])
        go_on(other, other_warm_up, other_trainer, stop, 9)
        assert torch.equal(parameters(other), parameters(learner))


def test_what_was_frozen_from_the_start_never_learns() -> None:
    learner = make(schedule=ScheduleConfig(warmup_epochs=1, epochs=3, batch_size=32))
    learner.stack.head.requires_grad_(False)
    learner.descent.trainable = [parameter for parameter in learner.stack.parameters() if parameter.requires_grad]
    before = deepcopy(learner.stack.head.state_dict())
    warm_up_for(learner).update(0)
    agent_of(learner).update(5)
    assert all(torch.equal(value, before[name]) for name, value in learner.stack.head.state_dict().items())


@pytest.fixture
def options_of() -> Callable[..., TrainConfig]:
    """What the options come to, on the command line."""
    return lambda *flags: train.read_options(flags)


def test_a_task_brings_its_options_and_flags_win(options_of: Callable[..., TrainConfig]) -> None:
    leaves = {"policy": PolicyConfig(readouts=True, jumps=False), "schedule": ScheduleConfig(warmup_epochs=0, epochs=40)}
    leaving = TrainConfig(task="digits", pricing=PriceConfig(price_range=(0.003, 3.0)), **leaves)  # type: ignore[arg-type]
    preset = options_of("--task", "hops", "--seed", "3")
    assert options_of("--task", "digits") == options_of() == options_of("--policy-scope", "state") == leaving
    assert not preset.policy.readouts and preset.policy.jumps
    assert (preset.task, preset.seed) == ("hops", 3)
    assert preset.network.tied and preset.network.layers == 8 and preset.policy.allow_exit and preset.schedule.tune == "frozen"
    assert options_of("--task=hops", "--seed", "3") == preset
    changed = options_of("--width", "64", "--task", "hops", "--tune", "all", "--no-tied", "--price", "0.2")
    assert (changed.network.width, changed.network.layers, changed.network.tied) == (64, 8, False)
    assert (changed.schedule.tune, changed.schedule.batch_size) == ("all", preset.schedule.batch_size)
    assert changed.pricing.price == 0.2
    assert changed.schedule.epochs > preset.schedule.epochs
    assert options_of("--task", "hops-16").network.layers == 16


@pytest.mark.parametrize(
    ("flags", "policy"),
    [
        (["--no-readouts"], PolicyConfig()),
        (["--no-readouts", "--allow-exit", "--no-jumps"], PolicyConfig(allow_exit=True, jumps=False)),
        (["--jumps"], PolicyConfig()),
        (["--jumps", "--readouts"], PolicyConfig(readouts=True)),
        (["--no-allow-exit"], PolicyConfig()),
        (["--max-jump", "2"], PolicyConfig(max_jump=2)),
        (["--policy-scope", "input"], PolicyConfig(policy_scope="input")),
        (["--policy-scope=input"], PolicyConfig(policy_scope="input")),
        (["--stack", "skip-layer"], PolicyConfig()),
        (["--stack", "blocks"], PolicyConfig(readouts=True, jumps=False)),
        (["--budget", "0.4"], PolicyConfig(readouts=True, jumps=False)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_rows_leave_by_readouts_unless_the_options_ask_for_jumps(
    flags: list[str], policy: PolicyConfig, options_of: Callable[..., TrainConfig]
) -> None:
    found = options_of(*flags)
    assert found.policy == policy
    assert found.pricing.price_range == ((0.003, 1.0) if policy.jumps or not policy.readouts else (0.003, 3.0))


@pytest.mark.parametrize(
    ("defaults", "policy"),
    [
        ("{}", PolicyConfig(readouts=True, jumps=False)),
        ('{"readouts": False}', PolicyConfig()),
        ('{"jumps": True}', PolicyConfig(jumps=True)),
        ('{"max_jump": 2}', PolicyConfig(max_jump=2)),
        ('{"policy_scope": "input"}', PolicyConfig(policy_scope="input")),
        ('{"stack": "skip-layer"}', PolicyConfig()),
    ],
)
def test_and_unless_the_task_does(defaults: str, policy: PolicyConfig, options_of: Callable[..., TrainConfig], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        f"import torch\nfrom rl_skip import Task\n"
        f"def own(path): return Task('own', ('a', 'b'), None, lambda width: torch.nn.Linear(3, width), 5, defaults={defaults})\n"
    )
    assert options_of("--task", f"{tmp_path / 'own.py'}:own").policy == policy
    assert options_of("--task", f"{tmp_path / 'own.py'}:own", "--readouts").policy.readouts


def test_a_run_that_goes_on_keeps_its_own_options(options_of: Callable[..., TrainConfig], tmp_path: Path) -> None:
    begun = options_of("--task", "hops", "--tune", "all", "--layers", "6")
    (tmp_path / "config.json").write_text(json.dumps(begun.to_json()))
    assert replace(options_of("--resume", str(tmp_path)), resume=None) == begun
    assert replace(options_of("--resume", str(tmp_path), "--task", "hops"), resume=None) == begun
