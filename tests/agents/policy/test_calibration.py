"""Calibration of a policy whose routes depend on the price alone, in a known way."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from agents.options.config import PolicyConfig, PriceConfig
from agents.policy.calibration import calibrate, refuse_small_budget
from agents.policy.reinforce import Reinforce
from rl_skip.core.dial import PricePoint, PriceTable
from rl_skip.core.errors import UserError
from rl_skip.core.features import Feature, View
from rl_skip.core.policy import ILLEGAL, JumpPolicy, JumpRules, ObservationLayout
from rl_skip.core.task import Examples, Task
from rl_skip.learning.prices import BudgetPrice, FixedPrice, PriceRange
from rl_skip.measure.evaluation import evaluate
from rl_skip.nets.module_stack import ModuleStack

DEPTH, ROWS = 6, 400
LOW, HIGH = 0.01, 1.0
GRID = [LOW * (HIGH / LOW) ** (k / 16) for k in range(17)]


class Count(nn.Module):
    """A layer that counts that it ran."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + 1.0


class PricedPolicy(JumpPolicy):
    """Jumps once, after layer 0, the further the dearer: over one more layer with every quarter of the range."""

    def forward(self, observation: Tensor) -> Tensor:
        layer = self.rules.layout.layer_of(observation)
        jump = ((observation[:, -1] + 1) / 2 * 4 + 1e-4).floor().long() * (layer == 0)
        return nn.functional.one_hot(jump, self.rules.max_jump + 1).float().masked_fill(~self.legal[layer], ILLEGAL)


def _layers_run(price: float) -> int:
    quarter = math.floor(4 * math.log(price / LOW) / math.log(HIGH / LOW) + 1e-4)
    return DEPTH - min(max(quarter, 0), 4)


class CountTask(Task):
    """So many rows are right as `right` says for the number of layers that ran."""

    right = {6: 380, 5: 380, 4: 379, 3: 377, 2: 320}

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        ran = outputs[:, 0].round().long()
        return (labels < torch.tensor([self.right.get(count, 0) for count in range(DEPTH + 1)])[ran]).float()


def _learner() -> SimpleNamespace:
    """Of a learner, what calibration needs."""
    stack = ModuleStack(nn.Identity(), [Count() for _ in range(DEPTH)], nn.Identity(), width=1, layer_flops=[1e6] * DEPTH)
    policy = PricedPolicy(JumpRules.reaching(ObservationLayout(1, DEPTH, LOW, HIGH)))
    validation = Examples(torch.zeros(ROWS, 1), torch.arange(ROWS))
    task = CountTask("count", ("a",), lambda _split: validation, nn.Identity, 1)
    return SimpleNamespace(stack=stack, policy=policy, task=task, validation=validation)


def _compute(learner: SimpleNamespace, price: float) -> float:
    """The layers that ran, and a decision after layer 0 and after each next layer but the last two."""
    ran = _layers_run(price)
    following = [0, *range(DEPTH - ran + 1, DEPTH)]
    return (ran * 1e6 + learner.policy.rules.decision_flops * sum(i < DEPTH - 2 for i in following)) / (DEPTH * 1e6)


def test_a_fixed_price_is_kept_and_needs_no_table():
    assert calibrate(_learner(), FixedPrice(0.3)) == (PriceTable(), 0.3)


def test_the_table_holds_what_was_measured_less_what_is_dominated():
    learner = _learner()
    table, _ = calibrate(learner, PriceRange(LOW, HIGH))
    kept = (5, 4, 3, 2)  # six layers are no better than five
    dearest = {ran: max(price for price in GRID if _layers_run(price) == ran) for ran in kept}
    expected = [(dearest[ran], _compute(learner, dearest[ran]), CountTask.right[ran] / ROWS) for ran in sorted(kept)]
    assert [tuple(point) for point in table.points] == [pytest.approx(point, rel=1e-5) for point in expected]
    assert all(isinstance(point, PricePoint) for point in table.points)


def test_of_a_range_the_dearest_price_within_half_a_point_of_the_best_is_run_at():
    """380 of 400 rows are the best; 379 is a quarter of a point less, 377 three quarters."""
    _, price = calibrate(_learner(), PriceRange(LOW, HIGH))
    assert _layers_run(price) == 4
    assert price == pytest.approx(max(price for price in GRID if _layers_run(price) == 4))


def _budget(budget: float) -> BudgetPrice:
    return BudgetPrice(budget, start=0.18, integral=0.05, proportional=0.5, penalty=0.2)


class RowMargin(Feature):
    """The state as it is, which is the row's margin."""

    name, low, high = "row_margin", -2.0, 2.0

    def read(self, view: View) -> Tensor:
        return view.hidden


class Wavering(JumpPolicy):
    """Likes each jump better than the next shorter one by the row's own margin, from −2 to 2."""

    def forward(self, observation: Tensor) -> Tensor:
        layer = self.rules.layout.layer_of(observation)
        jumps = torch.arange(self.rules.max_jump + 1)
        return (observation[:, :1] * jumps + self.fc_out.bias).masked_fill(~self.legal[layer], ILLEGAL)


def _wavering() -> SimpleNamespace:
    """Rows in the order of their margins; as trained, one half runs two layers, the other all."""
    validation = Examples(torch.linspace(-2, 2, ROWS).unsqueeze(1), torch.zeros(ROWS, dtype=torch.long))
    stack = ModuleStack(nn.Identity(), [nn.Identity() for _ in range(DEPTH)], nn.Identity(), width=1, layer_flops=[1e6] * DEPTH)
    policy = Wavering(JumpRules.reaching(ObservationLayout(1, DEPTH, LOW, HIGH, (RowMargin(),))))
    nn.init.zeros_(policy.fc_out.bias)
    task = Task("margins", ("a",), lambda _split: validation, nn.Identity, 1)
    return SimpleNamespace(stack=stack, policy=policy, task=task, validation=validation)


@pytest.mark.parametrize("budget", [0.4, 0.5, 0.75, 0.95])
def test_a_budget_is_spent_by_the_rows_that_care_for_it_most(budget):
    """A row runs all layers or two: with a logit bias, those whose margin is above it jump."""
    learner = _wavering()
    _, price = calibrate(learner, _budget(budget))
    found = evaluate(learner.stack, learner.policy, learner.task, learner.validation, price=price)
    assert budget - 0.01 < found.compute <= budget + 0.006
    ran = found.route.sum(dim=1)
    assert set(ran.tolist()) == {2, DEPTH}
    assert sorted(ran.tolist(), reverse=True) == ran.tolist()  # the margins ascend
    assert price == pytest.approx(_budget(budget).validation_price)


@pytest.mark.parametrize("exits", [False, True])
def test_a_budget_below_what_the_cheapest_route_costs_is_refused_with_that(tiny_learner, exits):
    pricing = PriceConfig(budget=0.01)
    learner = tiny_learner(pricing=pricing, policy=PolicyConfig(max_jump=1, allow_exit=exits))
    flops, routes = learner.stack.layer_costs, torch.tensor(list(itertools.product([0, 1], repeat=4))).bool()
    decision = learner.rules.decision_flops / float(learner.stack.layer_flops.sum())
    cheapest = min(
        float(route.double() @ flops.double()) + decision * sum(learner.rules.choices[i] for i in range(4) if route[i])
        for route in routes
        if route[0] and (exits or route[3]) and not any(not route[i] and not route[i + 1] for i in range(3))
    )
    with pytest.raises(UserError, match="a budget of 0.01 is below the smallest compute of this policy") as refused:
        Reinforce(learner).try_out()
    named = float(str(refused.value).split("policy, ")[1].split(";")[0])
    assert named == pytest.approx(cheapest, abs=2e-4) and named >= cheapest - 1e-7
    refuse_small_budget(learner, named)


def test_a_budget_below_all_gives_the_most_frugal_policy():
    learner = _wavering()
    _, price = calibrate(learner, _budget(0.2))
    assert evaluate(learner.stack, learner.policy, learner.task, learner.validation, price=price).route.sum(dim=1).tolist() == [2] * ROWS
