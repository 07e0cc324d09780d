"""Sets the dial of one run beside a run for each single budget: a table, and a picture.

The runs are trained where they are not there yet. Flags that are not its own go to train.py.

    python benchmarks/dial.py digits
    python benchmarks/dial.py speech --data recordings.tar.gz
"""

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.training import trained
from rl_skip.measure.evaluation import Evaluation, evaluate
from rl_skip.measure.runs import load_run, read_run

BUDGETS = (0.25, 0.375, 0.5, 0.75)
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"  # Okabe and Ito's palette, apart for the colour-blind too
SMALLEST_GAP = 0.01
"""A budget below the smallest compute of a dial, by the decisions' cost alone, gets that compute."""


def on_test(run: Path, budget: float | None = None) -> Evaluation:
    """The run's policy on test data, its dial set to a budget, or as the run left it."""
    model, task = load_run(run)
    if budget is not None:
        model.budget = max(budget, model.table.points[0].compute if budget > model.table.points[0].compute - SMALLEST_GAP else budget)
    return evaluate(model.stack, model.policy, task, task.load("test"), price=model.price)


def full_depth(run: Path) -> Evaluation:
    """Every layer on test data."""
    model, task = load_run(run)
    return evaluate(model.stack, torch.ones(model.stack.depth, dtype=torch.bool), task, task.load("test"))


def draw(title: str, score_name: str, dial: list[Evaluation], single: list[Evaluation], full: Evaluation, file: Path) -> None:
    """Score against compute of the dial and of the single runs."""
    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    axes.plot([point.compute for point in dial], [point.score for point in dial], "o-", color=BLUE, ms=9, label="one run, its dial turned")
    axes.plot([point.compute for point in single], [point.score for point in single], "D", color=ORANGE, ms=7, label="a run for each budget")
    for budget, point in zip(BUDGETS, single, strict=True):
        axes.annotate(f"{budget:g}", (point.compute, point.score), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=8, color=ORANGE)
    axes.plot([full.compute], [full.score], "*", color=GREEN, ms=13, label="full depth of the dial's network")
    lowest = min(point.score for point in (*dial, *single, full))
    axes.set(xlabel="compute, share of the whole stack", ylabel=score_name, title=title, xlim=(0, 1.08), ylim=(min(lowest - 0.02, 0.9), 1.005))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=9, frameon=False)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def main() -> None:
    """Trains what is not there yet, prints the table and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", help="digits, speech, images or file.py:function")
    parser.add_argument("--data", help="where the task's data are")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--agent", default="reinforce")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="where the run folders go; those that exist are read, not trained anew")
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"))
    arguments, more_flags = parser.parse_known_args()
    name = f"{arguments.task.rpartition(':')[2]}-{arguments.agent}"
    flags = ["--task", arguments.task, "--agent", arguments.agent, "--seed", arguments.seed, *more_flags]
    flags += ["--data", arguments.data] if arguments.data else []
    run = trained(arguments.out / f"{name}-{arguments.seed}", *flags)
    dial = [on_test(run, budget) for budget in BUDGETS]
    runs = [trained(arguments.out / f"{name}-budget-{budget:g}-{arguments.seed}", *flags, "--budget", str(budget)) for budget in BUDGETS]
    single = [on_test(run) for run in runs]
    score_name = read_run(run).load_task().score_name
    print(f"| budget | dial, {score_name} | at compute | a run for this budget | at compute |", "| ---: | ---: | ---: | ---: | ---: |", sep="\n")
    for budget, dialled, own in zip(BUDGETS, dial, single, strict=True):
        print(f"| {budget:g} | {dialled.score:.1%} | {dialled.compute:.3f} | {own.score:.1%} | {own.compute:.3f} |")
    arguments.figures.mkdir(parents=True, exist_ok=True)
    draw(f"{name}, {dial[0].rows} test rows", score_name, dial, single, full_depth(run), arguments.figures / f"dial-{name}-{arguments.seed}.png")


if __name__ == "__main__":
    main()
