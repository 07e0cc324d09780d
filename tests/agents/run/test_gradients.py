"""Several processes take one update together: it is the update of one process on the same batch."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents.options.config import PolicyConfig, PriceConfig, ScheduleConfig, TrainConfig
from agents.policy.reinforce import Reinforce, ReinforceConfig
from agents.run.gradients import Part, add_up, parts
from agents.run.learner import Learner
from agents.run.warmup import warm_up_for
from rl_skip.core.errors import UserError
from rl_skip.core.processes import ALONE, Processes, together, working
from rl_skip.core.task import Examples, Split, Task
from rl_skip.learning.prices import BudgetPrice
from rl_skip.nets.module_stack import ModuleStack
from rl_skip.nets.network import NetworkConfig
from tests.agents.processes import in_processes

UPDATES = 8
BATCH = 37
"""Which no number of processes divides."""
EXITS = PolicyConfig(readouts=True, jumps=False)
CASES: dict[str, dict[str, Any]] = {
    "exact": {"policy": EXITS},
    "exact, with adapters": {"policy": PolicyConfig(readouts=True, jumps=False, readout_rank=2)},
    "exact, to a budget": {"policy": EXITS, "pricing": PriceConfig(budget=0.6)},
    "sampled": {"agent_config": ReinforceConfig(routes_per_input=3)},
    "sampled, with a critic and imitation": {"agent_config": ReinforceConfig(baseline="value", imitation_weight=0.2)},
    "sampled, to a budget, network frozen": {"pricing": PriceConfig(budget=0.6), "tune": "frozen"},
}


def load(split: Split) -> Examples:
    x = torch.randn(2 * BATCH, 5, 3, generator=torch.Generator().manual_seed(len(split)))
    return Examples(x, (x.sum(dim=(1, 2)) > 0).long())


def learner_of(case: str, accumulate: int = 1) -> Learner:
    task = Task("sums", ("minus", "plus"), load, embedding=lambda width: nn.Linear(3, width), tokens=5)
    options = dict(CASES[case])
    schedule = ScheduleConfig(warmup_epochs=2, epochs=2, batch_size=BATCH, accumulate=accumulate, tune=options.pop("tune", "all"))
    config = TrainConfig(network=NetworkConfig(layers=4, width=16, heads=2), schedule=schedule, **options)
    return Learner(config, task, torch.device("cpu"))


def trained(case: str, accumulate: int = 1, updates: int = UPDATES) -> dict[str, Any]:
    """Weights, metrics, decisions and the price after some updates of warm-up and agent, and a validation."""
    learner = learner_of(case, accumulate)
    learner.begin_together()
    agent, warm_up = Reinforce(learner), warm_up_for(learner)
    assert agent.exact == case.startswith("exact")
    metrics: dict[str, Tensor] = {}
    for update in range(updates):
        if update == learner.warmup_updates:
            learner.end_warm_up()
        metrics = (warm_up if update < learner.warmup_updates else agent).update(update)
    modules = {"network": learner.stack, "policy": learner.policy, "critic": learner.critic}
    weights = {f"{part}.{name}": weight.detach() for part, module in modules.items() for name, weight in module.named_parameters()}
    measured = agent.evaluate(learner.validation)
    price = agent.prices.state_dict() if isinstance(agent.prices, BudgetPrice) else {}
    state = {"metrics": metrics, "price": price, "env_steps": agent.env_steps}
    return {"weights": weights, **state, "correct": measured.correct, "route": measured.route}


def all_cases() -> dict[str, dict[str, Any]]:
    return {case: trained(case) for case in CASES} | {"in passes": trained("exact", accumulate=3)}


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    return {case: trained(case) for case in CASES} | {"in passes": trained("exact")}


@pytest.fixture(scope="module", params=[2, 4])
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    return in_processes(request.param, tmp_path_factory.mktemp("processes"), all_cases)


@pytest.mark.parametrize("case", [*CASES, "in passes"])
def test_several_processes_take_the_update_of_one(case: str, alone: dict[str, Any], each: list[dict[str, Any]]) -> None:
    expected = alone[case]
    for found in (process[case] for process in each):
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=0, atol=1e-5)
        for name, value in expected["metrics"].items():
            by_decision = name.startswith("policy/")  # a mean over a process's decisions, and not over its rows
            torch.testing.assert_close(found["metrics"][name], value, rtol=1e-4, atol=0.05 if by_decision else 1e-5, check_dtype=False)
        assert found["price"] == pytest.approx(expected["price"], abs=1e-6)
        assert found["env_steps"] == expected["env_steps"] > 0
        assert torch.equal(found["correct"], expected["correct"]) and torch.equal(found["route"], expected["route"])
    for name, weight in each[0][case]["weights"].items():
        assert all(torch.equal(weight, process[case]["weights"][name]) for process in each[1:]), name


def test_passes_add_up_to_the_update_of_one_pass(alone: dict[str, Any]) -> None:
    for case in ("exact", "sampled, with a critic and imitation"):
        torch.testing.assert_close(trained(case, accumulate=5)["weights"], alone[case]["weights"], rtol=0, atol=1e-5)


def norms_of_a_batch() -> list[Tensor]:
    """What batch norm keeps after an update, and what it would keep of the first process's rows."""
    task = Task("sums", ("minus", "plus"), load, embedding=lambda width: nn.Linear(3, width), tokens=5)
    layers = [nn.Sequential(nn.Flatten(), nn.Linear(15, 15), nn.BatchNorm1d(15), nn.Unflatten(1, (5, 3))) for _ in range(3)]
    stack = ModuleStack(nn.Identity(), layers, nn.Sequential(nn.Flatten(), nn.Linear(15, 2)), width=3, layer_flops=[1.0] * 3)
    schedule = ScheduleConfig(warmup_epochs=1, epochs=1, batch_size=BATCH, random_route_weight=0.0)
    learner = Learner(TrainConfig(schedule=schedule), task, torch.device("cpu"), stack)
    learner.begin_together()
    first = learner.train.take(learner.batch_rows(0)[: BATCH // together().count]).inputs
    assert isinstance(first, Tensor)
    expected = 0.1 * layers[0][1](first.flatten(1)).mean(dim=0).detach()
    warm_up_for(learner).update(0)
    return [layers[0][2].running_mean, expected]


def test_batch_norm_keeps_what_the_first_process_saw(tmp_path: Path) -> None:
    for kept, expected in in_processes(2, tmp_path, norms_of_a_batch):
        torch.testing.assert_close(kept, expected)


def own_gradients() -> list[Any]:
    """Of three weights: one has a gradient in all processes, one in the first alone, and one in none."""
    rank, weights = together().rank, [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    weights[0].grad = torch.tensor([1.0, 2.0]) * (rank + 1)
    weights[1].grad = torch.tensor([5.0, 6.0]) if rank == 0 else None
    weights[3].requires_grad_(False)
    metrics = add_up(weights, {"a": torch.tensor(0.25), "b": torch.tensor(float(rank))})
    return [metrics, [weight.grad for weight in weights]]


def test_what_one_process_does_not_use_counts_as_zero_and_what_none_uses_is_left_alone(tmp_path: Path) -> None:
    for metrics, gradients in in_processes(2, tmp_path, own_gradients):
        assert metrics == {"a": torch.tensor(0.5), "b": torch.tensor(1.0)}
        assert torch.equal(gradients[0], torch.tensor([3.0, 6.0])) and torch.equal(gradients[1], torch.tensor([5.0, 6.0]))
        assert gradients[2:] == [None, None]


@pytest.mark.parametrize(("count", "passes"), [*itertools.product((1, 2, 3, 5), (1, 4))])
def test_the_parts_of_all_processes_are_the_batch(count: int, passes: int) -> None:
    learner = learner_of("sampled", passes)
    rows, whole = learner.batch_rows(0), torch.arange(BATCH)
    of_each: list[list[Part]] = []
    for rank in range(count):
        with working(Processes(rank, count)):
            of_each.append(list(parts(learner.train, rows, passes)))
    every = [part for own in of_each for part in own]
    assert torch.equal(torch.cat([part.rows for part in every]), rows) and torch.equal(torch.cat([part.of(whole) for part in every]), whole)
    assert sum(part.weight for part in every) == pytest.approx(1.0)
    sizes = [len(part.batch) for part in every]
    assert {len(own) for own in of_each} == {passes} and max(sizes) - min(sizes) <= 1
    assert together() is ALONE


@pytest.mark.parametrize("make", [lambda: learner_of("sampled", BATCH + 1)])
def test_a_batch_with_fewer_rows_than_parts_is_refused(make: Callable[[], Learner]) -> None:
    with pytest.raises(UserError, match=f"a batch of {BATCH} rows does not divide into {BATCH + 1} parts.*--batch-size"):
        make()
