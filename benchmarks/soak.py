"""A training of many minutes, watched from outside: resident memory, open files, and the time that an update takes, none of which may grow.

    python benchmarks/soak.py --minutes 20 --out runs/soak
    python benchmarks/soak.py --minutes 5 --out runs/soak --agent ppo

Prints by how much each grows in an hour, with its standard error, and draws `soak.png` into the run folder. The first fifth of the time is left out,
in which memory is taken that is kept. The exit code is 1 where one of them is flat neither within three standard errors nor within a hundredth of
itself.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np

TOP = Path(__file__).resolve().parents[1]
SMALL = ("--layers", "4", "--width", "16", "--threads", "1", "--checkpoint-updates", "50", "--warmup-epochs", "2", "--eval-epochs", "2")
ENDLESS = "1000000"
"""Epochs: the training is stopped."""
WATCHED_FROM = 0.2
"""Share of the time after which growth counts."""
FLAT = 0.01
"""Share of itself by which a series may grow in the watched time, for the standard error says nothing of steps."""
PAGE = os.sysconf("SC_PAGE_SIZE")


class Series(NamedTuple):
    """What was watched, over time."""

    name: str
    unit: str
    seconds: np.ndarray
    values: np.ndarray

    def growth(self, begin: float) -> tuple[float, float]:
        """By how much it grows in an hour from `begin` seconds on, and the standard error of that: the slope of a line of least squares."""
        late = self.seconds >= begin
        hours, values = self.seconds[late] / 3600, self.values[late]
        spread = hours - hours.mean()
        slope = float(spread @ values / (spread @ spread))
        left = values - values.mean() - slope * spread
        return slope, math.sqrt(float(left @ left) / max(len(hours) - 2, 1) / float(spread @ spread))

    def is_flat(self, begin: float) -> bool:
        """Whether it does not grow, within its error or a hundredth of itself."""
        slope, error = self.growth(begin)
        late = self.seconds >= begin
        whole = slope * float(self.seconds[-1] - begin) / 3600
        return slope <= 3 * error or whole <= FLAT * float(self.values[late].mean())


def watch(process: subprocess.Popen[bytes], folder: Path, seconds: float) -> list[Series]:
    """Looks at a training process once a second."""
    moments, memory, files, begun = [], [], [], time.monotonic()
    while time.monotonic() - begun < seconds:
        if process.poll() is not None:
            raise RuntimeError(f"the training ended by itself with {process.returncode}")
        moments.append(time.monotonic() - begun)
        memory.append(int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * PAGE / 2**20)
        files.append(len(os.listdir(f"/proc/{process.pid}/fd")))
        time.sleep(1)
    watched = np.array(moments)
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()[:-1]]  # the last may be half written
    rows = json.loads((folder / "config.json").read_text())["schedule"]["batch_size"]
    taken = np.array([rows / entry["time/samples_per_second"] for entry in entries])
    steps = np.array([entry["step"] for entry in entries])
    at = np.cumsum(taken * np.diff(steps, prepend=0))
    at *= watched[-1] / at[-1]  # validations and checkpoints take the rest, and come evenly
    return [
        Series("resident memory", "MiB", watched, np.array(memory)),
        Series("open files", "files", watched, np.array(files, dtype=float)),
        Series("time per update", "ms", at, 1000 * taken),
    ]


def draw(series: list[Series], begin: float, file: Path) -> None:
    """A panel for each."""
    figure, panels = plt.subplots(len(series), sharex=True, figsize=(7, 6), layout="constrained")
    for panel, one in zip(panels, series, strict=True):
        panel.plot(one.seconds / 60, one.values, linewidth=1)
        panel.axvline(begin / 60, color="0.7", linewidth=1)
        panel.set(ylabel=f"{one.name}\n({one.unit})", ylim=(0, 1.2 * float(np.quantile(one.values, 0.99))))
    panels[-1].set_xlabel("minutes")
    figure.savefig(file, dpi=150)


def main() -> int:
    """Trains, watches, stops, and prints how each series grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long to watch")
    parser.add_argument("--out", type=Path, required=True, help="the run folder, which must not exist")
    parser.add_argument("--agent", default="reinforce", help="the agent to train with")
    options = parser.parse_args()
    words = ("--out", str(options.out), "--agent", options.agent, "--epochs", ENDLESS, *SMALL)
    process = subprocess.Popen([sys.executable, str(TOP / "train.py"), *words], stdout=subprocess.DEVNULL)
    try:
        series = watch(process, options.out, 60 * options.minutes)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    begin = WATCHED_FROM * 60 * options.minutes
    for one in series:
        slope, error = one.growth(begin)
        mean = float(one.values[one.seconds >= begin].mean())
        told = "flat" if one.is_flat(begin) else "GROWS"
        print(f"{one.name:16} {mean:10.2f} {one.unit:5}  {slope:+10.3f} ± {error:.3f} an hour: {told}")
    draw(series, begin, options.out / "soak.png")
    return int(not all(one.is_flat(begin) for one in series))


if __name__ == "__main__":
    sys.exit(main())
