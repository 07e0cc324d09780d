"""What an attached policy that learns adds to its model: a part of it, which optimiser, checkpoints and DDP find there."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.core.policy import JumpPolicy
from rl_skip.learning.prices import BudgetPrice, PriceRange

__all__ = ["Deciding", "tied"]


class Deciding(nn.Module):
    """A policy and where the steering of its price stands; in single precision whatever the model is in.

    The steering is a buffer, so that it lies in the model's `state_dict`, and DDP gives all processes that of the first.

    Args:
        policy: the policy.
        prices: where the price of compute comes from.
    """

    steering: Tensor

    def __init__(self, policy: JumpPolicy, prices: PriceRange | BudgetPrice) -> None:
        super().__init__()
        self.policy, self._prices = policy, prices
        self.register_buffer("steering", torch.tensor([0.0, *prices.state_dict().values()]))

    @property
    def updates(self) -> int:
        """How many updates were observed."""
        return int(self.steering[0])

    @property
    def prices(self) -> PriceRange | BudgetPrice:
        """The prices, as the steering stands."""
        state = self._prices.state_dict()
        if state:
            self._prices.load_state_dict(dict(zip(state, self.steering[1:].tolist(), strict=True)))
        return self._prices

    def observe(self, compute: Tensor) -> None:
        """Takes the mean compute of an update, a scalar."""
        prices = self.prices
        prices.observe(compute)
        self.keep(self.updates + 1)

    def keep(self, updates: int | None = None) -> None:
        """Writes down where the steering stands, after so many updates."""
        done = self.updates if updates is None else updates
        self.steering.copy_(torch.tensor([float(done), *self._prices.state_dict().values()]))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Moves with the model, and keeps the precision: a price in half precision would hardly move."""

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        return super()._apply(moved, recurse)


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *others: Tensor) -> Tensor:
        ctx.count = len(others)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return (*gradients, *(None,) * ctx.count)


def tied(hidden: Tensor, others: list[Tensor]) -> Tensor:
    """The same hidden state, from whose graph the others can be reached.

    DDP follows the graph back from a model's outputs to find parameters without a use, and the answers of readouts are none of the outputs.
    """
    return _Tied.apply(hidden, *others)
