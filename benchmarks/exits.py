"""Runs with readouts that differ in their seed, at given computes: the policy beside every baseline, mean and interval over seeds and rows.

    python benchmarks/exits.py RUN [RUN ...] [--computes 0.25 0.33 0.5 0.67]

Of each way the setting that spends the most within a compute on validation data is chosen, for each seed, and looked up on test data; of settings
that spend the same the one of the best score there. A pass through all layers of each split says what every exit answers, so no other pass is
needed; it is kept in the run's folder. Trained baselines are those in RUN/baselines. The best exit of each row, by its
score and at its own compute, is a bound for whoever chooses among the exits of this network: it knows the labels of the test rows.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from agents.run.start import START
from rl_skip.core.dial import prices_below
from rl_skip.core.errors import UserError
from rl_skip.core.exits import left_at
from rl_skip.core.features import MOST_CLASSES
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.curves import Curve, Point, price_label
from rl_skip.measure.compare.leaving import ExitTable, agreed, exits_seen, one_threshold, threshold_for_each_class, threshold_for_each_exit
from rl_skip.measure.compare.measure import THE_POLICY
from rl_skip.measure.compare.measured import BASELINES, CLASS_THRESHOLD, EACH_THRESHOLD, PATIENCE, THRESHOLD
from rl_skip.measure.compare.result import FULL_DEPTH, ORACLE
from rl_skip.measure.compare.rows import Rows
from rl_skip.measure.compare.statistics import Bootstrap, p_value
from rl_skip.measure.compare.style import GREEN, ORANGE, VERMILLION
from rl_skip.measure.compare.trained import baseline_folders, read_baselines, seed_of
from rl_skip.measure.evaluation import evaluate
from rl_skip.measure.every_price import ExitOutcomes, shown_by_one_pass
from rl_skip.measure.runs import CONFIG, load_run, read_run

PRICES = [*prices_below(0.003, 200), *(0.002 * 1.03**n for n in range(285))]
"""Of the dial; 0.002 to 9, and where the policy is ever surer to skip."""
BASELINE_PRICES = [0.005 * 1.09**n for n in range(80)]
"""For which a threshold for each exit, or for each class, is sought; 0.005 to 4.5."""
KEPT = "exits.safetensors"
COMPUTES = (0.25, 0.33, 0.5, 0.67)
SLACK = 0.005
"""How much more may be spent, so that two layers of six are within 0.33."""
SPLITS = ("validation", "test")
LAYER = BaselineRecord("layer", "all rows leave after the same layer", colour=ORANGE, marker="s", line="--")
KNOWN = BaselineRecord(ORACLE, "the best exit of each row, its label known", control=True, colour=GREEN, marker="^", line=":")
BEGAN = BaselineRecord("began", "the network at the end of the warm-up", colour=VERMILLION, marker="P", line="")


def warmed_up(folder: Path) -> bool:
    """Whether a run had a warm-up, whose end is one way to run its network."""
    return json.loads((folder / CONFIG).read_text())["schedule"]["warmup_epochs"] > 0


def passed(folder: Path, data: str | None, allow_code: bool = False) -> tuple[dict[str, Tensor], Rows]:
    """What one pass over both splits shows of a run's network, as kept in its folder, and the rows.

    Before each name stands its split; `began` is the score of the network that the policy's training began with.

    Raises:
        UserError: if the policy does more than leaving.
    """
    task = read_run(folder, allow_code=allow_code).load_task(data)
    rows = Rows.load(task, "cpu")
    file, policy = folder / KEPT, folder / "policy" / "policy.safetensors"
    if file.is_file() and file.stat().st_mtime > policy.stat().st_mtime:
        return load_file(file), rows
    model, task = load_run(folder, data=data, allow_code=allow_code)
    kept: dict[str, Tensor] = {}
    for split, examples in zip(SPLITS, rows.both(), strict=True):
        if not shown_by_one_pass(model.stack, model.policy):
            raise UserError(f"the policy of {folder} does more than leaving; set it beside others with python -m rl_skip compare {folder}")
        table, outcomes = exits_seen(model.stack, model.policy, task, examples)
        kept |= {f"{split}.{field.name}": getattr(table, field.name).contiguous() for field in fields(table)}
        kept |= {f"{split}.policy.{name}": column.contiguous() for name, column in vars(outcomes).items()}
    if (folder / START).is_file() and warmed_up(folder):
        weights = {name.removeprefix("stack."): tensor for name, tensor in load_file(folder / START).items() if name.startswith("stack.")}
        if weights.keys() == model.stack.state_dict().keys():  # a network that began with adapters has other weights now
            model.stack.load_state_dict(weights)
            full = torch.ones(model.stack.depth, dtype=torch.bool)
            began = [evaluate(model.stack, full, task, part).correct.float() for part in rows.both()]
            kept |= {f"{split}.began": scores for split, scores in zip(SPLITS, began, strict=True)}
    save_file(kept, file)
    return kept, rows


@dataclass(frozen=True)
class Passed:
    """What one pass over validation and test rows shows of a run's exits, and what is read off it."""

    tables: tuple[ExitTable, ExitTable]
    seed: int

    @property
    def depth(self) -> int:
        return self.tables[0].score.shape[1]

    def leaving(self, label: str, layers: list[Tensor], *, asked: bool) -> list[Point]:
        """Points of validation and test rows that leave after `layers`, (N,) each, having asked every readout on the way or the last alone."""
        points = []
        for table, at in zip(self.tables, layers, strict=True):
            score, spent = (column.gather(1, at.unsqueeze(1)).squeeze(1) for column in (table.score, table.asked if asked else table.alone))
            points.append(Point(label, None, None, score, spent))
        return points

    def below(self, label: str, limits: list[float]) -> list[Point]:
        """Where a row leaves after the first layer whose entropy is below its limit, of L - 1."""
        return self.leaving(label, [left_at(table.entropy < torch.tensor(limits)) for table in self.tables], asked=True)

    def after(self, layer: int, label: str) -> list[Point]:
        """Where all rows leave after the same layer."""
        return self.leaving(label, [torch.full((len(table.score),), layer) for table in self.tables], asked=False)

    def patient(self, layers: int) -> list[Point]:
        """Where a row leaves once its answer has been the same for so many layers more."""
        return self.leaving(f"patience {layers}", [left_at(agreed(table.answer)[:, :-1] >= layers) for table in self.tables], asked=True)

    def below_of_class(self, label: str, limits: Tensor) -> list[Point]:
        """Where a row leaves after the first layer whose entropy is below the limit of the class that it answers, (C,)."""
        last = len(limits) - 1
        leaves = [table.entropy < limits[table.answer[:, :-1].clamp(max=last)] for table in self.tables]
        return self.leaving(label, [left_at(each) for each in leaves], asked=True)

    def best(self, price: float) -> Point:
        """Of test rows, each after the layer that is best for it, its label known."""
        layers = [(table.score - price * table.alone).argmax(1) for table in self.tables]
        return self.leaving(price_label(price), layers, asked=False)[1]

    def curve(self, record: BaselineRecord, ways: list[list[Point]]) -> Curve:
        return Curve(record, self.seed, tuple(way[0] for way in ways), tuple(way[1] for way in ways))


def curves_of(folder: Path, data: str | None = None, *, sought: bool = True, allow_code: bool = False) -> list[Curve]:
    """Every way to run a run's network, the policy first, then what needs no training, then its trained baselines.

    Args:
        folder: the run.
        data: where the data are, if not where the run read them.
        sought: whether a threshold for each exit, and for each class, is sought, which takes longer than all the rest.
        allow_code: whether the Python files that the run names may be run.

    Raises:
        UserError: if the run's policy does more than leaving, or its network has no readouts.
    """
    kept, rows = passed(folder, data, allow_code)
    validation, test = (ExitTable(*(kept[f"{split}.{field.name}"] for field in fields(ExitTable))) for split in SPLITS)
    seen, labels = Passed((validation, test), seed_of(folder)), rows.validation.labels
    folders = [baseline for baseline in baseline_folders(folder) if (baseline / "curve.json").is_file()]
    return [
        _policy_curve(folder, kept, seen, data, allow_code),
        *_untrained_curves(seen, labels.dim() == 1 and not labels.is_floating_point(), sought),
        *([_began(kept, seen)] if "test.began" in kept and warmed_up(folder) else []),
        *read_baselines(folders, read_run(folder, allow_code=allow_code).task, rows, data, "cpu", allow_code)[0],
    ]


def _policy_curve(folder: Path, kept: dict[str, Tensor], seen: Passed, data: str | None, allow_code: bool) -> Curve:
    outcomes = [ExitOutcomes(*(kept[f"{split}.policy.{field.name}"] for field in fields(ExitOutcomes))) for split in SPLITS]
    model, _ = load_run(folder, data=data, allow_code=allow_code)

    def at(price: float) -> list[Point]:
        measured = [split.evaluation(model.policy, price) for split in outcomes]
        return [Point(price_label(price), price, None, each.correct, each.compute_by_row) for each in measured]

    return seen.curve(THE_POLICY, [at(price) for price in PRICES])


def _untrained_curves(seen: Passed, about_classes: bool, sought: bool) -> list[Curve]:
    """Thresholds, patience, all rows after one layer, full depth, and the bound."""
    validation, depth = seen.tables[0], seen.depth
    limits = [(f"threshold {limit:.4g}", [limit] * (depth - 1)) for limit in one_threshold(validation.entropy, len(PRICES))]
    curves = [seen.curve(BASELINES.find(THRESHOLD).record, [seen.below(*way) for way in limits])]
    if sought:
        each = [(price_label(price), threshold_for_each_exit(validation, price)) for price in BASELINE_PRICES]
        curves.append(seen.curve(BASELINES.find(EACH_THRESHOLD).record, [seen.below(*way) for way in each]))
    if depth > 2 and about_classes:
        curves.append(seen.curve(BASELINES.find(PATIENCE).record, [seen.patient(layers) for layers in range(1, depth - 1)]))
    if sought and about_classes and (classes := int(validation.answer.max()) + 1) <= MOST_CLASSES:
        of_class = [(price_label(price), torch.tensor(threshold_for_each_class(validation, classes, price))) for price in BASELINE_PRICES]
        curves.append(seen.curve(BASELINES.find(CLASS_THRESHOLD).record, [seen.below_of_class(*way) for way in of_class]))
    bound = tuple(seen.best(price) for price in PRICES)
    return [
        *curves,
        seen.curve(LAYER, [seen.after(layer, f"layer {layer + 1}") for layer in range(depth - 1)]),
        seen.curve(BASELINES.find(FULL_DEPTH).record, [seen.after(depth - 1, "every layer")]),
        Curve(KNOWN, seen.seed, bound, bound),  # it need not choose on other rows
    ]


def _began(kept: dict[str, Tensor], seen: Passed) -> Curve:
    """The network at the end of the warm-up, every layer of it."""
    points = [Point("every layer", None, None, kept[f"{split}.began"], torch.ones(len(kept[f"{split}.began"]))) for split in SPLITS]
    return seen.curve(BEGAN, [points])


def within(curve: Curve, compute: float) -> Point | None:
    """The test point of the setting that spends the most within a compute on validation rows; None where none is so cheap."""
    found = [n for n, point in enumerate(curve.validation) if point.mean_compute <= compute + SLACK]
    return curve.test[max(found, key=lambda n: (round(curve.validation[n].mean_compute, 4), curve.validation[n].score))] if found else None


def chosen(seeds: Sequence[dict[str, Curve]], name: str, compute: float) -> list[Point] | None:
    """What is chosen within a compute with each seed; None where it was not measured with each, or is not so cheap."""
    points = [within(seed[name], compute) if name in seed else None for seed in seeds]
    return None if any(point is None for point in points) else [point for point in points if point is not None]


@torch.no_grad()
def print_tables(
    folders: Sequence[Path], computes: Sequence[float], data: str | None = None, *, pooled: bool = False, allow_code: bool = False
) -> None:
    """Prints what each exit scores, every way at every compute, and by how much the policy leads each of them.

    Args:
        folders: runs with several seeds, measured on the same rows.
        pooled: the runs are folds instead, whose test rows are taken together.
        allow_code: whether the Python files that the runs name may be run.
    """

    def stacked(scores: list[Tensor]) -> Tensor:
        return torch.cat(scores).unsqueeze(0) if pooled else torch.stack(scores)  # (S, N)

    seeds = [{curve.record.name: curve for curve in curves_of(folder, data, allow_code=allow_code)} for folder in folders]
    titles = {name: curve.record.title for seed in seeds for name, curve in seed.items()}
    policy = THE_POLICY.name
    bootstrap = Bootstrap(*reversed(stacked([seed[policy].test[0].correct for seed in seeds]).shape))
    depth = len(seeds[0][LAYER.name].test) + 1
    began = [BEGAN.name] if all(BEGAN.name in seed for seed in seeds) else []
    columns = [*map(str, range(1, depth + 1)), *(["end of warm-up"] if began else [])]
    print("| test rows that all leave after layer |", " | ".join(columns), "|")
    print("| --- |" + " ---: |" * len(columns))
    for folder, seed in zip(folders, seeds, strict=True):
        points = [point for name in (LAYER.name, FULL_DEPTH, *began) for point in seed[name].test]
        print(f"| {folder.name} |", " | ".join(f"{point.score:.1%}" for point in points), "|")
    rows, leads = [], []
    for name, title in titles.items():
        cells, lead = [], []
        for compute in computes:
            points, mine = chosen(seeds, name, 1.0 if name in (FULL_DEPTH, BEGAN.name) else compute), chosen(seeds, policy, compute)
            if points is None:
                cells.append("")
                lead.append("")
                continue
            interval = bootstrap.interval(stacked([point.correct for point in points]))
            spent = sum(point.mean_compute for point in points) / len(points)
            cells.append(f"{interval.value:.1%} ± {100 * interval.half_width:.1f} @ {spent:.2f}")
            if mine is None:
                lead.append("")
                continue
            difference = stacked([own.correct - other.correct for own, other in zip(mine, points, strict=True)])
            between = bootstrap.interval(difference)
            lead.append(f"{100 * between.value:+.1f} ({100 * between.low:+.1f} … {100 * between.high:+.1f}; p {p_value(difference):.3f})")
        rows.append(f"| {title} | " + " | ".join(cells) + " |")
        leads.append(f"| {title} | " + " | ".join(lead) + " |")
    for title, lines in (("relative compute allowed", rows), ("the policy's lead, in points, over", leads[1:])):
        print(f"\n| {title} |", " | ".join(f"{compute:g}" for compute in computes), "|")
        print("| --- |" + " ---: |" * len(computes))
        print(*lines, sep="\n")
    task = read_run(folders[0], allow_code=allow_code).load_task(data)
    for measure in task.measures(seeds[0][policy].test[0].correct):
        print(f"\n| {measure.replace('_', ' ')}, mean over seeds |", " | ".join(f"{compute:g}" for compute in computes), "|")
        print("| --- |" + " ---: |" * len(computes))
        for name, title in titles.items():
            found = [chosen(seeds, name, 1.0 if name in (FULL_DEPTH, BEGAN.name) else compute) for compute in computes]
            means = [None if points is None else sum(task.measures(point.correct)[measure] for point in points) / len(points) for points in found]
            print(f"| {title} |", " | ".join("" if mean is None else f"{mean:.3f}" for mean in means), "|")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--data")
    parser.add_argument("--computes", type=float, nargs="+", default=COMPUTES)
    parser.add_argument("--allow-code", action="store_true", help="run the Python files that the runs name")
    options = parser.parse_args()
    try:
        print_tables(options.runs, options.computes, options.data, allow_code=options.allow_code)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
