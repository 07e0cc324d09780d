"""A policy at many prices: one pass gives what a pass at each price gives."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from rl_skip import Feature, View
from rl_skip.core.dial import price_grid
from rl_skip.core.features import CONFIDENCES
from rl_skip.measure.evaluation import evaluate
from rl_skip.measure.every_price import at_any_price, evaluate_prices
from tests.rl_skip.measure.leaving_stack import DEPTH, make_policy, make_stack, make_task

PRICES = price_grid(0.01, 1.0)


class Expense(Feature):
    """Sees the price a second time."""

    name, low, high = "expense", 0.0, 10.0

    def read(self, view: View) -> Tensor:
        return view.price.unsqueeze(1)


@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize("features", [(), (*CONFIDENCES, Expense())], ids=["confidences", "expense"])
def test_all_prices_are_what_each_is_alone(features: tuple[Feature, ...], jumps: bool) -> None:
    stack, task = make_stack(), make_task()
    policy = make_policy(stack, *features, jumps=jumps)
    examples = task.load("test")
    depths = set()
    for price, at in zip(PRICES, evaluate_prices(stack, policy, task, examples, PRICES), strict=True):
        alone = evaluate(stack, policy, task, examples, price=price)
        assert at.price == price
        for name in ("route", "correct", "prediction"):
            assert torch.equal(getattr(at, name), getattr(alone, name)), name
        torch.testing.assert_close(at.compute_by_row, alone.compute_by_row)
        depths |= set(at.route.sum(dim=1).tolist())
    assert len(depths) > 1  # else nothing was told apart


def test_one_pass_serves_all_prices_and_a_policy_that_changes_in_between() -> None:
    stack, task = make_stack(), make_task()
    policy, examples = make_policy(stack), task.load("test")
    with patch.object(type(stack), "run", autospec=True, side_effect=type(stack).run) as run:
        measured = at_any_price(stack, policy, task, examples)
        before = measured(0.1).compute
        policy.fc_out.bias.data[1:] += 100.0  # now every row leaves at once
        assert measured(0.1).compute < before
        assert run.call_count == DEPTH
    assert measured(0.1).route.sum() == len(examples)
