"""What episodes begin with: a random stream for each environment, of which blocks are drawn ahead, so that many rows draw without a loop."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Streams"]

AHEAD = 64
"""Episodes that one environment draws at once."""


class Streams:
    """N random streams. Episode k of an environment is a function of its seed and k alone, however many environments there are.

    Args:
        seed: environment i draws from the stream seed + i. None: a random seed.
        num_envs: N.
        examples: of how many rows each episode shows one.
    """

    def __init__(self, seed: int | None, num_envs: int, examples: int) -> None:
        self._streams = [np.random.default_rng(None if seed is None else seed + i) for i in range(num_envs)]
        self._count = examples
        self._examples = np.zeros((num_envs, AHEAD), dtype=np.int64)
        self._chances = np.zeros((num_envs, AHEAD))
        self._used = np.full(num_envs, AHEAD)  # of what lies ready

    def __getitem__(self, i: int) -> np.random.Generator:
        return self._streams[i]

    def __setitem__(self, i: int, stream: np.random.Generator) -> None:
        """From here on environment `i` draws from `stream`; one that it draws from already goes on."""
        if stream is not self._streams[i]:
            self._streams[i], self._used[i] = stream, AHEAD

    def draw(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """What the next episode of each of `rows` (R,) shows: (R,), a row of the examples, and (R,), a number even in [0, 1)."""
        for i in rows[self._used[rows] == AHEAD].tolist():
            stream = self._streams[i]
            self._examples[i], self._chances[i], self._used[i] = stream.integers(self._count, size=AHEAD), stream.random(AHEAD), 0
        used = self._used[rows]
        self._used[rows] += 1
        return self._examples[rows, used], self._chances[rows, used]
