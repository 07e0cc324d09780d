import itertools
import math
import random

import pytest

from rl_skip.core.dial import LARGEST_BIAS, Dial, PricePoint, PriceTable, checked_price, price_grid, prices_below
from rl_skip.core.errors import UserError

TABLE = PriceTable((PricePoint(1.0, 0.2, 0.9), PricePoint(0.1, 0.4, 0.95), PricePoint(0.01, 0.8, 0.95)))


@pytest.mark.parametrize(("budget", "price"), [(0.2, 1.0), (0.4, 0.1), (0.8, 0.01), (1.0, 0.01), (0.3, 10**-0.5), (0.5, 10**-1.25)])
def test_a_budget_buys_the_cheapest_price_that_keeps_within_it(budget, price):
    assert TABLE.price_for(budget) == pytest.approx(price, rel=1e-9)


@pytest.mark.parametrize("budget", [0.2, 0.27, 0.4, 0.55, 0.8])
def test_compute_is_the_inverse_of_price(budget):
    assert TABLE.compute_for(TABLE.price_for(budget)) == pytest.approx(budget, rel=1e-9)


def test_compute_beyond_the_ends_is_that_of_the_end():
    assert TABLE.compute_for(50.0) == 0.2
    assert TABLE.compute_for(0.0) == 0.8
    assert PriceTable().compute_for(0.1) is None


def test_a_price_of_zero_has_no_logarithm_and_still_interpolates():
    table = PriceTable((PricePoint(0.4, 0.2, 0.9), PricePoint(0.0, 0.6, 0.95)))
    assert table.price_for(0.3) == pytest.approx(0.3)
    assert table.compute_for(0.1) == pytest.approx(0.5)
    assert table.price_for(1.0) == 0.0


@pytest.mark.parametrize("price", [-0.1, math.nan, math.inf, "dear", None])
def test_a_price_is_a_number(price):
    with pytest.raises(UserError, match=f"a price is a finite number of at least 0, got {price}"):
        checked_price(price)


@pytest.mark.parametrize("budget", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_a_budget_outside_its_range_is_refused(budget):
    with pytest.raises(UserError, match=r"in \(0, 1\]"):
        TABLE.price_for(budget)


def test_a_budget_that_is_too_small_is_refused_with_the_smallest():
    with pytest.raises(UserError, match="smallest compute of this policy, 0.2000"):
        TABLE.price_for(0.19)


def test_the_smallest_that_a_refusal_names_is_taken():
    table = PriceTable((PricePoint(0.4, 0.12341, 0.9), PricePoint(0.1, 0.6, 0.95)))
    with pytest.raises(UserError, match="smallest compute of this policy, 0.1235;"):
        table.price_for(0.1)
    assert table.price_for(0.1235) == pytest.approx(0.4, rel=1e-2)


@pytest.mark.parametrize("points", [(), TABLE.points, (PricePoint(0.4, 0.3, 0.9), PricePoint(0.1, 1.02, 0.95)), (PricePoint(0.4, 1.02, 0.9),)])
@pytest.mark.parametrize("price", [0.0, 1e-9, 0.1, 0.2, 0.4, 7.0])
def test_a_budget_and_a_price_can_be_set_to_what_they_are(points, price):
    class Turned(Dial):
        table = PriceTable(tuple(points))

    dial = Turned()
    dial.price = price
    dial.price = dial.price
    budget = dial.budget
    dial.budget = dial.budget
    assert dial.budget == (None if budget is None else pytest.approx(budget)) and (points or dial.price == price)


def test_an_empty_table_refuses_budgets():
    with pytest.raises(UserError, match="no table of budgets.*set --price"):
        PriceTable().price_for(0.5)


def test_monotone_drops_what_another_point_dominates():
    dominated, out_of_order = (0.05, 0.5, 0.93), (2.0, 0.9, 0.96)  # less accurate at more compute; dearer at more compute
    assert PriceTable.monotone([*TABLE.points[1:2], dominated, out_of_order, TABLE.points[0]]).points == TABLE.points[:2]
    assert PriceTable.monotone(TABLE.points).points == TABLE.points[:2], "the same accuracy for more compute is no use"
    assert PriceTable.monotone([]).points == ()


def test_monotone_of_noisy_points_is_a_table_of_undominated_ones():
    generator = random.Random(0)
    for _ in range(200):
        measured = [[0.01, 0.1, 1.0, 3.0], [0.2, 0.4, 0.6, 0.8], [0.8, 0.9, 0.95]]
        points = [tuple(map(generator.choice, measured)) for _ in range(6)]
        kept = PriceTable.monotone(points).points  # its constructor checks the order
        assert kept and set(kept) <= set(points)
        for price, compute, accuracy in kept:
            assert not any(c <= compute and a >= accuracy and (c < compute or a > accuracy) for _, c, a in points), (price, points)


@pytest.mark.parametrize(
    "points",
    [
        [(0.1, 0.4, 0.9), (0.01, 0.3, 0.95)],
        [(0.1, 0.4, 0.9), (0.1, 0.5, 0.95)],
        [(0.1, 0.4, 0.9), (0.01, 0.5, 0.8)],
        [(-0.1, 0.4, 0.9)],
        [(0.1, math.nan, 0.9)],
        [(0.1, 0.4, 1.1)],
    ],
)
def test_points_that_are_no_dial_are_refused(points):
    with pytest.raises(ValueError):
        PriceTable(tuple(PricePoint(*point) for point in points))


def test_measured_prices_are_a_geometric_series_over_the_range():
    prices = price_grid(0.003, 0.3)
    assert len(prices) == 17 and prices[0] == 0.003 and prices[-1] == pytest.approx(0.3)
    assert all(later / sooner == pytest.approx(100 ** (1 / 16)) for sooner, later in itertools.pairwise(prices))


def test_prices_below_a_range_ask_for_ever_more() -> None:
    prices = prices_below(0.5)
    assert prices == sorted(prices, reverse=True) and max(prices) < 0.5
    assert math.log(0.5 / min(prices)) == pytest.approx(LARGEST_BIAS)


def test_where_the_least_is_more_than_every_layer_no_budget_is_asked_for():
    table = PriceTable((PricePoint(3.0, 1.4, 0.9), PricePoint(0.1, 2.6, 0.95)))
    assert table.price_for(1.4) == pytest.approx(3.0)
    with pytest.raises(UserError, match="spends 1.4000 at the least, more than running every layer"):
        table.price_for(0.5)
