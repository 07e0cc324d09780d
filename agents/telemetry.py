"""What a run tells: TensorBoard, metrics.jsonl, and the live display."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from rl_skip.routing import Rollout

__all__ = ["Averages", "Display", "Telemetry", "rollout_metrics"]


def rollout_metrics(rollout: Rollout, score: Tensor, accuracy: Tensor, price: Tensor) -> dict[str, Tensor]:
    """What one batch of episodes shows, as scalars on the device. All arguments but the first are (B,)."""
    decided = rollout.decided.float()
    decisions = decided.sum().clamp(min=1.0)
    taken = rollout.jumps[rollout.decided]
    longest = rollout.route.shape[1] - 1
    metrics = {
        "rollout/ep_rew_mean": (score - price * rollout.compute).mean(),
        "rollout/ep_len_mean": decided.sum(dim=1).mean(),
        "rollout/accuracy": accuracy.mean(),
        "rollout/compute": rollout.compute.mean(),
        "policy/entropy": rollout.entropies.detach().sum() / decisions,
        "price": price.mean(),
    }
    shares = torch.bincount(taken, minlength=longest + 1).float() / decisions
    metrics |= {f"policy/jump_{a}": shares[a] for a in range(longest + 1)}
    return metrics | {f"layers/run_rate_{i}": rate for i, rate in enumerate(rollout.route.float().mean(dim=0))}


class Averages:
    """Means of metrics over several updates, kept on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Adds one update's scalars."""
        for name, value in metrics.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means as numbers, from one transfer; then starts anew."""
        if not self._sums:
            return {}
        means = torch.stack([self._sums[name].float() / self._counts[name] for name in self._sums]).tolist()
        found = dict(zip(self._sums, means, strict=True))
        self._sums, self._counts = {}, {}
        return found


class Telemetry:
    """Writes a run's curves to TensorBoard and to metrics.jsonl.

    Args:
        folder: the run folder.
        purge_step: points from this step on, left by a run that was stopped, are dropped.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self.folder = folder
        self.writer = SummaryWriter(str(folder), purge_step=purge_step)
        lines = folder / "metrics.jsonl"
        if purge_step is not None and lines.exists():
            kept = [line for line in lines.read_text().splitlines() if _is_whole(line) and json.loads(line)["step"] < purge_step]
            lines.write_text("".join(line + "\n" for line in kept))
        self._lines = lines.open("a")
        self._run_rates: list[list[float]] = self._read_run_rates(lines)

    @staticmethod
    def _read_run_rates(lines: Path) -> list[list[float]]:
        entries = [json.loads(line) for line in lines.read_text().splitlines()]
        return [_run_rates(entry) for entry in entries if _run_rates(entry)]

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes numbers under their tags."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        if rates := _run_rates(values):
            self._run_rates.append(rates)
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()

    def heat_map(self, step: int) -> None:
        """Draws the run rates of all layers over time as one picture: a row per layer, time to the right, dark runs always."""
        if not self._run_rates:
            return
        rates = 1 - torch.tensor(self._run_rates).T  # (L, time)
        wide = rates.repeat_interleave(max(320 // rates.shape[1], 1), dim=1).repeat_interleave(20, dim=0)
        self.writer.add_image("layers/run_rates", wide.unsqueeze(0), step, dataformats="CHW")

    def hyper_parameters(self, settings: dict[str, Any], metrics: dict[str, float]) -> None:
        """Writes the settings with the final metrics, for the HParams tab."""
        plain = {name: value if isinstance(value, bool | str | float | int) else str(value) for name, value in _flat(settings).items()}
        self.writer.add_hparams(plain, metrics, run_name=".")

    def flush(self) -> None:
        """Hands everything to the disk."""
        self.writer.flush()
        self._lines.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        self.writer.close()
        self._lines.close()


def _is_whole(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _run_rates(values: dict[str, Any]) -> list[float]:
    rates = []
    while (name := f"layers/run_rate_{len(rates)}") in values:
        rates.append(values[name])
    return rates


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {prefix + name: value}
    return flat


class Display:
    """The live line of a run: a bar with reward, accuracy, compute, price and the time left; plain lines where there is no terminal."""

    def __init__(self, console: Console, total: int, done: int = 0) -> None:
        self.console, self.total = console, total
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn(), TextColumn("{task.fields[state]}"))
        self._progress = Progress(*columns, console=console) if console.is_terminal else None
        self._task = self._progress.add_task("", total=total, completed=done, state="") if self._progress else None
        self._begun, self._first, self._next_line = time.monotonic(), done, 0.0

    def __enter__(self) -> "Display":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress:
            self._progress.stop()

    def show(self, phase: str, done: int, values: dict[str, float]) -> None:
        """Shows where the run is; `values` holds TensorBoard's tags."""
        shown = {"reward": "rollout/ep_rew_mean", "accuracy": "rollout/accuracy", "compute": "rollout/compute", "price": "price"}
        state = "  ".join(f"{name} {values[tag]:.3f}" for name, tag in shown.items() if tag in values)
        if self._progress and self._task is not None:
            self._progress.update(self._task, description=phase, completed=done, state=state)
            return
        if done / self.total >= self._next_line:
            self._next_line = done / self.total + 0.05
            left = (time.monotonic() - self._begun) / max(done - self._first, 1) * (self.total - done)
            print(f"{phase:8} {done / self.total:4.0%}  {left:4.0f} s left  {state}", file=self.console.file or sys.stderr, flush=True)
