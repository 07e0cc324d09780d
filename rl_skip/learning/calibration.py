"""After training: which price leads to which compute on validation data, and at which price to run."""

import math
from collections.abc import Callable
from typing import Protocol

import torch

from rl_skip.core.dial import LARGEST_BIAS, PricePoint, PriceTable, price_grid, prices_below
from rl_skip.core.policy import JumpPolicy
from rl_skip.learning.prices import BudgetPrice, PriceRange

__all__ = ["CALIBRATION_ROWS", "HALVINGS", "SLACK", "Measure", "Measured", "calibrate", "logit_bias_within"]

TOLERANCE = 0.005
SLACK = 0.005
HALVINGS = 20
CALIBRATION_ROWS = 2000
"""Validation rows that are run at each halving."""


class Measured(Protocol):
    """What a policy does at a price, in means over validation rows."""

    @property
    def price(self) -> float:
        """The price λ, in score per unit of relative compute."""
        ...

    @property
    def compute(self) -> float:
        """Mean compute."""
        ...

    @property
    def score(self) -> float:
        """Mean score, 0 to 1."""
        ...


Measure = Callable[[float], Measured]
"""What tells how the greedy policy, as it is when asked, does at a price."""


def calibrate(
    policy: JumpPolicy, prices: PriceRange | BudgetPrice, measure: Callable[[int | None], Measure], score_name: str, *, below: bool = False
) -> tuple[PriceTable, float]:
    """The price table from validation data, and the operating price.

    The operating price is the fixed price where there is one; with a budget, the price that training ended at, the policy being
    calibrated to the budget first; else that of the smallest compute whose score on validation data is within half a point of the
    best in the table.

    Args:
        policy: with a budget, its last layer's bias changes in place.
        prices: those that it was trained for.
        measure: at most so many validation rows, None for all → what measures the policy on them.
        score_name: what reports call the score.
        below: prices below the range are measured too, see `JumpPolicy.likeliest`.
    """
    low, high = prices.range
    if low == high:
        return PriceTable(score_name=score_name), low
    if isinstance(prices, BudgetPrice):
        _calibrate_to_budget(policy, measure(CALIBRATION_ROWS), prices.validation_price, prices.budget)
    measured = measure(None)
    at_prices = [measured(price) for price in (*price_grid(low, high), *(prices_below(policy.rules.layout.price_low) if below else ()))]
    table = PriceTable.monotone([PricePoint(at.price, at.compute, at.score) for at in at_prices], score_name)
    if isinstance(prices, BudgetPrice):
        return table, prices.validation_price
    enough = table.points[-1].score - TOLERANCE if table.points else math.inf
    return table, next(point.price for point in table.points if point.score >= enough)


@torch.no_grad()
def _calibrate_to_budget(policy: JumpPolicy, measured: Measure, price: float, budget: float) -> None:
    """Biases the policy's logits towards longer or shorter jumps until its greedy routes spend the budget on validation data.

    Training steers the compute of sampled routes. The likeliest routes spend more or less, the more so the less a
    policy cares. A logit bias of a · jump, the same for every row, removes the difference; the policy still decides which
    rows spend more than others. It becomes part of the last layer's bias.
    """
    bias = policy.fc_out.bias
    trained, jumps = bias.clone(), torch.arange(len(bias), device=bias.device, dtype=bias.dtype)

    def compute(logit_bias: float) -> float:
        bias.copy_(trained + logit_bias * jumps)
        return measured(price).compute

    bias.copy_(trained + logit_bias_within(compute, budget) * jumps)


def logit_bias_within(compute: Callable[[float], float], budget: float) -> float:
    """The logit bias of the largest compute within the budget, among those tried by halving an interval; that of the least where none is.

    Args:
        compute: logit bias → mean compute. A higher one skips more.
    """
    low, high = -LARGEST_BIAS, LARGEST_BIAS
    tried: dict[float, float] = {}
    for _ in range(HALVINGS):
        bias = (low + high) / 2
        tried[bias] = compute(bias)
        low, high = (low, bias) if tried[bias] <= budget + SLACK else (bias, high)
    tried[LARGEST_BIAS] = compute(LARGEST_BIAS)
    within = {bias: spent for bias, spent in tried.items() if spent <= budget + SLACK}
    return max(within, key=lambda bias: (within[bias], -abs(bias))) if within else min(tried, key=lambda bias: tried[bias])
