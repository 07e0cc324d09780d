"""A view of rows that wait for a decision, of which features are read."""

import math
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Looked", "View"]


class Looked(Protocol):
    """What a view looks at: a batch on its way through a stack, `Sight`, or what a graph is traced with."""

    stack: Any
    carry: Any
    spent: Tensor
    price: Tensor

    @property
    def position(self) -> Tensor:
        """(B,) long, the last layer that each row has run."""
        ...

    @property
    def layout(self) -> Any:
        """What an observation holds."""
        ...

    def previous(self, name: str, rows: Tensor, value: Tensor) -> Tensor:
        """See `View.previous`."""
        ...

    def layer_of(self, rows: Tensor) -> int | None:
        """The layer that the named rows have all just run; None where they are at different ones."""
        ...

    def said(self, rows: Tensor) -> Tensor:
        """(R, ...), what the network would answer for the named rows."""
        ...


class View:
    """What there is to see of R rows that wait for a decision. Nothing of it carries a gradient.

    Args:
        state: where the batch is.
        rows: (R,) long, the rows.
    """

    def __init__(self, state: Looked, rows: Tensor) -> None:
        self.state, self.rows = state, rows

    @cached_property
    def hidden(self) -> Tensor:
        """(R, D), the hidden state, averaged over the real tokens."""
        return self.state.stack.pooled(self.state.carry, self._gathered).detach()

    @cached_property
    def memory(self) -> Tensor | None:
        """(R, D), the working memory; None where the stack has none."""
        memory = self.state.stack.memory(self.state.carry, self._gathered)
        return None if memory is None else memory.detach()

    @cached_property
    def position(self) -> Tensor:
        """(R,) long, the last layer that ran; 0 before any did."""
        layer = self.state.layer_of(self.rows)
        return self._of_rows(self.state.position) if layer is None else torch.full_like(self.rows, layer)

    @cached_property
    def compute(self) -> Tensor:
        """(R,), the relative compute spent so far."""
        return self._of_rows(self.state.spent).sum(dim=1)

    @cached_property
    def price(self) -> Tensor:
        """(R,), what a unit of compute costs."""
        return self._of_rows(self.state.price)

    @cached_property
    def probabilities(self) -> Tensor:
        """(R, C), or (R, T, C), what the network would answer here, by the readout after this layer."""
        return torch.softmax(self.state.said(self.rows).detach().float(), dim=-1)

    @cached_property
    def confidence(self) -> tuple[Tensor, Tensor]:
        """(R, 3 + T) now and at the last look, zeros at the first: entropy as a share of the largest there is, largest and second largest
        probability, each the mean over T tokens where there are some; and 1 + the answer of each of them, T = 1 where there are none.

        All features that look at the answer share it, so that it is made, and remembered, once.
        """
        probabilities, classes = self.probabilities, self.probabilities.shape[-1]
        most = math.log(max(classes, 2))
        entropy = probabilities.clamp(min=1e-12).log_().mul_(probabilities).sum(dim=-1, keepdim=True).neg_().div_(most)
        largest = probabilities.topk(min(classes, 2), dim=-1).values
        answer = (1 + probabilities.argmax(dim=-1, keepdim=True)).to(entropy.dtype)
        if probabilities.dim() > 2:
            entropy, largest, answer = entropy.mean(dim=1), largest.mean(dim=1), answer.flatten(1)
        now = torch.cat([entropy, largest[:, :1], largest[:, -1:], answer] if classes < 2 else [entropy, largest, answer], dim=1)
        return now, self.previous("confidence", now)

    @cached_property
    def confidence_pairs(self) -> Tensor:
        """(R, 3 + T, 2), `confidence` now and at the last look, side by side."""
        return torch.stack(self.confidence, dim=2)

    def previous(self, name: str, value: Tensor) -> Tensor:
        """What was given here under `name` when each row was last looked at, after an earlier layer; zeros at its first look.

        Args:
            name: a feature's own, such as its name.
            value: (R, K), of now; it is what the next look is given.

        Returns:
            (R, K). Looking twice after the same layer gives the same.
        """
        return self.state.previous(name, self.rows, value)

    def _of_rows(self, values: Tensor) -> Tensor:
        return values if self._gathered is None else values.index_select(0, self.rows)

    @property
    def _gathered(self) -> Tensor | None:
        """The rows to gather; None for all of them."""
        return None if self.rows.shape[0] == self.state.price.shape[0] else self.rows
