"""Measuring: shared-prefix route search against the routed forward, route by route; time."""

import itertools
import time

import pytest
import torch

import rl_skip.measure.evaluation as evaluation
from rl_skip import JumpPolicy, JumpRules, LayerStack, ObservationLayout
from rl_skip.core.clock import seconds_per_batch
from rl_skip.core.forward import routed_forward
from rl_skip.core.task import Examples, Task
from rl_skip.measure.evaluation import all_routes, beside_full_depth, best_fixed_route, evaluate, evaluate_routes
from rl_skip.nets.network import NetworkConfig, build_network
from rl_skip.tasks import load_task

DEPTH = 5


@pytest.fixture
def task() -> Task:
    return load_task("digits")


@pytest.fixture
def few(task: Task) -> Examples:
    return task.load("validation").take(slice(0, 40))


def network(task: Task, kind: str) -> LayerStack:
    torch.manual_seed(0)
    stack = build_network(NetworkConfig(layers=DEPTH, width=16, heads=2, stack=kind), task.embedding, task.tokens, 10)
    for parameter in stack.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return stack.eval()


@pytest.mark.parametrize("kind", ["blocks", "skip-layer"])
@pytest.mark.parametrize("allow_exit", [False, True])
def test_routes_searched_together_equal_routed_forwards_one_by_one(task: Task, few: Examples, kind: str, allow_exit: bool) -> None:
    stack = network(task, kind)
    routes = all_routes(DEPTH, allow_exit)
    correct, compute = evaluate_routes(stack, task, few, routes)
    for n, route in enumerate(routes):
        alone = routed_forward(stack, route, few.inputs)
        assert torch.equal(correct[n], task.score(alone.outputs, few.labels))
        torch.testing.assert_close(compute[n], alone.compute)


def test_all_routes_are_those_that_single_jumps_can_make() -> None:
    for allow_exit in (False, True):
        expected = {r for r in itertools.product([0, 1], repeat=DEPTH) if r[0] and (allow_exit or r[-1])}
        found = [tuple(route) for route in all_routes(DEPTH, allow_exit).int().tolist()]
        assert set(found) == expected and len(found) == len(expected)


@pytest.mark.parametrize("max_compute", [0.1, 0.45, 0.65, 1.0])
def test_the_best_fixed_route_is_the_best_of_all(task: Task, few: Examples, max_compute: float) -> None:
    stack = network(task, "blocks")
    best = best_fixed_route(stack, task, few, max_compute=max_compute)
    measured = [(route, evaluate(stack, route, task, few)) for route in all_routes(DEPTH, False)]
    cheap = [one.score for _route, one in measured if one.compute <= max(max_compute, 2 / DEPTH) + 1e-6]
    assert evaluate(stack, best, task, few).score == pytest.approx(max(cheap))
    assert float(best.sum()) / DEPTH <= max(max_compute, 2 / DEPTH) + 1e-6


def test_a_route_that_spends_leaves_less_than_a_layer(task: Task, few: Examples) -> None:
    stack = network(task, "blocks")
    shortest = torch.tensor([True] + [False] * (DEPTH - 2) + [True])
    own_words = Examples(few.inputs, routed_forward(stack, shortest, few.inputs).outputs.argmax(dim=1))
    for layers in range(2, DEPTH + 1):
        compute = (layers + 0.5) / DEPTH
        assert best_fixed_route(stack, task, own_words, max_compute=compute).equal(shortest)
        assert best_fixed_route(stack, task, own_words, max_compute=compute, spends=True).sum() == layers
    assert best_fixed_route(stack, task, own_words, max_compute=0.1, spends=True).equal(shortest)


def test_the_beam_finds_what_the_exhaustive_search_finds(task: Task, few: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = network(task, "blocks")
    exact = [best_fixed_route(stack, task, few, max_compute=compute, allow_exit=True) for compute in (0.2, 0.6, 1.0)]
    monkeypatch.setattr(evaluation, "EXHAUSTIVE_DEPTH", 1)
    beam = [best_fixed_route(stack, task, few, max_compute=compute, allow_exit=True) for compute in (0.2, 0.6, 1.0)]
    assert [route.tolist() for route in beam] == [route.tolist() for route in exact]


def test_evaluate_counts_rewards_and_routes_of_every_batch(task: Task, few: Examples) -> None:
    stack = network(task, "blocks")
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(16, DEPTH)))
    torch.nn.init.normal_(policy.fc_out.weight)
    stack.train()
    whole, parts = (evaluate(stack, policy, task, few, price=0.3, batch_size=size) for size in (40, 7))
    assert stack.training, "evaluate leaves the mode as it was"
    assert torch.equal(whole.route, parts.route) and whole.rows == parts.rows == 40
    stack.eval()
    rollout = routed_forward(stack, policy, few.inputs, price=0.3)
    right = (rollout.outputs.argmax(dim=1) == few.labels).float()
    assert whole.reward == pytest.approx(float((right - 0.3 * rollout.compute).mean()), abs=1e-6)
    assert whole.distinct_routes == len({tuple(route) for route in rollout.route.tolist()}) > 1


def test_a_policy_stands_beside_full_depth_on_the_same_rows(task: Task, few: Examples) -> None:
    stack, policy = network(task, "blocks"), JumpPolicy(JumpRules.reaching(ObservationLayout(16, DEPTH))).eval()
    torch.nn.init.normal_(policy.fc_out.weight)
    with torch.no_grad():
        rollouts = routed_forward(stack, policy, few.inputs, price=0.3), routed_forward(stack, torch.ones(DEPTH, dtype=torch.bool), few.inputs)
    for found, rollout in zip(beside_full_depth(stack, policy, task, few, price=0.3), rollouts, strict=True):
        assert torch.equal(found.route, rollout.route) and torch.equal(found.correct, task.score(rollout.outputs, few.labels))
        assert found.reward == pytest.approx(found.score - 0.3 * float(rollout.compute.mean()))


def test_seconds_are_medians_of_each_call() -> None:
    took = seconds_per_batch({"slow": lambda: time.sleep(0.01), "fast": lambda: None}, torch.device("cpu"), repeats=3)
    assert 0.01 <= took["slow"] < 0.1 and took["fast"] < 0.005


@pytest.mark.parametrize("deepest", [1, 12])
def test_full_depth_is_found_where_it_is_the_best_route(task: Task, few: Examples, monkeypatch: pytest.MonkeyPatch, deepest: int) -> None:
    stack = network(task, "blocks")
    full = torch.ones(DEPTH, dtype=torch.bool)
    own_words = Examples(few.inputs, routed_forward(stack, full, few.inputs).outputs.argmax(dim=1))
    monkeypatch.setattr(evaluation, "EXHAUSTIVE_DEPTH", deepest)
    shorter = [evaluate(stack, route, task, own_words).score for route in all_routes(DEPTH, True) if not route.all()]
    assert max(shorter) < 1
    assert best_fixed_route(stack, task, own_words, max_compute=1.0, allow_exit=True).all()


def test_routes_are_the_same_however_many_rows_go_at_once(task: Task, few: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, routes = network(task, "skip-layer"), all_routes(DEPTH, False)
    together = evaluate_routes(stack, task, few, routes)
    monkeypatch.setattr(evaluation, "ROWS_AT_ONCE", 7)
    for whole, parts in zip(together, evaluate_routes(stack, task, few, routes), strict=True):
        torch.testing.assert_close(parts, whole)
