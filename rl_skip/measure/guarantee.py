"""The smallest compute whose loss of score against full depth is at most so much, with confidence or in expectation."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from rl_skip.core.dial import CONFIDENCE, Guarantee, GuaranteeKind, PriceTable, checked_tolerance, price_grid
from rl_skip.core.errors import UserError
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, Task
from rl_skip.measure.evaluation import evaluate
from rl_skip.measure.every_price import at_any_price

__all__ = ["PairedTest", "RiskBound", "guarantee", "smallest_guaranteed", "tango_z"]

CRITICAL = NormalDist().inv_cdf(CONFIDENCE)
"""1.645: a paired test is passed where z is at most minus this."""
STEPS = 10_000
"""Tolerances that are named in a refusal are rounded up to a hundredth of a point."""


@dataclass(frozen=True)
class PairedTest:
    """What a price loses against full depth, row by row on the same rows, each right or wrong."""

    tolerance: float
    """The largest loss of accuracy allowed, as a share of the rows: 0.01 is one point."""
    rows: int
    losses: int
    """Rows that are right at full depth and wrong at the price."""
    gains: int
    """Rows that are wrong at full depth and right at the price."""

    @property
    def holds(self) -> bool:
        """Whether the loss of accuracy is at most the tolerance, with 95% confidence."""
        return self._holds_at(self.tolerance)

    @property
    def rows_needed(self) -> int | None:
        """How many rows would do if they lost and gained at the same rates; None where the loss seen is not below the tolerance.

        At equal rates z grows as √rows. Without any loss or gain these are CRITICAL² · (1 − tolerance) / tolerance rows.
        """
        z = tango_z(self.rows, self.losses, self.gains, self.tolerance)
        return math.ceil(self.rows * (CRITICAL / z) ** 2) if z < 0 else None

    @property
    def least_tolerance(self) -> float:
        """The smallest tolerance that would have been met, rounded up to a hundredth of a point."""
        return next((k / STEPS for k in range(1, STEPS) if self._holds_at(k / STEPS)), 1.0)

    @property
    def seen(self) -> str:
        """What the rows showed, in words."""
        return f"{self.losses} of {self.rows} validation rows are lost and {self.gains} gained"

    def _holds_at(self, tolerance: float) -> bool:
        return tango_z(self.rows, self.losses, self.gains, tolerance) <= -CRITICAL


@dataclass(frozen=True)
class RiskBound:
    """Conformal risk control of the score that prices lose, from the lowest up to one, on n rows.

    A row's loss is max(full − policy, 0), in [0, 1], at the price where it loses most: it never falls as the price rises, and is
    0 at full depth. A price is allowed where n/(n + 1) · mean loss + 1/(n + 1) ≤ tolerance; the dearest that is loses at most the
    tolerance in expectation, for any n (Angelopoulos et al. 2024, "Conformal Risk Control", Theorem 1).
    """

    tolerance: float
    """The largest loss of score allowed, in expectation."""
    rows: int
    lost: float
    """The losses of all rows, summed."""

    @property
    def risk(self) -> float:
        """What is compared with the tolerance: the mean loss if one more row lost everything."""
        return (self.lost + 1) / (self.rows + 1)

    @property
    def holds(self) -> bool:
        """Whether the prices up to this one are allowed."""
        return self.risk <= self.tolerance

    @property
    def rows_needed(self) -> int | None:
        """How many rows would do if they lost at the same rate; None where they lose as much as the tolerance, or more."""
        rate = self.lost / self.rows
        return math.ceil((1 - self.tolerance) / (self.tolerance - rate)) if rate < self.tolerance else None

    @property
    def least_tolerance(self) -> float:
        """The smallest tolerance that would have been met, rounded up to a hundredth of a point."""
        return next((k / STEPS for k in range(1, STEPS) if self.risk <= k / STEPS), 1.0)

    @property
    def seen(self) -> str:
        """What the rows showed, in words."""
        return f"{self.lost:g} of {self.rows} validation rows are lost"


def tango_z(rows: int, losses: int, gains: int, tolerance: float) -> float:
    """Tango's score statistic for the hypothesis that the loss of accuracy is `tolerance`; far below 0 speaks for a smaller loss.

    The variance of losses − gains is taken where the likelihood is highest among all chances of losing and gaining that
    differ by just the tolerance, so that it is not 0 when nothing was lost or gained (Tango 1998, "Equivalence test and
    confidence interval for the difference in proportions for the paired-sample design", Statistics in Medicine 17).

    Args:
        rows: n, at least 1.
        losses: b, rows right at full depth alone.
        gains: c, rows wrong at full depth alone.
        tolerance: Δ, in (0, 1).
    """
    n, b, c, delta = rows, losses, gains, tolerance
    A, B, C = 2 * n, (2 * n - b + c) * delta - (b + c), -c * delta * (1 - delta)
    q = (math.sqrt(B * B - 4 * A * C) - B) / (2 * A)  # the likeliest chance of a gain, where that of a loss is q + Δ
    return (b - c - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta)))


def smallest_guaranteed(
    prices: Iterable[float],
    measured_at: Callable[[float], tuple[Tensor, Tensor]],
    full_depth: Tensor,
    tolerance: float,
    kind: GuaranteeKind = "confidence",
) -> Guarantee:
    """The price of the smallest compute among those that pass before the first that fails.

    Prices are tested in an order that does not depend on the rows. With confidence each is tested at 5%, and as testing ends with
    the first failure, the chance that any was passed in error is 5% too (Maurer, Hothorn & Lehmacher 1995; fixed-sequence
    testing). In expectation the bound of the last that passes is a bound for all before it.

    Args:
        prices: at least one, from the largest compute down.
        measured_at: price → (N,) the score of each row, and (N,) its compute.
        full_depth: (N,), the score of each row at full depth. With confidence, scores are 0 or 1; in expectation in [0, 1].
        tolerance: the largest loss of score allowed, in (0, 1).
        kind: "confidence" or "expectation".

    Raises:
        UserError: if the tolerance is not in (0, 1), or the first price fails; with what was measured and how many rows would do.
    """
    checked_tolerance(tolerance)
    passed: list[tuple[float, float]] = []  # compute, price
    full, rows = full_depth.double(), len(full_depth)
    most = torch.zeros_like(full)  # (N,), what each row lost at the price where it lost most
    for price in prices:
        score, compute = measured_at(price)
        difference = full - score.double()  # (N,)
        most = torch.maximum(most, difference)
        bound = RiskBound(tolerance, rows, float(most.sum()))
        paired = PairedTest(tolerance, rows, int((difference > 0).sum()), int((difference < 0).sum()))
        tested = paired if kind == "confidence" else bound
        if not tested.holds:
            if not passed:
                raise UserError(_refusal(price, tested, bound))
            break
        passed.append((float(compute.double().mean()), price))
    return Guarantee(kind, tolerance, min(passed)[1], rows)


def guarantee(
    stack: LayerStack,
    policy: JumpPolicy,
    task: Task,
    validation: Examples,
    table: PriceTable,
    price: float,
    tolerance: float,
    kind: GuaranteeKind = "confidence",
    batch_size: int = 256,
) -> Guarantee:
    """The smallest compute whose loss of score against full depth is at most `tolerance`, and at which price it is.

    The candidates are the grid of prices of the policy's range, not the points of its table, which were picked on the same rows.

    Args:
        validation: rows that neither the network nor the policy was trained on, on the stack's device.
        table: empty where the policy knows one price, which is then the one candidate.
        price: that one.
        tolerance: 0.01 for one point.
        kind: "confidence", 95% over the draw of the validation rows, where rows are right or wrong; "expectation", on average
            over their draw, for any score in [0, 1].

    Raises:
        UserError: if not even the lowest price passes, the tolerance is not in (0, 1), or the scores are not what the kind takes.
    """

    measured = at_any_price(stack, policy, task, validation, batch_size=batch_size)

    def measured_at(price: float) -> tuple[Tensor, Tensor]:
        evaluation = measured(price)
        _check_scores(evaluation.correct, task, kind)
        return evaluation.correct, evaluation.compute_by_row

    full_depth = evaluate(stack, torch.ones(stack.depth, dtype=torch.bool), task, validation, batch_size=batch_size).correct
    _check_scores(full_depth, task, kind)
    layout = policy.rules.layout
    prices = price_grid(layout.price_low, layout.price_high) if table.points else [price]
    return smallest_guaranteed(prices, measured_at, full_depth, tolerance, kind)


def _check_scores(score: Tensor, task: Task, kind: GuaranteeKind) -> None:
    if not ((score >= 0) & (score <= 1)).all():
        raise UserError(f"a guarantee bounds a score in [0, 1], and that of the task {task.name!r} leaves it; set --budget instead")
    if kind == "confidence" and not ((score == 0) | (score == 1)).all():
        raise UserError(
            f"with confidence, a guarantee counts rows that are right, and those of the task {task.name!r} have scores in between; "
            "set --guarantee-kind expectation, or --budget instead"
        )


def _refusal(price: float, failed: PairedTest | RiskBound, bound: RiskBound) -> str:
    if failed.rows_needed is None:
        wanted = "no smaller a loss, so more rows would not help: set"
    else:
        wanted = f"at these rates it takes about {failed.rows_needed} rows; take more validation data, or set"
    if failed is not bound and bound.holds:
        wanted += " --guarantee-kind expectation, which these rows allow, or"
    start = f"the policy cannot guarantee a loss of at most {failed.tolerance:g} against full depth"
    return f"{start}: at price {price:.4g}, the lowest, {failed.seen}, {wanted} --guarantee to {failed.least_tolerance:g} or more"
