"""The live line of a run, from its first update to the last part of its report; plain lines where there is no terminal."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from agents.run.forecast import Forecast, duration
from rl_skip.core.task import score_key

__all__ = ["Display"]

SHARE = 0.05
"""Of the time, after which the next plain line comes."""
PATIENCE = 15.0
"""Seconds without a plain line after which a pass over rows says how far it has come."""
REFRESH = 0.2
"""Seconds between two states of the live line."""


class Display:
    """A bar with the share of the time that has passed, about what is left, and where the run stands.

    Args:
        console: where it is shown.
        forecast: how long the parts of the run take; the run corrects it as it goes.
        score_name: what the task calls its score.
    """

    def __init__(self, console: Console, forecast: Forecast, *, score_name: str = "accuracy") -> None:
        self.console, self.forecast, self.score_name = console, forecast, score_name
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%  {task.fields[state]}"))
        self._progress = Progress(*columns, console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        self._task = self._progress.add_task("", total=1.0, state="") if self._progress else None
        self._title, self._begun, self._shown, self._next_share = "", time.monotonic(), -PATIENCE, 0.0

    def __enter__(self) -> "Display":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress:
            self._progress.stop()

    @property
    def share(self) -> float:
        """Of the time of this sitting that has passed."""
        passed = time.monotonic() - self._begun
        return passed / max(passed + self.forecast.left(), 1e-9)

    def show(self, phase: str, values: dict[str, float]) -> None:
        """Shows where the training is; `values` holds TensorBoard's tags."""
        self._title = phase
        score_tag = f"rollout/{score_key(self.score_name)}"
        shown = {"reward": "rollout/ep_rew_mean", self.score_name: score_tag, "compute": "rollout/compute", "price": "price"}
        self._write("  ".join(f"{name} {values[tag]:.3f}" for name, tag in shown.items() if tag in values), line=self.share >= self._next_share)

    def begin_stage(self, title: str) -> None:
        """A part of the run's end begins."""
        self.forecast.begin(title)
        self._title = title
        self._write("", line=self.forecast.left() >= PATIENCE)

    def rows_done(self, done: int, rows: int) -> None:
        """A pass over rows, such as a validation, has come so far."""
        waited = time.monotonic() - self._shown
        if waited > REFRESH:
            self._write(f"{done:,} of {rows:,} rows", line=waited > PATIENCE)

    def _write(self, state: str, line: bool) -> None:
        """Refreshes the live line; where there is none writes a plain one, if it is time for a `line`."""
        text = "  ".join(filter(None, (f"about {duration(self.forecast.left())} left", state)))
        if self._progress and self._task is not None:
            self._progress.update(self._task, description=self._title, completed=self.share, state=text)
            self._progress.refresh()
        elif line:
            print(f"{self._title:8} {self.share:4.0%}  {text}", file=self.console.file or sys.stderr, flush=True)
            self._next_share = self.share + SHARE
        if self._progress or line:
            self._shown = time.monotonic()
