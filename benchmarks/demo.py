"""What `make demo` ends with: a run with readouts in a table and a picture, beside what needs no policy and the fine-tuned model that it began as.

    python benchmarks/demo.py RUN [--rows N]

Writes `demo.md` and `demo.png` into the run folder. In the table the policy's price, the threshold and the layer after which all rows leave are
chosen on validation data, each the best within the compute allowed, and looked up on test data. The picture shows every setting; nothing is chosen.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import load_file
from torch import Tensor

from agents.run.start import START
from benchmarks.exits import PRICES, THRESHOLDS, Exits, exits_of, policy_leaves
from rl_skip.core.errors import UserError
from rl_skip.core.files import atomic_write
from rl_skip.core.task import Task
from rl_skip.export.policy_folder import SkipModel
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.curves import Curve, Point
from rl_skip.measure.compare.figures import draw_panel, label_beside
from rl_skip.measure.compare.measure import THE_POLICY
from rl_skip.measure.compare.measured import BASELINES, THRESHOLD
from rl_skip.measure.compare.result import FULL_DEPTH, CurvePoint, ScoreCurve
from rl_skip.measure.compare.rows import Rows
from rl_skip.measure.compare.statistics import Bootstrap, best_within
from rl_skip.measure.compare.style import ORANGE, VERMILLION, new_figure, save, title
from rl_skip.measure.compare.trained import seed_of
from rl_skip.measure.evaluation import evaluate
from rl_skip.measure.runs import load_run, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPUTES = (0.18, 0.26, 0.34, 0.51, 0.68, 1.01)
"""A sixth, a quarter, a third, a half, two thirds and all of the layers; the rest is for readouts and decisions, so that a fixed layer fits in."""
OPERATING = 0.34
"""The compute at which the policy is set beside the others in words."""
APART = 0.04
"""How much two points of a drawn curve differ in compute at least: they are more settings than can be seen."""
LAYER = BaselineRecord("layer", "all rows leave after the same layer", colour=ORANGE, marker="s", line="--")
FINE_TUNED = BaselineRecord("fine-tuned", "fine-tuned model, as it began", colour=VERMILLION, marker="P", line="")


def curves_of(model: SkipModel, task: Task, rows: Rows, start: Path, seed: int = 0) -> tuple[Curve, ...]:
    """The policy, one threshold, leaving after each layer, full depth, and the fine-tuned model, which is what the network is afterwards.

    Args:
        start: the file in which the run left the network as its warm-up ended.

    Raises:
        UserError: if the network has no readouts, or the file is missing.
    """
    if model.stack.readouts is None:
        raise UserError("the run's network has no readouts, so no row can leave early; name a run that was trained with --readouts --no-jumps")
    if not start.is_file():
        raise UserError(f"there is no {start}, in which a run leaves the fine-tuned model; name the folder of a finished run")
    splits = [exits_of(model, examples, task.score) for examples in rows.both()]
    curves = [
        _curve(
            THE_POLICY,
            seed,
            [[_point(f"price {p:.4g}", *x.rows_at(policy_leaves(model, x, p), x.policy_compute)) for p in PRICES] for x in splits],
        ),
        _curve(
            BASELINES.find(THRESHOLD).record,
            seed,
            [[_point(f"threshold {t:.4g}", *x.rows_at(x.entropy < t, x.threshold_compute)) for t in THRESHOLDS] for x in splits],
        ),
        _curve(LAYER, seed, [[_after(k, x, model) for k in range(model.stack.depth - 1)] for x in splits]),
        _curve(BASELINES.find(FULL_DEPTH).record, seed, [[_point("every layer", x.score[:, -1], torch.ones(len(x.score)))] for x in splits]),
    ]
    model.stack.load_state_dict({name.removeprefix("stack."): tensor for name, tensor in load_file(start).items() if name.startswith("stack.")})
    everything = torch.ones(model.stack.depth, dtype=torch.bool)
    began = [evaluate(model.stack, everything, task, examples) for examples in rows.both()]
    return *curves, _curve(FINE_TUNED, seed, [[_point("every layer", found.correct, found.compute_by_row)] for found in began])


def _curve(record: BaselineRecord, seed: int, splits: list[list[Point]]) -> Curve:
    validation, test = splits
    return Curve(record, seed, tuple(validation), tuple(test))


def _point(label: str, correct: Tensor, compute: Tensor) -> Point:
    return Point(label, None, None, correct, compute)


def _after(k: int, exits: Exits, model: SkipModel) -> Point:
    """All rows leave after layer k, and of the readouts only that one is run."""
    readout = exits.threshold_compute[:, 0] - model.stack.layer_costs[0].cpu()  # (N,), what one costs
    return _point(f"layer {k + 1}", exits.score[:, k], exits.threshold_compute[:, k] - k * readout)


def chosen(curve: Curve, compute: float) -> Point | None:
    """The point on test data that validation data choose within a compute; None where none is so cheap."""
    n = best_within(curve.validation, compute)
    return None if n is None else curve.test[n]


def table(curves: Sequence[Curve]) -> list[str]:
    """Markdown: for each compute allowed the score on test data, and the compute that it took."""
    lines = ["| compute allowed | " + " | ".join(f"{compute:g}" for compute in COMPUTES) + " |", "| --- |" + " ---: |" * len(COMPUTES)]
    for curve in curves:
        points = [chosen(curve, compute) for compute in COMPUTES]
        cells = ["" if point is None else f"{point.score:.1%} @ {point.mean_compute:.2f}" for point in points]
        lines.append(f"| {curve.record.title} | " + " | ".join(cells) + " |")
    return lines


def in_words(curves: Sequence[Curve], score_name: str) -> list[str]:
    """The policy's lead within the compute `OPERATING` over each of the others; over what runs every layer, at its compute of 1."""
    policy = chosen(curves[0], OPERATING)
    if policy is None:
        return [f"The policy has no point within a compute of {OPERATING:g}."]
    bootstrap = Bootstrap(len(policy.correct), seeds=1)
    found = f"{policy.score:.1%} at {policy.mean_compute:.2f}"
    lines = [f"{score_name.capitalize()} of the policy within a compute of {OPERATING:g}: {found}. Its lead in points (95% interval over rows):"]
    for curve in curves[1:]:
        other = curve.test[0] if len(curve.test) == 1 else chosen(curve, OPERATING)
        if other is None:
            continue
        lead = bootstrap.interval((policy.correct - other.correct).unsqueeze(0))
        points = " to ".join(f"{100 * end:+.1f}" for end in (lead.low, lead.high))
        lines.append(f"- {100 * lead.value:+.1f} ({points}) over {curve.record.title}, {other.score:.1%} at {other.mean_compute:.2f}")
    return lines


def apart(points: Sequence[Point]) -> list[Point]:
    """The points by ascending compute, without those that are nearly as cheap as the one before."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: point.mean_compute):
        if not kept or point.mean_compute >= kept[-1].mean_compute + APART:
            kept.append(point)
    return kept


def draw(curves: Sequence[Curve], name: str, score_name: str) -> "Figure":
    """Score over compute on test data at every price, threshold and layer, with 95% bands."""
    rows = len(curves[0].test[0].correct)
    bootstrap = Bootstrap(rows, seeds=1)
    drawn = []
    for curve in curves:
        points = [CurvePoint(p.label, p.mean_compute, bootstrap.interval(p.correct.unsqueeze(0))) for p in apart(curve.test)]
        drawn.append(ScoreCurve(curve.record, tuple(points)))
    figure = new_figure(8.2, 4.4)
    axes = figure.subplots()
    note = f"{rows} test rows, seed {curves[0].seed}; each point is one price, threshold or layer, none chosen; bands are 95% intervals over rows"
    title(figure, f"{score_name.capitalize()} for the compute spent: {name}", note)
    draw_panel(axes, drawn)
    axes.set_ylabel(f"{score_name} on test data")
    label_beside(axes, drawn)
    return figure


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and draws. Returns the exit code: 2 for a user's mistake, printed in one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, help="rows of each split to measure on, drawn at random but always the same; default: all")
    options = parser.parse_args(arguments)
    try:
        run = read_run(options.run)
        model, task = load_run(options.run)
        name = task.name if run.data is None else Path(run.data).name
        curves = curves_of(model, task, Rows.load(task, "cpu", options.rows), options.run / START, seed_of(options.run))
        report = [*table(curves), "", *in_words(curves, task.score_name)]
        picture = save(draw(curves, name, task.score_name), options.run / "demo.png")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    atomic_write(options.run / "demo.md", "\n".join(report) + "\n")
    print(*report, "", f"the table is in {options.run / 'demo.md'}, the picture in {picture}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
