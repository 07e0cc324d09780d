"""Intervals, tests and areas: all of them means over rows and seeds, so that everything is paired row by row.

Values come as (S, N): one number for each of N test rows, which are the same for all, and each of S seeds.
"""

import math

import torch
from torch import Tensor

from rl_skip.measure.compare.curves import Point
from rl_skip.measure.compare.result import Interval

__all__ = ["AREA_RANGE", "Bootstrap", "area_by_row", "best_within", "frontier", "p_value", "route_entropy"]

AREA_RANGE = (0.2, 1.0)
DRAWS = 1000
FLIPS = 2000
ROUNDING = 1e-6


class Bootstrap:
    """Percentile intervals from resampled rows, and resampled seeds where there are several (Efron & Tibshirani 1993).

    Rows and seeds are drawn apart, and the draws are the same for every value, so that a difference of two values has
    the interval of the paired difference.

    Args:
        rows: N.
        seeds: S. With one seed the interval is over rows alone.
    """

    def __init__(self, rows: int, seeds: int, draws: int = DRAWS) -> None:
        generator = torch.Generator().manual_seed(0)
        self.row_counts = _counts(draws, rows, generator)  # (draws, N)
        self.seed_counts = _counts(draws, seeds, generator)  # (draws, S)

    def interval(self, values: Tensor) -> Interval:
        """The mean of `values` (S, N) with its 95% interval."""
        return _percentiles(float(values.double().mean()), self._means(values))

    def ratio(self, upper: Tensor, lower: Tensor) -> Interval | None:
        """The ratio of two means, each of (S, N), with its interval; None where the lower is not above 0."""
        below = float(lower.double().mean())
        if below <= ROUNDING:
            return None
        drawn = self._means(lower)
        ratios = self._means(upper)[drawn > ROUNDING] / drawn[drawn > ROUNDING]
        return _percentiles(float(upper.double().mean()) / below, ratios)

    def _means(self, values: Tensor) -> Tensor:
        by_seed = self.row_counts @ values.float().T  # (draws, S)
        return (by_seed * self.seed_counts).sum(dim=1).double() / values.numel()


def _counts(draws: int, size: int, generator: torch.Generator) -> Tensor:
    """(draws, size) float, how often each of `size` things is drawn when as many are drawn with replacement."""
    counts = torch.zeros(draws, size)
    for draw in counts:
        draw += torch.randint(size, (size,), generator=generator).bincount(minlength=size)
    return counts


def _percentiles(value: float, drawn: Tensor) -> Interval:
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(value, min(low, value), max(high, value))


def p_value(difference: Tensor) -> float:
    """Two-sided p-value that a row's difference is as likely up as down, by flipping signs of rows.

    With one seed and scores of 0 and 1 this is McNemar's exact test: only rows count that one gets right and the other
    wrong, and their number on one side is binomial. Otherwise the mean difference of each row over the seeds keeps
    its size and takes a random sign, 2,000 times (Fisher's randomisation test). Variation over seeds is the bootstrap's.

    Args:
        difference: (S, N).
    """
    by_row = difference.double().mean(dim=0)
    by_row = by_row[by_row.abs() > ROUNDING]
    if len(by_row) == 0:
        return 1.0
    if float(by_row.abs().max() - by_row.abs().min()) < ROUNDING:
        return _binomial_p_value(len(by_row), int((by_row > 0).sum()))
    generator = torch.Generator().manual_seed(0)
    observed, extreme = float(by_row.sum().abs()), 1
    for _ in range(FLIPS):
        signs = torch.randint(2, (len(by_row),), generator=generator) * 2 - 1
        extreme += float((by_row * signs).sum().abs()) >= observed - ROUNDING
    return extreme / (FLIPS + 1)


def _binomial_p_value(trials: int, successes: int) -> float:
    """Two-sided, for a fair coin."""
    rarer = min(successes, trials - successes)
    log_tail = [math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) - trials * math.log(2) for k in range(rarer + 1)]
    return min(1.0, 2 * sum(map(math.exp, log_tail)))


def frontier(points: tuple[Point, ...]) -> list[int]:
    """Which points validation data choose at some budget: by ascending compute, each of a higher score than all before it.

    Args:
        points: as measured on validation data.

    Returns:
        Their numbers.
    """
    chosen: list[int] = []
    for n in sorted(range(len(points)), key=lambda n: (points[n].mean_compute, -points[n].score)):
        if not chosen or points[n].score > points[chosen[-1]].score:
            chosen.append(n)
    return chosen


def best_within(points: tuple[Point, ...], compute: float) -> int | None:
    """The point of highest validation score whose validation compute is at most `compute`, the cheaper of equals; None if there is none."""
    within = [n for n in frontier(points) if points[n].mean_compute <= compute + ROUNDING]
    return within[-1] if within else None


def area_by_row(validation: tuple[Point, ...], test: tuple[Point, ...], majority_score: Tensor) -> Tensor:
    """The area under a score-compute curve between 0.2 and 1, over 0.8: the mean score over all budgets there.

    At a budget b the curve is a step: the test score of the point that validation data choose, the one of highest score
    whose validation compute is at most b. Where no point is so cheap it is the score of answering with the most
    frequent class. So a curve never gains from test data, and never falls on validation data as the budget grows.

    Args:
        validation, test: the same points.
        majority_score: (N,), the score of each test row where nothing is run.

    Returns:
        (N,), whose mean is the area.
    """
    low, high = AREA_RANGE
    chosen = frontier(validation)
    starts = [min(max(validation[n].mean_compute, low), high) for n in chosen]
    area = (starts[0] - low) * majority_score.double()
    for n, start, end in zip(chosen, starts, [*starts[1:], high], strict=True):
        area += (end - start) * test[n].correct.double()
    return area / (high - low)


def route_entropy(route: Tensor) -> float:
    """Entropy in bits of how often each route occurs among (N, L)."""
    counts = route.unique(dim=0, return_counts=True)[1].double()
    share = counts / counts.sum()
    return max(float(-(share * share.log2()).sum()), 0.0)
