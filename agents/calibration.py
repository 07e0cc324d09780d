"""After training: which price leads to which compute on validation data, and at which price to run."""

import math

from agents.learner import Learner
from agents.prices import BudgetPrice, PriceRange
from rl_skip.dial import PricePoint, PriceTable
from rl_skip.evaluation import evaluate

__all__ = ["calibrate", "price_grid"]

GRID_POINTS = 17
TOLERANCE = 0.005


def price_grid(low: float, high: float) -> list[float]:
    """The prices that are measured for the table, evenly spaced in their logarithm from `low` to `high`."""
    return [low * (high / low) ** (k / (GRID_POINTS - 1)) for k in range(GRID_POINTS)]


def calibrate(learner: Learner, prices: PriceRange | BudgetPrice) -> tuple[PriceTable, float]:
    """The price table from validation data, and the operating price.

    The operating price is the fixed price where there is one; with a budget, the most accurate of those whose validation
    compute is within it, the most frugal where none is; else that of the smallest compute whose validation accuracy is within half a point of the
    best in the table.
    """
    low, high = prices.range
    if low == high:
        return PriceTable(), low
    measured = []
    for price in price_grid(low, high):
        found = evaluate(learner.stack, learner.policy, learner.task, learner.validation, price=price)
        measured.append(PricePoint(price, found.compute, found.accuracy))
    table = PriceTable.monotone(measured)
    if isinstance(prices, BudgetPrice):
        within = [point for point in measured if point.compute <= prices.budget]
        best = max(within, key=lambda point: (point.accuracy, -point.compute)) if within else min(measured, key=lambda point: point.compute)
        return table, best.price
    enough = table.points[-1].accuracy - TOLERANCE if table.points else math.inf
    return table, next(point.price for point in table.points if point.accuracy >= enough)
