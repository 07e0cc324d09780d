"""`python -m rl_skip compare`: trains rivals if asked, compares, and writes table, numbers and figures into the run folder."""

import json
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch

from rl_skip.compare.comparison import BUDGETS, compare
from rl_skip.compare.figures import draw_all
from rl_skip.compare.measure import Rows
from rl_skip.compare.result import Comparison
from rl_skip.compare.text import REPORT, markdown
from rl_skip.core.files import atomic_write
from rl_skip.errors import UserError
from rl_skip.runs import read_run

__all__ = ["compare_and_write"]

COMPARED, FIGURES = "compare.json", "figures"


def compare_and_write(
    folders: Sequence[Path],
    *,
    budgets: Iterable[float] | None = None,
    rivals: Iterable[Path] = (),
    train_rivals: bool = False,
    rows: int | None = None,
    data: str | None = None,
    device: torch.device | str = "cpu",
) -> Comparison:
    """Compares as `compare` does, and writes `compare.json`, `compare.md` and `figures/` into the first run's folder.

    Args:
        train_rivals: trains the rivals of each run first, those that are not finished, into `RUN/rivals`.
    """
    budgets = BUDGETS if budgets is None else tuple(budgets)
    if train_rivals:
        for folder in folders:
            read_run(folder)
            _train_rivals(folder, budgets, data)
    comparison = compare(folders, budgets=budgets, rivals=rivals, rows=rows, data=data, device=device)
    folder = folders[0]
    atomic_write(folder / COMPARED, json.dumps(comparison.to_json(), indent=2, ensure_ascii=False) + "\n")
    pictures = _draw(comparison, folder, rows, data)
    atomic_write(folder / REPORT, markdown(comparison, [picture.relative_to(folder) for picture in pictures]))
    return comparison


def _draw(comparison: Comparison, folder: Path, rows: int | None, data: str | None) -> list[Path]:
    """The figures, none without matplotlib; from the checkout they are put into TensorBoard too."""
    if find_spec("matplotlib") is None:
        return []
    run = read_run(folder)
    task = run.load_task(data)
    pictures = draw_all(comparison, folder / FIGURES, task, Rows.load(task, "cpu", rows).test)
    if find_spec("tensorboard") is not None and find_spec("agents") is not None and find_spec("agents.pictures") is not None:
        import_module("agents.pictures").show_comparison(folder, comparison, pictures)
    return pictures


def _train_rivals(folder: Path, budgets: tuple[float, ...], data: str | None) -> None:
    if any(find_spec(name) is None for name in ("agents", "agents.rivals")):
        raise UserError("training rivals needs the folder agents; run python -m rl_skip compare --train-rivals from the checkout")
    import_module("agents.rivals").train_rivals(folder, budgets=budgets, data=data)
