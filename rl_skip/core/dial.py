"""The budget dial: which price led to which compute, measured on validation data, and back; and what is guaranteed of a price."""

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from rl_skip.core.errors import UserError, as_number

__all__ = [
    "CONFIDENCE",
    "GRID_POINTS",
    "LARGEST_BIAS",
    "Dial",
    "Guarantee",
    "GuaranteeKind",
    "PricePoint",
    "PriceTable",
    "checked_price",
    "checked_tolerance",
    "price_grid",
    "prices_below",
    "refuse_below",
]

GRID_POINTS = 17
POINTS_BELOW = 33
LARGEST_BIAS = 64.0
"""Above the difference of any two legal jumps' logits."""
CONFIDENCE = 0.95
"""Of the guarantee that has one."""
GuaranteeKind = Literal["confidence", "expectation"]


def checked_price(price: float) -> float:
    """The price itself.

    Raises:
        UserError: unless it is finite and at least 0.
    """
    number = as_number(price)
    if not (math.isfinite(number) and number >= 0):
        raise UserError(f"a price is a finite number of at least 0, got {price}; set --price, or price=")
    return number


def checked_tolerance(tolerance: float) -> float:
    """The tolerance of a guarantee itself.

    Raises:
        UserError: unless it lies in (0, 1).
    """
    if not 0 < tolerance < 1:
        raise UserError(f"a guarantee is a loss of score in (0, 1), 0.01 being one point, got {tolerance}; set --guarantee")
    return tolerance


@dataclass(frozen=True)
class Guarantee:
    """What is promised of a price: that at most so much score is lost against full depth.

    Example:
        >>> Guarantee("expectation", 0.01, price=0.1, rows=360).in_words("accuracy")
        'at most 0.01 of accuracy is lost against full depth, on average over the draw of 360 validation rows and of the row that is met'

    Raises:
        UserError: if the tolerance is not in (0, 1).
    """

    kind: GuaranteeKind
    """"confidence": all but one draw of validation rows in twenty lead to a price that keeps it; "expectation": they do on average."""
    tolerance: float
    """The largest loss allowed: 0.01 is one point."""
    price: float
    """Of which it is promised."""
    rows: int
    """Validation rows that it rests on."""

    def __post_init__(self) -> None:
        checked_tolerance(self.tolerance)

    def in_words(self, score_name: str) -> str:
        """One clause, for reports."""
        drawn = f"the draw of {self.rows} validation rows"
        how = f"with {CONFIDENCE:.0%} confidence over {drawn}" if self.kind == "confidence" else f"on average over {drawn} and of the row that is met"
        return f"at most {self.tolerance:g} of {score_name} is lost against full depth, {how}"


def price_grid(low: float, high: float) -> list[float]:
    """The prices at which a policy for many prices is measured, evenly spaced in their logarithm from `low` to `high`."""
    return [low * (high / low) ** (k / (GRID_POINTS - 1)) for k in range(GRID_POINTS)]


def prices_below(low: float, points: int = POINTS_BELOW) -> list[float]:
    """Prices below the lowest that a policy was trained for, at which it must be ever surer to skip; see `JumpPolicy.likeliest`."""
    first, last = 0.125, LARGEST_BIAS  # of the bias that they mean
    return [low * math.exp(-first * (last / first) ** (k / (points - 1))) for k in range(points)]


def refuse_below(budget: float, smallest: float) -> None:
    """Raises `UserError` for a budget below the smallest compute, which it names rounded up, so that it can be taken as it stands."""
    if budget < smallest and smallest > 1:
        raise UserError(f"this policy spends {smallest:.4f} at the least, more than running every layer, so no budget can be kept: run every layer")
    if budget < smallest:
        named = math.ceil(smallest * 10_000) / 10_000
        raise UserError(f"a budget of {budget:g} is below the smallest compute of this policy, {named:.4f}; raise --budget, or budget=, to that")


class PricePoint(NamedTuple):
    """An operating point: what a price leads to."""

    price: float
    compute: float
    """Mean compute on validation data."""
    score: float
    """Mean score on validation data, 0 to 1."""


@dataclass(frozen=True)
class PriceTable:
    """Points of ascending compute, descending price and score that never falls; between them the logarithm of the price is a line in compute.

    Raises:
        ValueError: if the points do not ascend so; `monotone` makes a table of any that were measured.

    Example:
        >>> table = PriceTable.monotone([(0.01, 0.8, 0.98), (0.1, 0.4, 0.97), (1.0, 0.2, 0.90), (0.5, 0.5, 0.95)])
        >>> [point.compute for point in table.points]
        [0.2, 0.4, 0.8]
        >>> round(table.price_for(0.3), 3)
        0.316
    """

    points: tuple[PricePoint, ...] = ()
    score_name: str = "accuracy"
    """What reports call the score, as `Task.score_name`."""

    def __post_init__(self) -> None:
        for point in self.points:
            if not (all(math.isfinite(value) for value in point) and point.price >= 0 and point.compute > 0 and 0 <= point.score <= 1):
                raise ValueError(f"not a price of at least 0, a compute above 0 and a score in [0, 1]: {tuple(point)}")
        for lower, upper in pairwise(self.points):
            if not (lower.compute < upper.compute and lower.price > upper.price and lower.score <= upper.score):
                raise ValueError(f"compute must ascend, price descend and score not fall, got {tuple(upper)} after {tuple(lower)}")

    @classmethod
    def monotone(cls, points: Iterable[tuple[float, float, float]], score_name: str = "accuracy") -> "PriceTable":
        """The table of measured (price, compute, score), without the points that another one dominates.

        A point goes if another has as high a score for no more compute. Of what is left, the most points whose price falls
        as compute rises stay: noise can make a higher price run more layers, and the table must be monotone.
        """
        best: list[PricePoint] = []
        for point in sorted((PricePoint(*point) for point in points), key=lambda point: (point.compute, -point.score, -point.price)):
            if not best or point.score > best[-1].score:
                best.append(point)
        chains: list[tuple[PricePoint, ...]] = []  # for each point, the longest chain of falling prices that ends in it
        for point in best:
            chains.append((*max((chain for chain in chains if chain[-1].price > point.price), key=len, default=()), point))
        return cls(max(chains, key=len, default=()), score_name)

    def price_for(self, budget: float) -> float:
        """The cheapest price whose mean compute is at most `budget`.

        Raises:
            UserError: if the budget does not lie in (0, 1], or up to the table's largest compute where that is more, no point costs so
                little, or the table is empty.
        """
        asked, budget = budget, as_number(budget)
        if not 0 < budget <= max([1.0, *(point.compute for point in self.points)]):
            raise UserError(f"a budget is a mean compute in (0, 1], got {asked}; set --budget, or budget=")
        if not self.points:
            why = "it was trained for one price, or not calibrated"
            raise UserError(f"this policy has no table of budgets, {why}: set --price, or price=, or call handle.calibrate(loader)")
        refuse_below(budget, self.points[0].compute)
        above = bisect.bisect_right([point.compute for point in self.points], budget)
        if above == len(self.points):
            return self.points[-1].price
        cheaper, dearer = self.points[above - 1], self.points[above]
        share = (budget - cheaper.compute) / (dearer.compute - cheaper.compute)
        if dearer.price == 0:
            return cheaper.price * (1 - share)
        return math.exp((1 - share) * math.log(cheaper.price) + share * math.log(dearer.price))

    def compute_for(self, price: float) -> float | None:
        """The mean compute to expect at `price`, the inverse of `price_for`; beyond the ends that of the end, None from an empty table."""
        if not self.points:
            return None
        above = next((n for n, point in enumerate(self.points) if point.price <= price), len(self.points))
        if above in (0, len(self.points)):
            return self.points[min(above, len(self.points) - 1)].compute
        cheaper, dearer = self.points[above - 1], self.points[above]
        share = 1 - price / cheaper.price if dearer.price == 0 else math.log(cheaper.price / price) / math.log(cheaper.price / dearer.price)
        return cheaper.compute + share * (dearer.compute - cheaper.compute)


class Dial:
    """Mixin of what runs a policy: its price, and the budget that belongs to it."""

    table: PriceTable
    _price: float

    @property
    def price(self) -> float:
        """The price λ that the policy sees, in score per unit of relative compute. Higher skips more; below the lowest that it was trained for it
        must be ever surer to skip. At 0 it does as at the lowest."""
        return self._price

    @price.setter
    def price(self, price: float) -> None:
        self._price = checked_price(price)

    @property
    def budget(self) -> float | None:
        """The mean compute that the price led to on validation data, each row deciding after every layer; None without a table. Set it, and the
        price follows.

        What it gives can always be set again; None leaves the price as it is. Setting raises `UserError` for a budget outside (0, 1] or below
        the smallest compute of the table.
        """
        return self.table.compute_for(self.price)

    @budget.setter
    def budget(self, budget: float | None) -> None:
        if budget is not None:
            self.price = self.table.price_for(budget)
