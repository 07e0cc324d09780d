"""Intervals, tests and areas against closed forms, enumeration and slow loops."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from rl_skip.measure.compare.curves import Point
from rl_skip.measure.compare.statistics import Bootstrap, area_by_row, best_within, frontier, p_value, route_entropy
from rl_skip.measure.compare.timing import _batch_time


def point(compute: float, correct: list[float]) -> Point:
    return Point(f"{compute}", None, None, torch.tensor(correct), torch.full((len(correct),), compute))


def cloud(count: int, rows: int, seed: int) -> tuple[Point, ...]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(count, rows + 1, generator=generator)
    return tuple(point(float(1.1 * one[0]), (one[1:] < 0.7).float().tolist()) for one in draw)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = (torch.rand(1, 2000, generator=torch.Generator().manual_seed(0)) < 0.9).float()
    found = Bootstrap(rows=2000, seeds=1).interval(values)
    error = float(values.std()) / math.sqrt(2000)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.12)
    assert found.value - found.low == pytest.approx(1.96 * error, rel=0.12)


def test_seeds_that_differ_widen_the_interval() -> None:
    rows = torch.zeros(3, 500)
    rows[0], rows[2] = -1.0, 1.0  # no noise between rows, only between seeds
    found = Bootstrap(rows=500, seeds=3).interval(rows)
    assert found.value == pytest.approx(0.0) and (found.low, found.high) == pytest.approx((-1.0, 1.0))
    same = Bootstrap(rows=500, seeds=3).interval(torch.ones(3, 500))
    assert (same.low, same.high) == pytest.approx((1.0, 1.0))


def test_a_ratio_is_of_means_and_none_without_a_gap() -> None:
    upper, lower = torch.tensor([[1.0, 0.0, 1.0, 2.0]]), torch.tensor([[2.0, 2.0, 2.0, 2.0]])
    found = Bootstrap(rows=4, seeds=1).ratio(upper, lower)
    assert found is not None and found.value == pytest.approx(0.5) and found.low < 0.5 < found.high
    assert Bootstrap(rows=4, seeds=1).ratio(upper, torch.zeros(1, 4)) is None


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 0), (7, 2), (1, 9), (5, 5), (200, 150)])
def test_mcnemar_is_the_exact_binomial_test(wins: int, losses: int) -> None:
    difference = torch.tensor([[1.0] * wins + [-1.0] * losses + [0.0] * 50])
    n = wins + losses
    tail = sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n
    assert p_value(difference) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_sign_flips_equal_their_enumeration() -> None:
    difference = torch.tensor([[1.0, 1.0, 0.5, 1.0, -0.5, 0.5, 1.0, 0.0, 1.0, 1.0]] * 2)
    by_row = difference[0][difference[0] != 0]
    sums = [abs(float((by_row * torch.tensor(signs)).sum())) for signs in itertools.product([1.0, -1.0], repeat=len(by_row))]
    exact = sum(one >= float(by_row.sum()) - 1e-6 for one in sums) / len(sums)
    assert p_value(difference) == pytest.approx(exact, abs=0.01) and 0.01 < exact < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_the_best_point_within_a_budget_is_the_best_of_all(seed: int) -> None:
    points = cloud(12, 40, seed)
    for budget in torch.linspace(0, 1.2, 25).tolist():
        affordable = [one for one in points if one.mean_compute <= budget]
        chosen = best_within(points, budget)
        if not affordable:
            assert chosen is None
            continue
        assert chosen is not None and points[chosen] in affordable
        assert points[chosen].score == max(one.score for one in affordable)
    accuracies = [points[n].score for n in frontier(points)]
    assert accuracies == sorted(set(accuracies))


@pytest.mark.parametrize("seed", range(2))
def test_the_area_is_the_mean_over_budgets_of_what_is_chosen(seed: int) -> None:
    validation, test = cloud(9, 40, seed), cloud(9, 30, seed + 100)
    majority_score = torch.linspace(0, 1, 30)
    steps = 2000
    total = torch.zeros(30, dtype=torch.float64)
    for k in range(steps):
        n = best_within(validation, 0.2 + 0.8 * (k + 0.5) / steps)
        total += (majority_score if n is None else test[n].correct).double() / steps
    torch.testing.assert_close(area_by_row(validation, test, majority_score), total, atol=8e-3, rtol=0)


def test_entropy_counts_routes() -> None:
    routes: Tensor = torch.tensor([[1, 0], [1, 1], [1, 1], [1, 0]]).bool()
    assert route_entropy(routes) == pytest.approx(1.0)
    assert route_entropy(routes[:1]) == 0.0


def test_at_the_break_even_compute_the_policy_takes_as_long_as_full_depth() -> None:
    fixed, layers, overhead, compute = 1.0, 8.0, 2.0, 0.4  # milliseconds: once, for all layers, of routing at full compute
    seconds = {"full": fixed + layers, "first": fixed + layers / 8, "policy": fixed + layers * compute + overhead * compute, "same": 3.0}
    found = _batch_time(64, seconds, compute, full=1.0, least=1 / 8)
    assert fixed + (layers + overhead) * found.break_even == pytest.approx(fixed + layers)
    assert found.policy_share == pytest.approx(1 - 3.0 / seconds["policy"])
    slow = _batch_time(1, seconds | {"full": 1.0, "first": 1.0}, compute, full=1.0, least=1 / 8)
    assert slow.break_even == 0.0
