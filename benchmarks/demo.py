"""What `make demo` ends with: a run with readouts in a table and a picture, beside what needs no policy and the fine-tuned model, its teacher.

    python benchmarks/demo.py RUN

Writes `demo.md` and `demo.png` into the run folder. In the table the policy's price, the threshold and the layer after which all rows leave are
chosen on validation data, each what spends the most within the compute allowed, and looked up on test data. The picture shows every setting.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from agents.run.start import START
from benchmarks.exits import BEGAN, LAYER, curves_of, within
from rl_skip.core.errors import UserError
from rl_skip.core.files import atomic_write
from rl_skip.measure.compare.curves import Curve, Point
from rl_skip.measure.compare.figures import draw_panel, label_beside
from rl_skip.measure.compare.measure import THE_POLICY
from rl_skip.measure.compare.measured import THRESHOLD
from rl_skip.measure.compare.result import FULL_DEPTH, CurvePoint, ScoreCurve
from rl_skip.measure.compare.statistics import Bootstrap
from rl_skip.measure.compare.style import new_figure, save, title
from rl_skip.measure.runs import read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPUTES = (0.18, 0.26, 0.34, 0.51, 0.68, 1.01)
"""A sixth, a quarter, a third, a half, two thirds and all of the layers; the rest is for readouts and decisions, so that a fixed layer fits in."""
OPERATING = 0.34
"""The compute at which the policy is set beside the others in words."""
APART = 0.04
"""How much two points of a drawn curve differ in compute at least: they are more settings than can be seen."""


def shown(folder: Path) -> list[Curve]:
    """The policy, one threshold, leaving after each layer, full depth, and the fine-tuned model that the run began as.

    Raises:
        UserError: if the policy does more than leaving, or the run has not left the model that it began as.
    """
    if not (folder / START).is_file():
        raise UserError(f"there is no {folder / START}, in which a run leaves the fine-tuned model; name the folder of a finished run")
    by_name = {curve.record.name: curve for curve in curves_of(folder, sought=False)}
    if BEGAN.name not in by_name:
        raise UserError(f"the network in {folder / START} has adapters, which this one has no more; show a run without --tune lora")
    by_name[BEGAN.name] = replace(by_name[BEGAN.name], record=replace(BEGAN, title="fine-tuned model, all layers"))
    return [by_name[name] for name in (THE_POLICY.name, THRESHOLD, LAYER.name, FULL_DEPTH, BEGAN.name)]


def table(curves: Sequence[Curve]) -> list[str]:
    """Markdown: for each compute allowed the score on test data, and the compute that it took."""
    lines = ["| compute allowed | " + " | ".join(f"{compute:g}" for compute in COMPUTES) + " |", "| --- |" + " ---: |" * len(COMPUTES)]
    for curve in curves:
        points = [within(curve, compute) for compute in COMPUTES]
        cells = ["" if point is None else f"{point.score:.1%} @ {point.mean_compute:.2f}" for point in points]
        lines.append(f"| {curve.record.title} | " + " | ".join(cells) + " |")
    return lines


def in_words(curves: Sequence[Curve], score_name: str) -> list[str]:
    """The policy's lead within the compute `OPERATING` over each of the others; over what runs every layer, at its compute of 1."""
    policy = within(curves[0], OPERATING)
    if policy is None:
        return [f"The policy has no point within a compute of {OPERATING:g}."]
    bootstrap = Bootstrap(len(policy.correct), seeds=1)
    found = f"{policy.score:.1%} at {policy.mean_compute:.2f}"
    lines = [f"{score_name.capitalize()} of the policy within a compute of {OPERATING:g}: {found}. Its lead in points (95% interval over rows):"]
    for curve in curves[1:]:
        other = curve.test[0] if len(curve.test) == 1 else within(curve, OPERATING)
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
    options = parser.parse_args(arguments)
    try:
        run = read_run(options.run)
        name = run.task if run.data is None else Path(run.data).name
        score_name, curves = run.load_task().score_name, shown(options.run)
        report = [*table(curves), "", *in_words(curves, score_name)]
        picture = save(draw(curves, name, score_name), options.run / "demo.png")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    atomic_write(options.run / "demo.md", "\n".join(report) + "\n")
    print(*report, "", f"the table is in {options.run / 'demo.md'}, the picture in {picture}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
