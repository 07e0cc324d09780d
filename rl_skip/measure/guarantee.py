"""The smallest compute whose loss of accuracy against full depth is at most so much, with 95% confidence on validation data."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from rl_skip.core.dial import PriceTable
from rl_skip.core.errors import UserError
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, Task
from rl_skip.measure.evaluation import evaluate

__all__ = ["CONFIDENCE", "Guarantee", "guarantee", "smallest_guaranteed", "tango_z"]

CONFIDENCE = 0.95
CRITICAL = NormalDist().inv_cdf(CONFIDENCE)
"""1.645: the guarantee holds where z is at most minus this."""


@dataclass(frozen=True)
class Guarantee:
    """What a price loses against full depth, row by row on the same rows."""

    price: float
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
        return tango_z(self.rows, self.losses, self.gains, self.tolerance) <= -CRITICAL

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
        steps = range(1, 10_000)
        return next((k / 10_000 for k in steps if tango_z(self.rows, self.losses, self.gains, k / 10_000) <= -CRITICAL), 1.0)


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


def smallest_guaranteed(prices: Iterable[float], correct_at: Callable[[float], Tensor], full_depth: Tensor, tolerance: float) -> Guarantee:
    """The last price that passes before the first that fails.

    The prices are tested in an order fixed beforehand, each at 5%, and testing ends with the first failure, so the chance
    that any price was passed in error is 5% too (Maurer, Hothorn & Lehmacher 1995; fixed-sequence testing).

    Args:
        prices: at least one, from the largest compute down.
        correct_at: price → (N,), 1 where a row is right.
        full_depth: (N,), 1 where a row is right at full depth.
        tolerance: the largest loss of accuracy allowed, in (0, 1).

    Raises:
        UserError: if the tolerance is not in (0, 1), or the first price fails; with what was measured and how many rows would do.
    """
    if not 0 < tolerance < 1:
        raise UserError(f"a guarantee is a loss of accuracy in (0, 1), 0.01 being one point, got {tolerance}; set --guarantee")
    passed: Guarantee | None = None
    full = full_depth.bool()
    for price in prices:
        right = correct_at(price).bool()
        tested = Guarantee(price, tolerance, len(full), int((full & ~right).sum()), int((~full & right).sum()))
        if not tested.holds:
            if passed is None:
                raise UserError(_refusal(tested))
            break
        passed = tested
    assert passed is not None
    return passed


def guarantee(
    stack: LayerStack, policy: JumpPolicy, task: Task, validation: Examples, table: PriceTable, price: float, tolerance: float, batch_size: int = 256
) -> Guarantee:
    """The smallest compute in the table whose loss of accuracy against full depth is at most `tolerance`, with 95% confidence.

    Args:
        validation: rows that the network was not trained on, on the stack's device.
        table: the candidates.
        price: the one candidate where the table is empty.
        tolerance: 0.01 for one point.

    Raises:
        UserError: if not even the largest compute passes, the tolerance is not in (0, 1), or rows are neither right nor wrong.
    """

    def correct_at(price: float) -> Tensor:
        return evaluate(stack, policy, task, validation, price=price, batch_size=batch_size).correct

    everything = torch.ones(stack.depth, dtype=torch.bool)
    full_depth = evaluate(stack, everything, task, validation, batch_size=batch_size).correct
    if not ((full_depth == 0) | (full_depth == 1)).all():
        raise UserError(f"a guarantee counts rows that are right, and those of the task {task.name!r} have scores in between; set --budget instead")
    prices = [point.price for point in reversed(table.points)] or [price]
    return smallest_guaranteed(prices, correct_at, full_depth, tolerance)


def _refusal(failed: Guarantee) -> str:
    rates = f"{failed.losses} of {failed.rows} validation rows are lost and {failed.gains} gained"
    if failed.rows_needed is None:
        wanted = "no smaller a loss, so more rows would not help: set"
    else:
        wanted = f"at these rates it takes about {failed.rows_needed} rows; take more validation data, or set"
    start = f"the policy cannot guarantee a loss of at most {failed.tolerance:g} against full depth"
    return f"{start}: at price {failed.price:.4g}, its largest compute, {rates}, {wanted} --guarantee to {failed.least_tolerance:g} or more"
