"""Episodes that begin soon: layer 0 runs on many of them at once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from envs.draws import Streams
from envs.episodes import on_device
from rl_skip.core.inputs import Inputs, device_of, take_rows
from rl_skip.core.policy import JumpRules
from rl_skip.core.routing import RoutingState
from rl_skip.core.stack import LayerStack

__all__ = ["Fresh", "Upcoming"]

EACH, ROWS = 2, 128
"""Episodes that lie ready for each environment, and for all together, at most: beyond, those that begin in one step are many enough."""
Prices = Callable[[NDArray[np.float64]], NDArray[np.float32]]


class Fresh(NamedTuple):
    """Episodes of which layer 0 has run: the rows at `places` (R,) of a state or, None, all of its R rows."""

    state: RoutingState
    observations: Tensor
    """(B, S), of all rows of the state."""
    places: Tensor | None


class Upcoming:
    """The next episodes of N environments, ready to begin; the random streams know what each will show.

    An episode that lies ready is dropped where another example or price was asked for, and all are once the weights of the stack have changed. Of
    weights that change in every step none is made ready in vain: then those that begin run layer 0 alone.

    Args:
        stack: the layers, on the device of the inputs.
        rules: what the policy may do and see.
        inputs: of all examples.
        streams: what the environments draw.
        num_envs: N.
    """

    def __init__(self, stack: LayerStack, rules: JumpRules, inputs: Inputs, streams: Streams, num_envs: int) -> None:
        self.stack, self.rules, self.inputs, self.streams = stack, rules, inputs, streams
        self._each = min(EACH, ROWS // num_envs)
        self._ready = np.zeros((num_envs, self._each), dtype=bool)
        self._examples = np.zeros((num_envs, self._each), dtype=np.int64)
        self._prices = np.zeros((num_envs, self._each), dtype=np.float32)
        self._next = np.zeros(num_envs, dtype=np.int64)  # the column of each environment's next episode, the later ones follow in turn
        self._device = device_of(inputs)
        self._held: Fresh | None = None  # a row for each of the above
        self._weights = [tensor for tensor in (*stack.parameters(), *stack.buffers()) if not tensor.is_inference()]
        self._versions: list[Any] = []

    def begin(self, rows: NDArray[np.int64], examples: NDArray[np.int64], prices: NDArray[np.float32], of_chances: Prices) -> Fresh:
        """The episodes that begin in `rows` (R,).

        Args:
            rows: which environments.
            examples: (R,), which row of the examples each shows.
            prices: (R,), the price of each.
            of_chances: the prices of numbers that are even in [0, 1), for episodes that are made ready.
        """
        changed = self._changed()
        if self._each == 0 or changed:
            self._ready[:] = False
            return self._run(examples, prices)
        there = rows, self._next[rows]
        if not (self._ready[there] & (self._examples[there] == examples) & (self._prices[there] == prices)).all():
            self._fill(rows, examples, prices, of_chances)
        self._ready[there] = False
        self._next[rows] = (there[1] + 1) % self._each
        assert self._held is not None
        return self._held._replace(places=self._on_device(rows * self._each + there[1]))

    def _fill(self, rows: NDArray[np.int64], examples: NDArray[np.int64], prices: NDArray[np.float32], of_chances: Prices) -> None:
        """Makes ready what is not, or no longer, that of `rows` (R,) as given."""
        turns = (np.arange(self._each) - self._next[:, None]) % self._each  # (N, K), in how many episodes each comes
        turns[rows] -= 1  # theirs are drawn
        shown, chances, drawn = self.streams.ahead(np.maximum(turns, 0))
        shown[rows, self._next[rows]], drawn[rows, self._next[rows]] = examples, True
        costs = of_chances(chances)
        costs[rows, self._next[rows]] = prices
        wrong = ~self._ready | (self._examples != shown) | (self._prices != costs)
        missing = np.ones_like(wrong) if self._held is None else wrong & drawn
        fresh = self._run(shown[missing], costs[missing])
        if self._held is None:
            self._held = fresh
        else:
            where = self._on_device(missing.reshape(-1).nonzero()[0])
            self._held.state.replace(where, fresh.state)
            self._held.observations.index_copy_(0, where, fresh.observations)
        self._ready[missing], self._examples[missing], self._prices[missing] = drawn[missing], shown[missing], costs[missing]
        self._ready &= drawn

    def _run(self, examples: NDArray[np.int64], prices: NDArray[np.float32]) -> Fresh:
        """Episodes that show `examples` (R,) at `prices` (R,)."""
        inputs = take_rows(self.inputs, self._on_device(examples))
        state = RoutingState(self.stack, self.rules, inputs, self._on_device(prices))
        state.visit(0)
        return Fresh(state, state.observe(state.everyone), None)

    def _changed(self) -> bool:
        """Whether the stack has other weights than the last time, or is in another mode."""
        before, self._versions = self._versions, [self.stack.training, self.stack.autocast, *[tensor._version for tensor in self._weights]]
        return self._versions != before and bool(before)

    def _on_device(self, numbers: NDArray[Any]) -> Tensor:
        return on_device(numbers, self._device)
