"""How long the rest of a command takes: measured on a few steps of every part before the first, and corrected as it goes."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from rl_skip.core.processes import together

__all__ = ["Forecast", "Part", "duration", "seconds_of", "unchanged"]

TRIALS, TRIAL_SECONDS = 4, 1.0
"""Most calls of a step that is measured, and seconds after which no other call begins."""
TRUSTED = 5
"""Steps that the first measurement counts as, beside those that were taken since."""

REMEMBERED = 50
"""Steps, the last of which make the mean: what else the machine does changes."""


@dataclass
class Part:
    """A part of a command: steps of about equal length."""

    title: str
    steps: int
    """That are left."""
    seconds: float
    """Of one step, as far as is known."""
    taken: int = TRUSTED
    """Steps that `seconds` is the mean of, about."""

    @property
    def left(self) -> float:
        """Seconds."""
        return self.steps * self.seconds

    def step(self, seconds: float) -> None:
        """One step was taken."""
        self.steps = max(self.steps - 1, 0)
        self.taken = min(self.taken + 1, REMEMBERED)
        self.seconds += (seconds - self.seconds) / self.taken


class Forecast:
    """The parts of a command, in their order, with what is left of each.

    Example:
        >>> forecast = Forecast([Part("warm-up", 100, 0.1), Part("reinforce", 50, 0.2), Part("report", 1, 5.0)])
        >>> forecast.in_words()
        'about 25 s: 10 s of warm-up, 10 s of reinforce, 5 s of report'
    """

    def __init__(self, parts: list[Part]) -> None:
        self.parts = {part.title: part for part in parts}
        self._current: Part | None = None
        self._begun = 0.0

    def step(self, title: str, seconds: float) -> None:
        """One step of a part was taken."""
        if title in self.parts:
            self.parts[title].step(seconds)

    def begin(self, title: str) -> None:
        """A part of a single step begins, and the one before it is over; other titles say nothing about time."""
        if title not in self.parts:
            return
        self.end()
        self._current, self._begun = self.parts[title], time.monotonic()

    def end(self) -> None:
        """The part that had begun is over."""
        if self._current is not None:
            self._current.steps = 0
        self._current = None

    def left(self) -> float:
        """Seconds until the end."""
        running = 0.0 if self._current is None else min(time.monotonic() - self._begun, self._current.left)
        return sum(part.left for part in self.parts.values()) - running

    def in_words(self) -> str:
        """The whole and its parts that count, for the line before the first step."""
        shown = [f"{duration(part.left)} of {part.title}" for part in self.parts.values() if part.left >= max(1.0, 0.01 * self.left())]
        return f"about {duration(self.left())}" + (f": {', '.join(shown)}" if len(shown) > 1 else "")


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of one call: the shortest of a few, since the first pays for what is made once, and other programs make some longer.

    Where several processes make the call together, the first one's clock counts for all.
    """
    begun, shortest = time.monotonic(), float("inf")
    for _ in range(TRIALS):
        before = time.perf_counter()
        call()
        shortest = min(shortest, time.perf_counter() - before)
        if together().from_first(time.monotonic() - begun > TRIAL_SECONDS):
            break
    return together().from_first(shortest)


class Stateful(Protocol):
    """What can go back to where it was."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@contextmanager
def unchanged(stateful: Stateful, constant: Tensor | None = None) -> Iterator[None]:
    """What is done within it leaves no trace in the state, so that steps can be tried.

    Args:
        constant: a part of the state that no step writes into; it need not be copied.
    """
    state = copy.deepcopy(stateful.state_dict(), {id(constant): constant})
    try:
        yield
    finally:
        stateful.load_state_dict(state)
