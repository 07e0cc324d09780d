"""Where the price of compute comes from: fixed, drawn for every row, or controlled by a budget."""

import math
import numbers
from typing import Any, Protocol

import torch
from torch import Tensor

from rl_skip.core.bounded import LEAST_BUDGET
from rl_skip.core.errors import UserError, positive
from rl_skip.core.reward import LINEAR, BudgetReward, Reward

__all__ = ["PRICE_BOUNDS", "BudgetPrice", "FixedPrice", "PriceRange", "PriceSource", "Pricing", "check_pricing", "price_source", "seen_range"]

PRICE_BOUNDS = (0.001, 10.0)
"""The lowest and highest price that the observation of a policy for one price, or for one budget, distinguishes."""


class Pricing(Protocol):
    """Options that say what compute costs: a fixed price, a budget, or else a range."""

    @property
    def price(self) -> float | None:
        """One fixed price λ, in score per unit of relative compute."""
        ...

    @property
    def price_range(self) -> tuple[float, float]:
        """From where to where a price is drawn for every row."""
        ...

    @property
    def budget(self) -> float | None:
        """Mean compute allowed, in (0, 1]."""
        ...

    @property
    def budget_price(self) -> float:
        """Start of a controlled price."""
        ...

    @property
    def budget_integral(self) -> float:
        """How far a controlled price moves at each update, in its logarithm, per unit of compute in excess."""
        ...

    @property
    def budget_proportional(self) -> float:
        """Proportional response of a controlled price to the present excess."""
        ...

    @property
    def budget_penalty(self) -> float:
        """Weight of the penalty for a row's squared distance from the budget."""
        ...


def check_pricing(pricing: Pricing) -> None:
    """Refuses prices that contradict each other, or lie out of range.

    Raises:
        UserError: naming the option.
    """
    if pricing.price is not None and pricing.budget is not None:
        raise UserError("a price and a budget exclude each other; set one of --price and --budget, or of price= and budget=")
    if pricing.budget is not None and not (isinstance(pricing.budget, numbers.Real) and LEAST_BUDGET <= pricing.budget <= 1):
        raise UserError(f"a budget is a mean compute in (0, 1], {LEAST_BUDGET} at the least, got {pricing.budget}; set --budget, or budget=")
    positive("the price a budget starts from", pricing.budget_price, "--budget-price, or budget_price=")
    positive("budget_integral", pricing.budget_integral, "--budget-integral, or budget_integral=")
    positive("budget_proportional", pricing.budget_proportional, "--budget-proportional, or budget_proportional=", zero=True)
    positive("budget_penalty", pricing.budget_penalty, "--budget-penalty, or budget_penalty=", zero=True)
    if pricing.price is not None:
        positive("the price", pricing.price, "--price, or price=", zero=True)
    low, high = pricing.price_range
    positive("the price range's low end", low, "--price-range, or price_range=")
    positive("the price range's high end", high, "--price-range, or price_range=")
    if low >= high:
        raise UserError(f"the price range must ascend, got {low} {high}; set --price-range LOW HIGH, or price_range=(low, high)")


def seen_range(pricing: Pricing) -> tuple[float, float]:
    """The prices that the policy's observation distinguishes; never all above the one that it is trained for."""
    if pricing.price is None and pricing.budget is None:
        return pricing.price_range
    low, high = PRICE_BOUNDS
    return (min(low, pricing.price) if pricing.price else low), high


class PriceSource(Protocol):
    """Gives every input of a batch its price."""

    @property
    def validation_price(self) -> float:
        """The price at which a run in progress is validated."""
        ...

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest price that are drawn now; equal where there is one price."""
        ...

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """(B,), on the CPU."""
        ...

    @property
    def reward(self) -> Reward:
        """The reward that is optimised."""
        ...

    def observe(self, compute: Tensor) -> None:
        """Takes the mean compute of each update's sampled routes, a scalar on the device."""
        ...

    def metrics(self) -> dict[str, float]:
        """Metrics beside `price`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the next price depends on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        ...


def _log_uniform(low: float, high: float, rows: int, generator: torch.Generator) -> Tensor:
    return low * (high / low) ** torch.rand(rows, generator=generator)


class PriceRange:
    """A price for every row, log-uniform in a range, so that one policy learns the whole trade-off."""

    def __init__(self, low: float, high: float, reward: Reward = LINEAR) -> None:
        self.range, self.reward = (low, high), reward
        self.validation_price = math.sqrt(low * high)

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        return _log_uniform(*self.range, rows, generator)

    def observe(self, compute: Tensor) -> None:
        """The range stays as it is."""

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to go back to."""


class FixedPrice(PriceRange):
    """The same price for every row: a range with equal ends."""

    def __init__(self, price: float, reward: Reward = LINEAR) -> None:
        super().__init__(price, price, reward)
        self.validation_price = price

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        return torch.full((rows,), self.validation_price)


class BudgetPrice:
    """A Lagrange multiplier that rises while the routes cost more than the budget and falls while they cost less.

    Dual ascent in the logarithm of the price, so that a step means the same at every price: an integral, bounded, plus
    a small proportional term against oscillation (Stooke et al. 2020, "Responsive Safety in Reinforcement Learning by
    PID Lagrangian Methods"). Prices are drawn from a window around the multiplier and shown to the policy, which so
    learns the effect of a change of price before it comes.

    A row also pays a small penalty for its distance from the budget (`BudgetReward`), so that what is allowed is spent.
    """

    WINDOW = 2.0

    def __init__(self, budget: float, start: float, integral: float, proportional: float, penalty: float, reward: Reward = LINEAR) -> None:
        self.budget, self.integral, self.proportional = budget, integral, proportional
        self.reward = BudgetReward(reward, budget, penalty)
        self._log_price, self._violation = math.log(start), 0.0

    @property
    def validation_price(self) -> float:
        low, high = math.log(PRICE_BOUNDS[0]), math.log(PRICE_BOUNDS[1])
        return math.exp(min(max(self._log_price + self.proportional * self._violation, low), high))

    @property
    def range(self) -> tuple[float, float]:
        return self.validation_price / self.WINDOW, self.validation_price * self.WINDOW

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        return _log_uniform(*self.range, rows, generator)

    def observe(self, compute: Tensor) -> None:
        spent = float(compute)
        if not math.isfinite(spent):  # of a batch that a loop of one's own leaves out, as a scaler of the loss does
            return
        self._violation = 0.9 * self._violation + 0.1 * (spent - self.budget)
        low, high = math.log(PRICE_BOUNDS[0]), math.log(PRICE_BOUNDS[1])
        self._log_price = min(max(self._log_price + self.integral * self._violation, low), high)

    def metrics(self) -> dict[str, float]:
        return {"budget/violation": self._violation, "budget/price": self.validation_price}

    def state_dict(self) -> dict[str, Any]:
        return {"log_price": self._log_price, "violation": self._violation}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._log_price, self._violation = state["log_price"], state["violation"]


def price_source(config: Pricing, reward: Reward = LINEAR) -> PriceRange | BudgetPrice:
    """The source that the options ask for, of prices for `reward`."""
    if config.budget is not None:
        return BudgetPrice(config.budget, config.budget_price, config.budget_integral, config.budget_proportional, config.budget_penalty, reward)
    return PriceRange(*config.price_range, reward) if config.price is None else FixedPrice(config.price, reward)
