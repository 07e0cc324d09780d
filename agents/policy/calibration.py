"""After training: which price leads to which compute on a learner's validation data, and at which price to run."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from agents.run.learner import Learner
from rl_skip.core.batches import deployed
from rl_skip.core.dial import GRID_POINTS, PriceTable, refuse_below
from rl_skip.core.forward import routed_forward
from rl_skip.core.policy import JumpPolicy, JumpRules
from rl_skip.learning.calibration import CALIBRATION_ROWS, HALVINGS, SLACK, Measure
from rl_skip.learning.calibration import calibrate as calibrate_policy
from rl_skip.learning.prices import BudgetPrice, PriceRange
from rl_skip.measure.every_price import at_any_price, leaves_only

__all__ = ["calibrate", "calibration_rows", "refuse_small_budget"]

TRIED_ROWS = 64
"""Validation rows on which the cheapest route is run."""


def calibrate(learner: Learner, prices: PriceRange | BudgetPrice) -> tuple[PriceTable, float]:
    """The price table of a learner's policy from its validation data, and the operating price."""

    def measure(rows: int | None) -> Measure:
        examples = learner.validation if rows is None else learner.validation.some(rows)
        return at_any_price(learner.stack, learner.policy, learner.task, examples)

    once = leaves_only(learner.stack, learner.policy)
    return calibrate_policy(learner.policy, prices, measure, learner.task.score_name, below=once)


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

    def forward(self, observation: Tensor, layer: int | None = None) -> Tensor:
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
