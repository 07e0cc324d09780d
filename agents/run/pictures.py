"""The figures of `rl_skip.measure.compare` in TensorBoard: the routes where a run ends, all of them where runs are compared."""

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from matplotlib.image import imread
from torch.utils.tensorboard import SummaryWriter

from agents.run.learner import Learner
from rl_skip.core.task import score_key
from rl_skip.measure.compare.figures import draw_flow, draw_run_rate
from rl_skip.measure.compare.result import POLICY, Comparison, RoutesTaken
from rl_skip.measure.evaluation import evaluate

__all__ = ["DRAWING", "show_comparison", "show_routes"]

COMPARED = "compare"
DRAWING = 2.0
"""Seconds that it takes to draw the routes, about."""
THOUSANDTHS = 1000
"""TensorBoard's steps are whole numbers: a compute of 0.25 is step 250."""


def show_routes(writer: SummaryWriter | None, learner: Learner, price: float) -> None:
    """Draws which layers the finished policy runs on validation data, by class, and where it jumps; without a writer runs it alone."""
    task, rows = learner.task, learner.validation
    evaluation = evaluate(learner.stack, learner.policy, task, rows, price=price)
    if writer is None:
        return
    taken = RoutesTaken(evaluation.route, evaluation.prediction, evaluation.correct, evaluation.compute_by_row, task.class_of(rows.labels).cpu())
    writer.add_figure("final/flow", draw_flow(taken, task, "validation"), learner.updates)
    writer.add_figure("final/run_rate", draw_run_rate(taken, task, "validation"), learner.updates)


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
        with closing(SummaryWriter(str(compared / curve.record.title))) as writer:
            for point in curve.points:
                writer.add_scalar(tag, point.score.value, round(THOUSANDTHS * point.compute))
            if curve.record.name == POLICY:
                for picture in pictures:
                    writer.add_image(f"compare/{picture.stem}", imread(picture)[..., :3], 0, dataformats="HWC")
