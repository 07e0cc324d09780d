"""How far a command has come, on standard error: one line that changes on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rl_skip.core.progress import listening

__all__ = ["showing_progress"]

PATIENCE = 15.0
"""Seconds between two lines where there is no terminal; a command that is done before writes none."""
REFRESH = 0.2
"""Seconds between two states of the line on a terminal."""
CLEAR = "\r\033[K"


class _Passes:
    def __init__(self) -> None:
        self.stream, self.terminal = sys.stderr, sys.stderr.isatty()
        self._title, self._begun = "", time.monotonic()
        self._shown = self._begun if not self.terminal else self._begun - REFRESH

    def begin_stage(self, title: str) -> None:
        """Names what runs now."""
        self._title = title
        self._show(title)

    def rows_done(self, done: int, rows: int) -> None:
        """How far the pass has come."""
        self._show(": ".join(filter(None, (self._title, f"{done:,} of {rows:,} rows"))))

    def _show(self, text: str) -> None:
        now = time.monotonic()
        if now - self._shown < (REFRESH if self.terminal else PATIENCE):
            return
        self._shown, text = now, f"{text}, {now - self._begun:.0f} s"
        print(f"{CLEAR}{text}" if self.terminal else text, end="" if self.terminal else "\n", file=self.stream, flush=True)

    def clear(self) -> None:
        """Takes the line off the terminal."""
        if self.terminal:
            print(CLEAR, end="", file=self.stream, flush=True)


@contextmanager
def showing_progress() -> Iterator[None]:
    """Within it, passes over rows are shown."""
    passes = _Passes()
    try:
        with listening(passes):
            yield
    finally:
        passes.clear()
