"""Runs with readouts that differ in their seed, at given computes: the policy beside every baseline, mean and interval over seeds and rows.

    python benchmarks/exits.py RUN [RUN ...] [--computes 0.25 0.33 0.5 0.67]

Of each way the setting that spends the most within a compute on validation data is chosen, for each seed, and looked up on test data; of settings
that spend the same the one of the best score there. A pass through all layers of each split says what every exit answers, so no other pass is
needed; it is kept in the run's folder. Trained baselines are those in RUN/baselines.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents.run.start import START
from rl_skip.core.exits import left_at
from rl_skip.measure.compare.curves import Point
from rl_skip.measure.compare.leaving import ExitTable, agreed, exit_table, one_threshold, threshold_for_each_exit
from rl_skip.measure.compare.rows import Rows
from rl_skip.measure.compare.statistics import Bootstrap, p_value
from rl_skip.measure.compare.trained import baseline_folders, read_baselines
from rl_skip.measure.evaluation import evaluate
from rl_skip.measure.every_price import ExitOutcomes, exit_outcomes
from rl_skip.measure.runs import load_run, read_run

PRICES = [0.002 * 1.06**n for n in range(145)]
"""Of the dial; 0.002 to 9."""
BASELINE_PRICES = [0.01 * 1.35**n for n in range(20)]
"""For which a threshold for each exit is sought; 0.01 to 3."""
KEPT = "exits.safetensors"
COMPUTES = (0.25, 0.33, 0.5, 0.67)
SLACK = 0.005
"""How much more may be spent, so that two layers of six are within 0.33."""
POLICY = "policy"
Curve = tuple[list[Point], list[Point]]
"""The same ways to run a network on validation and on test rows."""


def passed(folder: Path, data: str | None) -> tuple[dict[str, Tensor], Rows, str]:
    """What one pass over both splits shows of a run's network, as kept in its folder. Returns it, the rows, and what a score is called.

    Before each name stands its split; `start` is the score on test rows of the network that the policy's training began with.
    """
    task = read_run(folder).load_task(data)
    rows = Rows.load(task, "cpu")
    file, policy = folder / KEPT, folder / "policy" / "policy.safetensors"
    if file.is_file() and file.stat().st_mtime > policy.stat().st_mtime:
        return load_file(file), rows, task.score_name
    model, task = load_run(folder, data=data)
    kept: dict[str, Tensor] = {}
    for split, examples in zip(("validation", "test"), rows.both(), strict=True):
        table = exit_table(model.stack, task, examples)
        kept |= {f"{split}.{field.name}": getattr(table, field.name).contiguous() for field in fields(table)}
        outcomes = exit_outcomes(model.stack, model.policy, task, examples)
        if outcomes is None:
            raise SystemExit(f"the policy of {folder} does more than leaving; set it beside others with python -m rl_skip compare {folder}")
        kept |= {f"{split}.policy.{name}": column.contiguous() for name, column in vars(outcomes).items()}
    if (folder / START).is_file():
        weights = {name.removeprefix("stack."): tensor for name, tensor in load_file(folder / START).items() if name.startswith("stack.")}
        model.stack.load_state_dict(weights)
        full = torch.ones(model.stack.depth, dtype=torch.bool)
        kept["test.start"] = evaluate(model.stack, full, task, rows.test).correct.float()
    save_file(kept, file)
    return kept, rows, task.score_name


def curves_of(folder: Path, data: str | None) -> tuple[dict[str, Curve], Tensor | None, str]:
    """Every way to run a run's network, and its trained baselines, by their titles."""
    kept, rows, score_name = passed(folder, data)
    tables = [ExitTable(*(kept[f"{split}.{field.name}"] for field in fields(ExitTable))) for split in ("validation", "test")]
    seen = [ExitOutcomes(*(kept[f"{split}.policy.{field.name}"] for field in fields(ExitOutcomes))) for split in ("validation", "test")]
    model, _ = load_run(folder, data=data)

    def points(label: str, layers: Sequence[Tensor], compute: Sequence[Tensor]) -> list[Point]:
        rows_at = [layer.unsqueeze(1) for layer in layers]
        each = zip(tables, rows_at, compute, strict=True)
        return [Point(label, None, None, table.score.gather(1, at).squeeze(1), spent.gather(1, at).squeeze(1)) for table, at, spent in each]

    def curve(ways: list[list[Point]]) -> Curve:
        return [way[0] for way in ways], [way[1] for way in ways]

    def by_policy(price: float) -> list[Point]:
        measured = [outcomes.evaluation(model.policy, price) for outcomes in seen]
        return [Point(f"price {price:.4g}", price, None, at.correct, at.compute_by_row) for at in measured]

    asked, alone = [t.asked for t in tables], [t.alone for t in tables]
    depth = tables[0].score.shape[1]
    thresholds = [[threshold] * (depth - 1) for threshold in one_threshold(tables[0].entropy, 150)]
    each = [threshold_for_each_exit(tables[0], price) for price in BASELINE_PRICES]
    named = {
        POLICY: [by_policy(price) for price in PRICES],
        "one threshold for all exits": [points("", [left_at(t.entropy < torch.tensor(limit)) for t in tables], asked) for limit in thresholds],
        "a threshold for each exit": [points("", [left_at(t.entropy < torch.tensor(limits)) for t in tables], asked) for limits in each],
        "patience": [points("", [left_at(agreed(t.answer)[:, :-1] >= steps) for t in tables], asked) for steps in range(1, depth - 1)],
        "all rows leave after one layer": [points("", [torch.full_like(t.answer[:, 0], k) for t in tables], alone) for k in range(depth)],
    }
    curves = {title: curve(ways) for title, ways in named.items()}
    folders = [baseline for baseline in baseline_folders(folder) if (baseline / "curve.json").is_file()]
    trained, _ = read_baselines(folders, read_run(folder).task, rows, data, "cpu")
    curves |= {found.record.title: (list(found.validation), list(found.test)) for found in trained}
    return curves, kept.get("test.start"), score_name


def chosen(curves: list[dict[str, Curve]], title: str, compute: float) -> list[Point] | None:
    """For each seed the test point that spends the most within a compute on validation rows; None where a seed has none."""
    points = []
    for seed in curves:
        validation, test = seed.get(title, ([], []))
        within = [n for n, point in enumerate(validation) if point.mean_compute <= compute + SLACK]
        if not within:
            return None
        points.append(test[max(within, key=lambda n: (round(validation[n].mean_compute, 4), validation[n].score))])
    return points


@torch.no_grad()
def print_tables(folders: Sequence[Path], computes: Sequence[float], data: str | None = None) -> None:
    """Prints what each exit scores, every way at every compute, and by how much the policy leads each of them."""
    found = [curves_of(folder, data) for folder in folders]
    curves, score_name = [seed for seed, _, _ in found], found[0][2]
    titles = list(dict.fromkeys(title for seed in curves for title in seed))
    alone = [[point.score for point in seed["all rows leave after one layer"][1]] for seed in curves]
    depth = len(alone[0])
    print(f"| {score_name} of all rows that leave after layer |", " | ".join(str(k + 1) for k in range(depth)), "|")
    print("| --- |" + " ---: |" * depth)
    for folder, scores in zip(folders, alone, strict=True):
        print(f"| {folder.name} |", " | ".join(f"{score:.1%}" for score in scores), "|")
    if all(start is not None for _, start, _ in found):
        begun = [float(start.double().mean()) for _, start, _ in found if start is not None]
        print("\nThe network that the policy's training began with:", ", ".join(f"{score:.1%}" for score in begun) + ".")
    bootstrap = Bootstrap(len(curves[0][POLICY][1][0].correct), len(curves))
    print("\n| relative compute allowed |", " | ".join(f"{compute:g}" for compute in computes), "|")
    print("| --- |" + " ---: |" * len(computes))
    leads = []
    for title in titles:
        cells, lead = [], []
        for compute in computes:
            points, policy = chosen(curves, title, compute), chosen(curves, POLICY, compute)
            if points is None:
                cells.append("")
                lead.append("")
                continue
            at = sum(point.mean_compute for point in points) / len(points)
            interval = bootstrap.interval(torch.stack([point.correct for point in points]))
            cells.append(f"{interval.value:.1%} ± {100 * interval.half_width:.1f} @ {at:.2f}")
            if policy is None or title == POLICY:
                lead.append("")
                continue
            difference = torch.stack([mine.correct - other.correct for mine, other in zip(policy, points, strict=True)])
            between = bootstrap.interval(difference)
            lead.append(f"{100 * between.value:+.1f} ({100 * between.low:+.1f} … {100 * between.high:+.1f}; p {p_value(difference):.3f})")
        print(f"| {title} |", " | ".join(cells), "|")
        leads.append(f"| {title} | " + " | ".join(lead) + " |")
    print("\n| the policy's lead, in points, over |", " | ".join(f"{compute:g}" for compute in computes), "|")
    print("| --- |" + " ---: |" * len(computes))
    print(*leads[1:], sep="\n")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data")
    parser.add_argument("--computes", type=float, nargs="+", default=COMPUTES)
    options = parser.parse_args()
    print_tables(options.runs, options.computes, options.data)


if __name__ == "__main__":
    main()
