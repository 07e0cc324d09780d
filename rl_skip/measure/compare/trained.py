"""The trained baselines of a run: run folders that hold a curve, or a policy of their own."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields
from rl_skip.core.progress import begin_stage
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.curves import CURVE, Curve, Point, load_curve
from rl_skip.measure.compare.measure import policy_curve
from rl_skip.measure.compare.plan import BASELINES_FOLDER, read_plan
from rl_skip.measure.compare.rows import Rows
from rl_skip.measure.compare.style import SKY
from rl_skip.measure.runs import CONFIG, FORMAT_VERSION, is_run, load_run

__all__ = ["EACH_BUDGET", "ONE_SHOT", "baseline_folders", "missing_baselines", "read_baselines", "seed_of"]

ONE_SHOT = BaselineRecord(
    "one-shot",
    "one-shot policy",
    about="the policy that looks once, at the input",
    advice="train it with train.py --policy-scope input, and where rows go on or leave --readouts --no-jumps",
    trained=True,
    colour=SKY,
    marker="<",
    line=(6, 1.5, 1, 1.5, 1, 1.5),
)
EACH_BUDGET = BaselineRecord(
    "budgets",
    "a policy for each budget",
    about="in place of one whose dial is turned",
    advice="train one for the budget with train.py --budget",
    trained=True,
    per_budget=True,
    marker="d",
    line="--",
)


def seed_of(folder: Path) -> int:
    """The seed of a run, from its `config.json`."""
    return Fields.read(folder / CONFIG, FORMAT_VERSION).integer("seed", low=0)


def baseline_folders(run: Path) -> list[Path]:
    """The folders in the run's own folder of baselines."""
    folder = run / BASELINES_FOLDER
    return sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []


def missing_baselines(run: Path) -> list[str]:
    """A sentence for each baseline that was to be trained for the run and has no folder."""
    return [
        f"{run / BASELINES_FOLDER / folder}, {planned.title}, is not there: {planned.left_out or 'its training has not begun'}"
        for folder, planned in read_plan(run).items()
        if not (run / BASELINES_FOLDER / folder).is_dir()
    ]


def read_baselines(
    folders: Iterable[Path], task: str, rows: Rows, data: str | None, device: torch.device | str, allow_code: bool = False
) -> tuple[list[Curve], list[str]]:
    """One curve for each record, of the points of all folders that hold one of its name.

    Args:
        task: the name of the run's task, and
        rows: what the run is measured on; the baselines must have been trained and measured on the same.
        allow_code: as `load_run` takes it, for those that have a policy.

    Returns:
        The curves, and a sentence for each folder that is left out because it is not finished.
    """
    curves: dict[str, Curve] = {}
    notes: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; set --baselines to folders of finished runs")
        _check_task(folder, task)
        if (folder / CURVE).is_file():
            curve = _on_rows(folder, load_curve(folder), rows)
        elif is_run(folder) and (folder / "policy").is_dir():
            curve = _policy_of(folder, rows, data, device, allow_code)
        else:
            notes.append(f"{folder} has neither a curve nor a policy yet, so it is left out")
            continue
        known = curves.get(curve.record.name)
        curves[curve.record.name] = curve if known is None else _joined(known, curve, folder.name)
    return list(curves.values()), notes


def _policy_of(folder: Path, rows: Rows, data: str | None, device: torch.device | str, allow_code: bool) -> Curve:
    begin_stage(f"{folder}: policy")
    model, task = load_run(folder, data=data, device=device, allow_code=allow_code)
    record = BaselineRecord(f"policy {folder.name}", f"policy {folder.name}", about="another policy", advice="use that one", trained=True)
    if model.rules.scope == "input":
        record = ONE_SHOT
    elif Fields.read(folder / CONFIG, FORMAT_VERSION).object("pricing").get("budget") is not None:
        record = EACH_BUDGET
    return policy_curve(model, task, rows, seed_of(folder), record)


def _check_task(folder: Path, task: str) -> None:
    trained_on = Fields.read(folder / CONFIG, FORMAT_VERSION).object("task").text("name") if is_run(folder) else task
    if trained_on != task:
        raise UserError(f"{folder} was trained on {trained_on}, the run on {task}; name baselines trained on the same data")


def _on_rows(folder: Path, curve: Curve, rows: Rows) -> Curve:
    """The curve of a baseline that was measured on whole splits, on the rows that the run is measured on."""
    splits = []
    for split, points, chosen, total in zip(("validation", "test"), (curve.validation, curve.test), rows.indices, rows.totals, strict=True):
        if not points:
            raise UserError(f"{folder} has no point on {split} data; train the baseline again")
        for point in points:
            if len(point.correct) != total:
                raise UserError(
                    f"{folder} was measured on {len(point.correct)} {split} rows, the run has {total}; name baselines trained on the same data"
                )
        splits.append(
            tuple(
                replace(
                    point, correct=point.correct[chosen], compute=point.compute[chosen], route=None if point.route is None else point.route[chosen]
                )
                for point in points
            )
        )
    return replace(curve, validation=splits[0], test=splits[1])


def _joined(known: Curve, more: Curve, source: str) -> Curve:
    """Both curves' points; a label that is taken already gets the folder's name before it."""
    taken = {point.label for point in known.test}

    def renamed(points: tuple[Point, ...]) -> tuple[Point, ...]:
        return tuple(replace(point, label=f"{source}: {point.label}") if point.label in taken else point for point in points)

    return replace(known, validation=known.validation + renamed(more.validation), test=known.test + renamed(more.test))
