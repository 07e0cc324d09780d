"""The routing state of an environment: every row is at a layer of its own, and where each is, is known on the host."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rl_skip.core.heading import WAITING
from rl_skip.core.inputs import Inputs
from rl_skip.core.policy import JumpRules
from rl_skip.core.routing import RoutingState
from rl_skip.core.stack import LayerStack

__all__ = ["Episodes", "on_device"]


def on_device(numbers: NDArray[Any], device: torch.device) -> Tensor:
    """A tensor of an array that nobody writes to any more: where the device is the host it has the same memory."""
    tensor = torch.from_numpy(numbers)
    return tensor if device.type == "cpu" else tensor.to(device)


class Episodes(RoutingState):
    """N examples on their way through a stack, each at a layer of its own.

    Jumps come from the host, so the host knows which rows run which layer: nobody searches for them on the device. What the decisions and layers
    of a step cost is written once, by `note`.

    Args:
        stack: the layers.
        rules: what the policy may do and see.
        inputs: of the first N examples.
        price: (N,), of each.
    """

    def __init__(self, stack: LayerStack, rules: JumpRules, inputs: Inputs, price: Tensor) -> None:
        super().__init__(stack, rules, inputs, price)
        rows = self.everyone.shape[0]
        self.at = np.zeros(rows, dtype=np.int64)
        """(N,), the last layer that each row has run."""
        self.heading = np.zeros(rows, dtype=np.int64)
        """(N,), the layer that each runs next; L: it left."""
        self._everyone = np.arange(rows)
        self._found = self.everyone, self._everyone  # the rows that were due last, on the device and on the host
        self._unwritten: list[tuple[NDArray[np.int64], Tensor]] = []  # costs since `note`, and where: row · L + layer, no place twice
        self._position_now: Tensor | None = None

    @property
    def next_layer(self) -> Tensor:
        return self._on_device(self.heading.copy())

    @property
    def position(self) -> Tensor:
        if self._position_now is None:
            self._position_now = self._on_device(self.at.copy())
        return self._position_now

    def due(self, i: int) -> Tensor | None:
        rows = (self.heading == i).nonzero()[0]
        if len(rows) == 0:
            return None
        self._found = (self.everyone, self._everyone) if len(rows) == len(self.at) else (self._on_device(rows), rows)
        return self._found[0]

    def ran(self, i: int, rows: Tensor, counted: Tensor) -> None:
        host = self._on_host(rows)
        self._unwritten.append((host * self.stack.depth + i, self.stack.costs.layer(i, counted.float())))
        self.at[host], self.heading[host] = i, WAITING
        self._visited, self._said, self._looked, self._position_now = (i, rows), None, {}, None

    def note(self) -> None:
        """Writes down which layers have run since the last time, and what they and the decisions cost."""
        if not self._unwritten:
            return
        places, costs = zip(*self._unwritten, strict=True)
        self._unwritten = []
        where = self._on_device(np.concatenate(places))
        self.spent.view(-1).index_add_(0, where, torch.cat(costs).to(self.spent.dtype))
        self.route.view(-1).index_fill_(0, where, True)

    def begin(self, rows: NDArray[np.int64], inputs: Inputs, price: Tensor) -> None:
        """Replaces `rows` (R,) by new examples, of which layer 0 has run."""
        fresh = RoutingState(self.stack, self.rules, inputs, price)
        fresh.visit(0)
        where = self._on_device(rows)
        self.replace(where, fresh)
        self.at[rows], self.heading[rows] = 0, WAITING
        self._visited, self._said, self._position_now = None, None, None

    def _spend(self, rows: Tensor, cost: Tensor) -> None:
        self.note()  # what waits to be written names no place twice
        host = self._on_host(rows)
        self._unwritten.append((host * self.stack.depth + self.at[host], cost))

    def _after(self, rows: Tensor, ask: Callable[[int, Tensor], Tensor]) -> Tensor:
        if self.layer_of(rows) is not None:
            return super()._after(rows, ask)
        at = self.at[self._on_host(rows)]
        order, counts = at.argsort(kind="stable"), np.bincount(at)
        groups = rows.index_select(0, self._on_device(order)).split(counts.tolist())
        said = torch.cat([ask(i, groups[i]) for i in np.flatnonzero(counts).tolist()])
        return said.index_select(0, self._on_device(order.argsort()))

    def _send(self, rows: Tensor, following: Tensor | int) -> Tensor | int:
        self.heading[self._on_host(rows)] = following.cpu().numpy() if isinstance(following, Tensor) else following
        return following

    def _on_device(self, numbers: NDArray[np.int64]) -> Tensor:
        return on_device(numbers, self.everyone.device)

    def _on_host(self, rows: Tensor) -> NDArray[np.int64]:
        if self.some(rows) is None:
            return self._everyone
        host: NDArray[np.int64] = self._found[1] if rows is self._found[0] else rows.cpu().numpy()
        return host
