"""A finished run with readouts by the clock: how many times as fast as the bare fine-tuned model at given computes.

For each compute the price that spends the most within it on validation data is chosen. The bare model is the one in the run's `model`
folder, called as transformers calls it, tokens made beforehand. All ways get the same batches of test rows, padded to the longest row of the
batch, and take turns on each. `--order random` deals the rows as they come; `length` puts rows of like length together, as a server that waits
for more requests would. Times as fast: the bare model's time for all batches over the policy's, with a 95% interval over batches.

    python benchmarks/clock.py RUN [--computes 0.33 0.5] [--batches 1 8 32] [--threads 2] [--order random]
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.exits import PRICES, SLACK
from benchmarks.updates import plain_forward
from rl_skip.attached.pretrained import load_model
from rl_skip.core.clock import seconds_per_batch
from rl_skip.core.inputs import Inputs, by_length
from rl_skip.core.task import Examples, Task
from rl_skip.export.policy_folder import SkipModel
from rl_skip.measure.every_price import evaluate_prices
from rl_skip.measure.runs import MODEL, load_run

RESAMPLES = 2_000
Way = Callable[[Inputs], Tensor]


def price_within(model: SkipModel, task: Task, allowed: float) -> float:
    """The price at which the policy spends the most within `allowed` on validation rows."""
    measured = evaluate_prices(model.stack, model.policy, task, task.load("validation"), PRICES)
    within = [at for at in measured if at.compute <= allowed + SLACK]
    if not within:
        raise SystemExit(f"no price brings the policy's compute down to {allowed:g} on validation data; leave it out of --computes")
    return max(within, key=lambda at: (round(at.compute, 4), at.score)).price


def batches_of(test: Examples, size: int, rows: int, order: str, generator: torch.Generator) -> list[Inputs]:
    """Batches of `size` test rows, `rows` in all, in random order or of like length."""
    chosen = torch.randperm(len(test), generator=generator)[:rows]
    if order == "length":
        chosen = chosen[by_length(test.take(chosen).inputs)]
    return [test.take(part).inputs for part in chosen.split(size) if len(part) == size]


def seconds(ways: dict[str, Way], batches: list[Inputs], repeats: int) -> dict[str, Tensor]:
    """(N,) for each way, the median time of each of N batches."""
    found = [seconds_per_batch({name: partial(way, batch) for name, way in ways.items()}, torch.device("cpu"), repeats) for batch in batches]
    return {name: torch.tensor([times[name] for times in found], dtype=torch.float64) for name in ways}


def speed_up(bare: Tensor, routed: Tensor, generator: torch.Generator) -> tuple[float, float, float]:
    """How many times less all batches take together, with the ends of its 95% bootstrap interval over batches."""
    drawn = torch.randint(len(bare), (RESAMPLES, len(bare)), generator=generator)
    low, high = (bare[drawn].sum(dim=1) / routed[drawn].sum(dim=1)).quantile(torch.tensor([0.025, 0.975], dtype=bare.dtype)).tolist()
    return (bare.sum() / routed.sum()).item(), low, high


@torch.no_grad()
def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run on a model from transformers, with --readouts")
    parser.add_argument("--data")
    parser.add_argument("--computes", type=float, nargs="+", default=[0.33, 0.5])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="rows in a batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--order", choices=("random", "length"), default="random")
    parser.add_argument("--rows", type=int, default=480, help="test rows that are timed at each size")
    parser.add_argument("--repeats", type=int, default=5, help="times that each batch is run, of which the median counts")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, task = load_run(options.run, data=options.data)
    if model.stack.readouts is None or not (options.run / MODEL).is_dir():
        raise SystemExit(f"{options.run} has no readouts, or no model from transformers; name a run of --task text --readouts")
    bare = load_model(str(options.run / MODEL), task.classes).eval()
    model.eval()
    test = task.load("test")
    spent: dict[str, list[Tensor]] = {}

    def routed(name: str, price: float, inputs: Inputs) -> Tensor:
        model.price = price
        outputs = model(inputs)
        assert model.last is not None
        spent.setdefault(name, []).append(model.last.compute)
        return outputs

    ways: dict[str, Way] = {"bare": partial(plain_forward, bare)}
    for allowed in options.computes:
        ways[f"{allowed:g}"] = partial(routed, f"{allowed:g}", price_within(model, task, allowed))
    print(f"{options.threads} threads, rows in {options.order} order, medians of {options.repeats}\n")
    print("| rows in a batch | bare model, ms |", " | ".join(f"times as fast at {allowed:g} | its compute" for allowed in options.computes), "|")
    print("| ---: | ---: |" + " ---: | ---: |" * len(options.computes))
    for size in options.batches:
        generator = torch.Generator().manual_seed(0)  # the same rows at each size
        batches = batches_of(test, size, max(options.rows, size), options.order, generator)
        spent.clear()
        times = seconds(ways, batches, options.repeats)
        cells = []
        for name in list(ways)[1:]:
            ratio, low, high = speed_up(times["bare"], times[name], generator)
            cells.append(f"{ratio:.2f} ({low:.2f} to {high:.2f}) | {torch.cat(spent[name]).mean().item():.3f}")
        print(f"| {size} | {1e3 * times['bare'].mean().item():.1f} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
