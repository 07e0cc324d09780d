"""After training: which price leads to which compute on validation data, and at which price to run."""

import math
from collections.abc import Callable

import torch

from agents.learner import Learner
from agents.prices import BudgetPrice, PriceRange
from rl_skip.dial import PricePoint, PriceTable, price_grid
from rl_skip.evaluation import evaluate

__all__ = ["SETTLING_ROWS", "calibrate", "leaning_within"]

TOLERANCE = 0.005
SLACK = 0.005
LEAN = 64.0
"""More than the logits of any two jumps differ by."""
HALVINGS = 20
SETTLING_ROWS = 2000


def calibrate(learner: Learner, prices: PriceRange | BudgetPrice) -> tuple[PriceTable, float]:
    """The price table from validation data, and the operating price.

    The operating price is the fixed price where there is one; with a budget, the price that training ended at, the policy being
    settled on the budget first; else that of the smallest compute whose validation accuracy is within half a point of the
    best in the table.
    """
    low, high = prices.range
    if low == high:
        return PriceTable(), low
    if isinstance(prices, BudgetPrice):
        settle(learner, prices.typical, prices.budget)
    measured = []
    for price in price_grid(low, high):
        found = evaluate(learner.stack, learner.policy, learner.task, learner.validation, price=price)
        measured.append(PricePoint(price, found.compute, found.accuracy))
    table = PriceTable.monotone(measured)
    if isinstance(prices, BudgetPrice):
        return table, prices.typical
    enough = table.points[-1].accuracy - TOLERANCE if table.points else math.inf
    return table, next(point.price for point in table.points if point.accuracy >= enough)


@torch.no_grad()
def settle(learner: Learner, price: float, budget: float) -> None:
    """Leans the policy towards longer or shorter jumps until its greedy routes spend the budget on validation data.

    Training steers the compute of sampled routes. The likeliest routes spend more or less, the more so the less a
    policy cares: a leaning that is the same for every row, a · jump on the logits, takes up the difference, and leaves it
    to the policy which rows spend more than others. It becomes part of the last layer's bias.
    """
    bias = learner.policy.fc_out.bias
    trained, jumps = bias.clone(), torch.arange(len(bias), device=bias.device, dtype=bias.dtype)
    validation = learner.validation.some(SETTLING_ROWS)

    def compute(lean: float) -> float:
        bias.copy_(trained + lean * jumps)
        return evaluate(learner.stack, learner.policy, learner.task, validation, price=price).compute

    bias.copy_(trained + leaning_within(compute, budget) * jumps)


def leaning_within(compute: Callable[[float], float], budget: float) -> float:
    """The leaning whose compute is the largest within the budget, of those that are tried by halving an interval; the most frugal where none is.

    Args:
        compute: leaning → mean compute. A higher leaning skips more.
    """
    low, high = -LEAN, LEAN
    tried: dict[float, float] = {}
    for _ in range(HALVINGS):
        lean = (low + high) / 2
        tried[lean] = compute(lean)
        low, high = (low, lean) if tried[lean] <= budget + SLACK else (lean, high)
    tried[LEAN] = compute(LEAN)
    within = {lean: spent for lean, spent in tried.items() if spent <= budget + SLACK}
    return max(within, key=lambda lean: (within[lean], -abs(lean))) if within else min(tried, key=lambda lean: tried[lean])
