"""Two finished runs by the clock at the same accuracy: one whose policy was charged operations, and one that was charged measured time.

Each run's dial is measured on all test rows. Of the first, prices over its whole range are taken that have the least compute for their accuracy; of
the second, for each, the one of the least compute, in its own unit, whose accuracy is no more than `--within` lower. All these are timed on the same
rows in the same batches, taking turns on each. The runs are trained alike but for the cost:

    python train.py --task text --model MODEL --data DATA --no-begin-again --out runs/operations
    python train.py --task text --model MODEL --data DATA --no-begin-again --cost latency --cost-batch 1 --out runs/latency
    python benchmarks/latency.py runs/operations runs/latency [--batch 1] [--threads 1]
"""

import argparse
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.clock import Way, batches_of, seconds, speed_up
from benchmarks.exits import PRICES
from rl_skip.core.inputs import Inputs
from rl_skip.core.task import Task
from rl_skip.export.policy_folder import SkipModel
from rl_skip.measure.every_price import evaluate_prices
from rl_skip.measure.runs import load_run


@dataclass(frozen=True)
class Point:
    """A price of a run's dial."""

    price: float
    score: float
    """On all test rows."""
    compute: float
    """The mean, in the run's own unit."""


def dial(model: SkipModel, task: Task) -> list[Point]:
    """All prices, measured on test rows."""
    measured = evaluate_prices(model.eval().stack, model.policy, task, task.load("test"), PRICES)
    return [Point(at.price, at.score, at.compute) for at in measured]


def spread(points: list[Point], count: int) -> list[Point]:
    """Those whose computes come next to `count` even steps from the smallest to the largest."""
    computes = torch.tensor([point.compute for point in points])
    steps = torch.linspace(float(computes.min()), float(computes.max()), count)
    return [points[n] for n in dict.fromkeys(int((computes - step).abs().argmin()) for step in steps)]


def as_accurate(points: list[Point], score: float) -> Point | None:
    """The one of the least compute that has at least this score; None where none has."""
    return min((point for point in points if point.score >= score), key=lambda point: point.compute, default=None)


def routed(model: SkipModel, price: float, inputs: Inputs) -> Tensor:
    """The answers at a price."""
    model.price = price
    return model(inputs)


@torch.no_grad()
def main() -> None:
    """Prints a line for each timed price of the first run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operations", type=Path, help="a run that was charged operations")
    parser.add_argument("latency", type=Path, help="a run that was charged measured time")
    parser.add_argument("--data")
    parser.add_argument("--batch", type=int, default=1, help="rows in a batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--points", type=int, default=10, help="prices of each run that are timed")
    parser.add_argument("--rows", type=int, default=200, help="test rows that are timed")
    parser.add_argument("--repeats", type=int, default=5, help="times that each batch is run, of which the median counts")
    parser.add_argument("--within", type=float, default=0.003, help="by how much less accuracy counts as the same")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    charged_operations, task = load_run(options.operations, data=options.data)
    charged_time, _ = load_run(options.latency, data=options.data)
    first, second = dial(charged_operations, task), dial(charged_time, task)
    chosen = dict.fromkeys(as_accurate(first, point.score) or point for point in spread(first, options.points))
    pairs = [(point, as_accurate(second, point.score - options.within)) for point in chosen]
    ways: dict[str, Way] = {}
    for n, (point, other) in enumerate(pairs):
        ways[f"operations {n}"] = partial(routed, charged_operations, point.price)
        if other is not None:
            ways[f"time {n}"] = partial(routed, charged_time, other.price)
    generator = torch.Generator().manual_seed(0)
    times = seconds(ways, batches_of(task.load("test"), options.batch, options.rows, "random", generator), options.repeats)
    print(f"batches of {options.batch}, {options.threads} threads, {options.rows} rows, medians of {options.repeats}\n")
    print("| charged operations: accuracy | compute | ms a batch | charged time: accuracy | ms a batch | times as fast |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for n, (point, other) in enumerate(pairs):
        taken = times[f"operations {n}"]
        said = f"| {point.score:.1%} | {point.compute:.3f} | {1e3 * float(taken.mean()):.2f} "
        if other is None:
            print(f"{said}| none is as accurate | | |")
            continue
        ratio, low, high = speed_up(taken, times[f"time {n}"], generator)
        print(f"{said}| {other.score:.1%} | {1e3 * float(times[f'time {n}'].mean()):.2f} | {ratio:.2f} ({low:.2f} to {high:.2f}) |", flush=True)


if __name__ == "__main__":
    main()
