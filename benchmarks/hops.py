"""Hops: what a policy does on data of which it is known how many layers each row needs.

Runs are trained where they are not there yet, one for each agent and seed. Flags that are not its own go to train.py.

    python benchmarks/hops.py
    python benchmarks/hops.py --task hops-16 --agents reinforce --seeds 0
    python benchmarks/hops.py --agents reinforce --seeds 0 --tune all
    python benchmarks/hops.py --ship

The last trains the run that comes with the package, around which `rl_skip/Hops-v0` is made, and puts it there.
"""

import argparse
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.training import trained
from rl_skip.core.seal import seal
from rl_skip.measure.compare.book import RouteBook
from rl_skip.measure.evaluation import best_fixed_route, evaluate
from rl_skip.measure.runs import CONFIG, load_run
from rl_skip.tasks.data_report import DATA
from rl_skip.tasks.shipped import SHIPPED_RUNS

SEARCH_ROWS = 1_000


@dataclass(frozen=True)
class Measured:
    """One run on test data, as exported."""

    name: str
    seconds: float
    accuracy: float
    compute: float
    required_depth: float
    """mean(k) / L."""
    fixed: float
    """Accuracy of the best fixed route within the policy's compute."""
    shuffled: float
    """Accuracy of the policy where every row follows the route chosen for another row."""
    layers: list[float]
    """Layers run by rows of each k, in the mean."""
    right: list[float]
    """Accuracy of rows of each k."""


def measured(run: Path) -> Measured:
    """Measures a run; what is searched is searched on validation data."""
    model, task = load_run(run)
    assert task.required_depth is not None
    validation, test = task.load("validation").take(slice(0, SEARCH_ROWS)), task.load("test")
    policy = evaluate(model.stack, model.policy, task, test, price=model.price)
    exits = model.rules.allow_exit
    route = best_fixed_route(model.stack, task, validation, max_compute=policy.compute, allow_exit=exits)
    fixed = evaluate(model.stack, route, task, test)
    shuffled, _ = RouteBook(model.stack, task, test, allow_exit=exits).shuffled_routes(policy)
    required_depth, run_by_row = task.required_depth(test), policy.route.sum(dim=1).double()
    kinds = [required_depth == k for k in required_depth.unique()]
    return Measured(
        name=run.name,
        seconds=json.loads((run / "report.json").read_text())["seconds"],
        accuracy=policy.score,
        compute=policy.compute,
        required_depth=float(required_depth.double().mean()) / model.stack.depth,
        fixed=fixed.score,
        shuffled=float(shuffled.mean()),
        layers=[float(run_by_row[kind].mean()) for kind in kinds],
        right=[float(policy.correct[kind].mean()) for kind in kinds],
    )


def ship(out: Path) -> Path:
    """Trains the run hops-v0, and puts what is read of it into the package."""
    run, place = trained(out / "hops-v0", "--task", "hops", "--seed", "0", "--price", "0.1"), SHIPPED_RUNS["hops-v0"]
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(run / "policy", place / "policy")
    for name in (CONFIG, DATA):
        shutil.copy(run / name, place)
    seal(place, [CONFIG, DATA])
    return place


def main() -> None:
    """Trains what is not there yet and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--task", default="hops", choices=("hops", "hops-16"))
    parser.add_argument("--agents", nargs="+", default=["reinforce", "ppo"])
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"])
    parser.add_argument("--out", type=Path, default=Path("runs/hops"), help="where the run folders go; those that exist are read, not trained anew")
    parser.add_argument("--ship", action="store_true", help="train the run that comes with the package, and put it there")
    arguments, flags = parser.parse_known_args()
    torch.set_num_threads(1)
    if arguments.ship:
        print(f"{ship(arguments.out)} is what `rl_skip/Hops-v0` is made around")
        return
    kind = "-".join([arguments.task, *(flag.lstrip("-") for flag in flags)])
    runs = []
    for agent in arguments.agents:
        for seed in arguments.seeds:
            options = ["--task", arguments.task, "--agent", agent, "--seed", seed, *flags]
            runs.append(measured(trained(arguments.out / f"{kind}-{agent}-{seed}", *options)))
    print("| run | seconds | accuracy | compute | mean(k) / L | best fixed route | shuffled-routes control |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for run in runs:
        spent = f"{run.seconds:.0f} | {run.accuracy:.1%} | {run.compute:.3f} | {run.required_depth:.3f}"
        print(f"| {run.name} | {spent} | {run.fixed:.1%} | {run.shuffled:.1%} |")
    print("\nLayers run by rows of each k, and how many of them are right:\n")
    print("| run | " + " | ".join(f"k = {k + 1}" for k in range(len(runs[0].layers))) + " |")
    print("| --- | " + " | ".join("---:" for _ in runs[0].layers) + " |")
    for run in runs:
        print(f"| {run.name} | " + " | ".join(f"{layers:.2f}, {right:.0%}" for layers, right in zip(run.layers, run.right, strict=True)) + " |")


if __name__ == "__main__":
    main()
