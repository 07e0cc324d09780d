"""The pictures in TensorBoard: trade-off and routes where a run ends, all figures of a comparison where runs are compared."""

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch
from matplotlib.image import imread

from agents.agent import TrainedRun
from agents.run.cards import draw_flow, draw_routes, draw_run_rates, draw_trade_off
from agents.run.curve_files import CurveWriter
from agents.run.learner import Learner
from agents.run.telemetry import Telemetry
from rl_skip.core.files import unwritable
from rl_skip.core.task import score_key
from rl_skip.measure.compare.result import POLICY, Comparison, RoutesTaken
from rl_skip.measure.evaluation import evaluate

__all__ = ["DRAWING", "show_comparison", "show_policy", "show_run_rates"]

COMPARED = "compare"
DRAWING = 2.0
"""Seconds that it takes to draw a finished policy, about."""
THOUSANDTHS = 1000
"""TensorBoard's steps are whole numbers: a compute of 0.25 is step 250."""


def show_policy(run: TrainedRun, learner: Learner, price: float) -> None:
    """Draws what the finished policy has for the compute spent, which layers it runs on validation data and where rows go next; and writes
    its model card and the remarks on it. In processes that write nothing it runs its share of the rows alone."""
    task, rows, step = learner.task, learner.validation, learner.updates
    evaluation = evaluate(learner.stack, learner.policy, task, rows, price=price)
    if run.curves is None:
        return
    taken = RoutesTaken(evaluation.route, evaluation.prediction, evaluation.correct, evaluation.compute_by_row, task.class_of(rows.labels).cpu())
    run.curves.figure("final/trade_off", draw_trade_off(run.report, task.score_name), step)
    run.curves.figure("final/run_rate", draw_routes(taken, task, "validation"), step)
    run.curves.figure("final/flow", draw_flow(taken, "validation"), step)
    card = run.folder / "policy" / "README.md"
    if card.is_file():
        run.curves.text("model_card", card.read_text(encoding="utf-8"), step)
    said = run.report.get("remarks", run.alarms)
    run.curves.text("remarks/end", "\n".join(f"- {remark}" for remark in said) or "Nothing to remark.", step)


def show_run_rates(telemetry: Telemetry) -> None:
    """Draws how often each layer ran over the whole training, earlier sittings included."""
    points = telemetry.run_rates.points
    if points:
        steps = [step for step, _ in points]
        telemetry.figure("layers/run_rates", draw_run_rates(steps, torch.tensor([rates for _, rates in points])), int(steps[-1]))


def show_comparison(folder: Path, comparison: Comparison, pictures: Sequence[Path]) -> None:
    """Writes a comparison for TensorBoard into `RUN/compare`, in place of an older one.

    Each curve is a run of its own below it, with the score on test data at 1000 · compute for a step; the policy's also
    has the pictures.

    Args:
        folder: RUN.
        comparison: what to show.
        pictures: the files that `draw_all` wrote.
    """
    compared, tag = folder / COMPARED, f"compare/{score_key(comparison.score_name)}"
    if compared.is_dir():
        shutil.rmtree(compared)
    for curve in comparison.curves:
        with closing(CurveWriter(compared / curve.record.title)) as writer:
            for point in curve.points:
                writer.add_scalar(tag, point.score.value, round(THOUSANDTHS * point.compute))
            if curve.record.name == POLICY:
                for picture in pictures:
                    writer.add_image(f"compare/{picture.stem}", imread(picture)[..., :3], 0, dataformats="HWC")
            if (fault := writer.curve_file.fault) is not None:
                raise unwritable(compared, fault)
