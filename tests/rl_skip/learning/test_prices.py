import math
from collections.abc import Callable

import pytest
import torch

from agents.options.config import PriceConfig
from rl_skip.core.errors import UserError
from rl_skip.learning.prices import PRICE_BOUNDS, BudgetPrice, FixedPrice, PriceRange, price_source, seen_range

DRAWS = 20_000
CRITICAL = 1.63 / math.sqrt(DRAWS)
"""Kolmogorov and Smirnov's distance that 1% of samples of this size exceed."""


def _draw(prices: PriceRange | BudgetPrice, rows: int = DRAWS) -> torch.Tensor:
    return prices.draw(rows, torch.Generator().manual_seed(0))


def _distance_to_log_uniform(prices: torch.Tensor, low: float, high: float) -> float:
    expected = (prices.double().sort().values / low).log() / math.log(high / low)
    steps = torch.arange(len(prices) + 1).double() / len(prices)
    return max((expected - steps[:-1]).abs().max().item(), (expected - steps[1:]).abs().max().item())


def test_a_price_range_is_log_uniform():
    drawn = _draw(PriceRange(0.01, 1.0))
    assert _distance_to_log_uniform(drawn, 0.01, 1.0) < CRITICAL
    assert _distance_to_log_uniform(drawn, 0.01, 1.1) > CRITICAL  # the measure tells ranges apart
    assert PriceRange(0.01, 1.0).validation_price == pytest.approx(0.1)


def test_draws_depend_on_the_generator_alone():
    prices = PriceRange(0.01, 1.0)
    generator = torch.Generator().manual_seed(0)
    first, second = prices.draw(4, generator), prices.draw(4, generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, _draw(prices, 4))


def test_a_fixed_price_stays():
    prices = FixedPrice(0.3)
    prices.observe(torch.tensor(5.0))
    assert torch.equal(_draw(prices, 3), torch.full((3,), 0.3))
    assert prices.range == (0.3, 0.3)
    assert prices.validation_price == 0.3


def _budget_price(budget: float) -> BudgetPrice:
    prices = price_source(PriceConfig(budget=budget))
    assert isinstance(prices, BudgetPrice)
    return prices


def test_a_budget_price_is_drawn_around_its_multiplier():
    prices = _budget_price(0.4)
    drawn, (low, high) = _draw(prices), prices.range
    assert low < prices.validation_price < high
    assert low <= drawn.min() < drawn.max() <= high
    assert _distance_to_log_uniform(drawn, low, high) < CRITICAL


@pytest.mark.parametrize(("compute", "rises"), [(0.9, True), (0.1, False)])
def test_a_budget_price_rises_above_the_budget_and_falls_below(compute, rises):
    prices = _budget_price(0.4)
    seen = [prices.validation_price]
    for _ in range(20):
        prices.observe(torch.tensor(compute))
        seen.append(prices.validation_price)
    assert seen == sorted(seen, reverse=not rises)
    assert seen[-1] != seen[0]
    assert (prices.metrics()["budget/violation"] > 0) is rises


def _steer(prices: BudgetPrice, response: Callable[[float], float], updates: int, lag: float = 0.05) -> list[float]:
    """Computes of a policy that moves towards `response(price)` by the share `lag` in each update, observed with noise."""
    generator = torch.Generator().manual_seed(0)
    compute, computes = 0.9, []
    for _ in range(updates):
        compute += lag * (response(prices.validation_price) - compute)
        prices.observe(compute + 0.03 * torch.randn((), generator=generator))
        computes.append(compute)
    return computes


def _falling(steepness: float, middle: float) -> Callable[[float], float]:
    return lambda price: 0.1 + 0.9 / (1 + (price / middle) ** steepness)


@pytest.mark.parametrize("steepness", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("middle", [0.03, 0.3])
@pytest.mark.parametrize("budget", [0.25, 0.5, 0.75])
def test_a_budget_price_converges_to_the_budget(budget, middle, steepness):
    prices = _budget_price(budget)
    last = torch.tensor(_steer(prices, _falling(steepness, middle), 2000)[-500:])
    assert last.mean().item() == pytest.approx(budget, abs=0.01)
    assert last.std().item() < 0.02


@pytest.mark.parametrize(("budget", "compute", "bound"), [(0.3, 0.9, PRICE_BOUNDS[1]), (0.7, 0.1, PRICE_BOUNDS[0])])
def test_a_budget_out_of_reach_winds_nothing_up(budget, compute, bound):
    prices = _budget_price(budget)
    _steer(prices, lambda _price: compute, 5000)
    assert prices.validation_price == pytest.approx(bound, rel=1e-6)
    for _ in range(100):
        prices.observe(torch.tensor(1.0 - compute))
    assert abs(math.log(prices.validation_price / bound)) > 0.5


def test_a_row_pays_for_its_distance_from_the_budget():
    prices = price_source(PriceConfig(budget=0.4, budget_penalty=0.3))
    compute, price = torch.tensor([0.0, 0.1, 0.4, 0.9]), torch.tensor([0.5, 0.5, 0.2, 0.0])
    expected = [p * c + 0.3 * ((c - 0.4) ** 2 - 0.4**2) for c, p in zip(compute.tolist(), price.tolist(), strict=True)]
    assert prices.reward.penalty(compute, price).tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(PriceRange(0.01, 1.0).reward.penalty(compute, price), price * compute)


def test_a_budget_price_goes_on_where_it_stood():
    prices, other = _budget_price(0.4), _budget_price(0.4)
    _steer(prices, _falling(1.0, 0.1), 100)
    other.load_state_dict(prices.state_dict())
    assert other.validation_price == prices.validation_price != _budget_price(0.4).validation_price
    assert _steer(other, _falling(1.0, 0.1), 50) == _steer(prices, _falling(1.0, 0.1), 50)


def test_the_options_choose_the_source():
    fixed, drawn = price_source(PriceConfig(price=0.2)), price_source(PriceConfig(price_range=(0.02, 0.2)))
    assert isinstance(fixed, FixedPrice)
    assert fixed.validation_price == 0.2
    assert isinstance(drawn, PriceRange)
    assert drawn.range == (0.02, 0.2)
    assert _budget_price(0.4).budget == 0.4
    with pytest.raises(UserError, match="--price and --budget"):
        PriceConfig(price=0.2, budget=0.4)


def test_a_policy_sees_the_price_that_it_is_trained_for():
    assert seen_range(PriceConfig(price_range=(0.2, 0.3))) == (0.2, 0.3)
    assert seen_range(PriceConfig(budget=0.5)) == seen_range(PriceConfig(price=0.0)) == seen_range(PriceConfig(price=0.4)) == PRICE_BOUNDS
    assert seen_range(PriceConfig(price=0.0002)) == (0.0002, PRICE_BOUNDS[1])
