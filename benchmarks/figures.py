"""Draws the pictures of docs/figures from finished runs: how the reward grows, and accuracy against compute.

python benchmarks/figures.py runs/digits-reinforce-0 --out docs/figures
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rl_skip.core.task import score_key
from rl_skip.measure.evaluation import all_routes, evaluate, evaluate_routes
from rl_skip.measure.runs import load_run, read_run

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#999999"  # Okabe and Ito's palette, apart for the colour-blind too


def draw_reward(axes: Axes, run: Path) -> None:
    """Reward, score and compute of the sampled routes over the joint training."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "rollout/compute" in line]
    steps = [line["step"] for line in lines]
    name = read_run(run).load_task().score_name
    curves = (("ep_rew_mean", "reward", BLUE, "-"), (score_key(name), name, GREEN, "--"), ("compute", "compute", ORANGE, "-."))
    for tag, label, colour, style in curves:
        values = [line[f"rollout/{tag}"] for line in lines]
        axes.plot(steps, values, style, color=colour, lw=1.8)
        end, text = (steps[-1], values[-1]), f"{label} {values[-1]:.2f}"
        axes.annotate(text, end, xytext=(4, 0), textcoords="offset points", color=colour, va="center", fontsize=9)
    axes.set(xlabel="update", title="while it learns, training data", ylim=(0, 1.05), xlim=(steps[0], steps[-1] * 1.18))


def draw_trade_off(axes: Axes, run: Path) -> None:
    """Score against compute on test data: the policy at prices over its range, and every fixed route."""
    model, task = load_run(run)
    test, rules = task.load("test"), model.rules
    correct, compute = evaluate_routes(model.stack, task, test, all_routes(rules.layout.depth, rules.allow_exit))
    scores = correct.mean(dim=1)
    axes.scatter(compute.mean(dim=1), scores, s=14, color=GREY, alpha=0.6, label="each fixed route, every row on it")
    axes.scatter([1.0], [scores[-1]], s=90, marker="*", color=GREEN, label="full depth", zorder=4)
    low, high = rules.layout.price_low, rules.layout.price_high
    prices = [low * (high / low) ** (k / 16) for k in range(17)]
    dial = [evaluate(model.stack, model.policy, task, test, price=price) for price in prices]
    axes.plot([point.compute for point in dial], [point.score for point in dial], "o-", color=BLUE, ms=6, label="the policy, 17 prices", zorder=3)
    lowest = min(float(scores.min()), min(point.score for point in dial))
    axes.set(xlabel="compute, share of the whole stack", ylabel=task.score_name, title=f"{task.name}, {len(test)} test rows", xlim=(0, 1.08))
    axes.set_ylim(min(lowest - 0.01, 0.9), 1.0)
    axes.legend(loc="lower center", fontsize=8, frameon=False)


def main() -> None:
    """Draws both pictures of each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for run in arguments.runs:
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
        draw_reward(left, run)
        draw_trade_off(right, run)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(arguments.out / f"{run.name}.png", dpi=130)
        plt.close(figure)


if __name__ == "__main__":
    main()
