"""The trained rivals of a run: run folders that hold a curve, or a policy of their own."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from rl_skip.compare.curves import CURVE, Curve, Point, load_curve
from rl_skip.compare.measure import Rows, policy_curve
from rl_skip.errors import UserError
from rl_skip.fields import Fields
from rl_skip.runs import CONFIG, FORMAT_VERSION, is_run, load_run

__all__ = ["read_rivals", "rival_folders", "seed_of"]

RIVALS = "rivals"
ONE_SHOT = "one-shot policy"
ONE_BUDGET = "a policy for each budget"


def seed_of(folder: Path) -> int:
    """The seed of a run, from its `config.json`."""
    return Fields.read(folder / CONFIG, FORMAT_VERSION).integer("seed", low=0)


def rival_folders(run: Path) -> list[Path]:
    """What stands in the run's own folder of rivals."""
    return sorted(one for one in (run / RIVALS).iterdir() if one.is_dir()) if (run / RIVALS).is_dir() else []


def read_rivals(folders: Iterable[Path], task: str, rows: Rows, data: str | None, device: torch.device | str) -> tuple[list[Curve], list[str]]:
    """One curve for each kind of rival, of the points of all folders of that kind; other policies stay apart.

    Args:
        task: the name of the run's task, and
        rows: what the run is measured on; the rivals must have been trained and measured on the same.

    Returns:
        The curves, and a sentence for each folder that is left out because it is not finished.
    """
    curves: dict[str, Curve] = {}
    notes: list[str] = []
    for folder in folders:
        _check_task(folder, task)
        if (folder / CURVE).is_file():
            curve = _on_rows(folder, load_curve(folder), rows)
        elif is_run(folder) and (folder / "policy").is_dir():
            curve = _policy_of(folder, rows, data, device)
        else:
            notes.append(f"{folder} has neither a curve nor a policy yet, so it is left out")
            continue
        key = curve.name if curve.kind == "policy" else curve.kind
        known = curves.get(key)
        curves[key] = curve if known is None else _joined(known, curve, folder.name)
    return list(curves.values()), notes


def _policy_of(folder: Path, rows: Rows, data: str | None, device: torch.device | str) -> Curve:
    model, task = load_run(folder, data=data, device=device)
    if model.rules.scope == "input":
        name, kind = ONE_SHOT, "one-shot"
    else:
        budget = Fields.read(folder / CONFIG, FORMAT_VERSION).object("pricing").get("budget")
        name, kind = (f"policy {folder.name}", "policy") if budget is None else (ONE_BUDGET, "budgets")
    return policy_curve(model, task, rows, seed_of(folder), name, kind)


def _check_task(folder: Path, task: str) -> None:
    found = Fields.read(folder / CONFIG, FORMAT_VERSION).object("task").text("name") if is_run(folder) else task
    if found != task:
        raise UserError(f"{folder} was trained on {found}, the run on {task}; name rivals trained on the same data")


def _on_rows(folder: Path, curve: Curve, rows: Rows) -> Curve:
    """The curve of a rival that was measured on whole splits, on the rows that the run is measured on."""
    parts = []
    for split, points, places, whole in zip(("validation", "test"), (curve.validation, curve.test), rows.places, rows.whole, strict=True):
        if not points:
            raise UserError(f"{folder} has no point on {split} data; train the rival again")
        for point in points:
            if len(point.correct) != whole:
                raise UserError(
                    f"{folder} was measured on {len(point.correct)} {split} rows, the run has {whole}; name rivals trained on the same data"
                )
        parts.append(
            tuple(
                replace(
                    point, correct=point.correct[places], compute=point.compute[places], route=None if point.route is None else point.route[places]
                )
                for point in points
            )
        )
    return replace(curve, validation=parts[0], test=parts[1])


def _joined(known: Curve, more: Curve, source: str) -> Curve:
    """Both curves' points; a label that is taken already gets the folder's name before it."""
    taken = {point.label for point in known.test}

    def renamed(points: tuple[Point, ...]) -> tuple[Point, ...]:
        return tuple(replace(point, label=f"{source}: {point.label}") if point.label in taken else point for point in points)

    return replace(known, validation=known.validation + renamed(more.validation), test=known.test + renamed(more.test))
