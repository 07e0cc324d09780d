"""Where the price of compute comes from: fixed, or drawn for every row."""

import math
from typing import Protocol

import torch
from torch import Tensor

from agents.config import PriceConfig

__all__ = ["FixedPrice", "PriceRange", "PriceSource", "price_source"]


class PriceSource(Protocol):
    """Gives every input of a batch its price."""

    typical: float
    """The price at which a run in progress is validated."""

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        """(B,), on the CPU."""
        ...


class FixedPrice:
    """The same price for every row."""

    def __init__(self, price: float) -> None:
        self.typical = price

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        return torch.full((rows,), self.typical)


class PriceRange:
    """A price for every row, log-uniform in a range, so that one policy learns the whole trade-off."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.typical = math.sqrt(low * high)

    def draw(self, rows: int, generator: torch.Generator) -> Tensor:
        return self.low * (self.high / self.low) ** torch.rand(rows, generator=generator)

    def grid(self, points: int) -> list[float]:
        """Prices spread evenly over the range, in their logarithm, the ends included."""
        return [self.low * (self.high / self.low) ** (k / (points - 1)) for k in range(points)]


def price_source(config: PriceConfig) -> FixedPrice | PriceRange:
    """The source that the options ask for."""
    return PriceRange(*config.price_range) if config.price is None else FixedPrice(config.price)
