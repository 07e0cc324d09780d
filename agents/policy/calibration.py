"""After training: which price leads to which compute on a learner's validation data, and at which price to run."""

from agents.run.learner import Learner
from rl_skip.core.dial import PriceTable
from rl_skip.learning.calibration import Measure
from rl_skip.learning.calibration import calibrate as calibrate_policy
from rl_skip.learning.prices import BudgetPrice, PriceRange
from rl_skip.measure.every_price import at_any_price

__all__ = ["calibrate"]


def calibrate(learner: Learner, prices: PriceRange | BudgetPrice) -> tuple[PriceTable, float]:
    """The price table of a learner's policy from its validation data, and the operating price."""

    def measure(rows: int | None) -> Measure:
        examples = learner.validation if rows is None else learner.validation.some(rows)
        return at_any_price(learner.stack, learner.policy, learner.task, examples)

    return calibrate_policy(learner.policy, prices, measure, learner.task.score_name)
