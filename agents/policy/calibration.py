"""After training: which price leads to which compute on validation data, and at which price to run."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from agents.policy.prices import BudgetPrice, PriceRange
from agents.run.learner import Learner
from rl_skip.core.batches import deployed
from rl_skip.core.dial import GRID_POINTS, PricePoint, PriceTable, price_grid, refuse_below
from rl_skip.core.forward import routed_forward
from rl_skip.core.policy import JumpPolicy, JumpRules
from rl_skip.measure.every_price import at_any_price, evaluate_prices, leaves_only

__all__ = ["CALIBRATION_ROWS", "calibrate", "calibration_rows", "logit_bias_within", "refuse_small_budget"]

TOLERANCE = 0.005
SLACK = 0.005
LARGEST_BIAS = 64.0
"""Above the difference of any two jumps' logits."""
HALVINGS = 20
TRIED_ROWS = 64
"""Validation rows on which the cheapest route is run."""
CALIBRATION_ROWS = 2000
"""Validation rows that are run at each halving."""


def calibrate(learner: Learner, prices: PriceRange | BudgetPrice) -> tuple[PriceTable, float]:
    """The price table from validation data, and the operating price.

    The operating price is the fixed price where there is one; with a budget, the price that training ended at, the policy being
    calibrated to the budget first; else that of the smallest compute whose score on validation data is within half a point of the
    best in the table.
    """
    low, high = prices.range
    if low == high:
        return PriceTable(score_name=learner.task.score_name), low
    if isinstance(prices, BudgetPrice):
        calibrate_to_budget(learner, prices.validation_price, prices.budget)
    at_prices = evaluate_prices(learner.stack, learner.policy, learner.task, learner.validation, price_grid(low, high))
    measured = [PricePoint(at.price, at.compute, at.score) for at in at_prices]
    table = PriceTable.monotone(measured, learner.task.score_name)
    if isinstance(prices, BudgetPrice):
        return table, prices.validation_price
    enough = table.points[-1].score - TOLERANCE if table.points else math.inf
    return table, next(point.price for point in table.points if point.score >= enough)


class _Cheapest(JumpPolicy):
    """Takes the jumps of the cheapest route, whatever it sees."""

    jumps: Tensor

    def __init__(self, rules: JumpRules, layer_flops: Tensor) -> None:
        super().__init__(rules)
        depth, decision = rules.layout.depth, rules.decision_flops
        least, jumps = [0.0] * (depth + 1), [0] * depth  # of all layers from i on, where i runs
        for i in reversed(range(depth)):
            legal = rules.legal[i].nonzero().squeeze(1)
            beyond = rules.next_layer(i, legal).tolist()
            following, jumps[i] = min(zip((least[j] for j in beyond), legal.tolist(), strict=True))
            least[i] = float(layer_flops[i]) + decision * rules.choices[i] + following
        self.register_buffer("jumps", torch.tensor(jumps))

    def forward(self, observation: Tensor) -> Tensor:
        chosen: Tensor = self.jumps[self.rules.layout.layer_of(observation)]
        return one_hot(chosen, self.rules.max_jump + 1).float()


def refuse_small_budget(learner: Learner, budget: float) -> None:
    """Raises `UserError` if no route that the policy may take costs as little as the budget, naming what the cheapest costs."""
    rows, cheapest = learner.validation.take(slice(0, TRIED_ROWS)), _Cheapest(learner.rules, learner.stack.layer_flops).to(learner.device)
    with deployed(learner.stack, cheapest):
        smallest = routed_forward(learner.stack, cheapest, rows.inputs, price=1.0).compute.mean()
    if budget + SLACK < smallest:
        refuse_below(budget, float(smallest))


def calibration_rows(learner: Learner, budget: bool) -> int:
    """About how many rows `calibrate` runs through the network: all validation rows once where the policy can but leave, else at each price.

    Args:
        budget: whether it is calibrated to one.
    """
    rows, tried = len(learner.validation), min(len(learner.validation), CALIBRATION_ROWS) if budget else 0
    return rows + tried if leaves_only(learner.stack, learner.policy) else GRID_POINTS * rows + (HALVINGS + 1) * tried


@torch.no_grad()
def calibrate_to_budget(learner: Learner, price: float, budget: float) -> None:
    """Biases the policy's logits towards longer or shorter jumps until its greedy routes spend the budget on validation data.

    Training steers the compute of sampled routes. The likeliest routes spend more or less, the more so the less a
    policy cares. A logit bias of a · jump, the same for every row, removes the difference; the policy still decides which
    rows spend more than others. It becomes part of the last layer's bias.
    """
    bias = learner.policy.fc_out.bias
    trained, jumps = bias.clone(), torch.arange(len(bias), device=bias.device, dtype=bias.dtype)
    measured = at_any_price(learner.stack, learner.policy, learner.task, learner.validation.some(CALIBRATION_ROWS))

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
