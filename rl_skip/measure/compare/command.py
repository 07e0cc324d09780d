"""What `compare` writes into the run folder: table, numbers and figures."""

import json
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from rl_skip.core.errors import UserError
from rl_skip.core.files import atomic_write
from rl_skip.measure.compare.comparison import BUDGETS, compare
from rl_skip.measure.compare.figures import draw_all
from rl_skip.measure.compare.measured import BASELINES, MeasuredBaseline
from rl_skip.measure.compare.result import Comparison
from rl_skip.measure.compare.rows import Rows
from rl_skip.measure.compare.text import REPORT, markdown
from rl_skip.measure.runs import read_run

__all__ = ["compare_and_write"]

COMPARED, FIGURES = "compare.json", "figures"


def compare_and_write(
    folders: Sequence[Path],
    *,
    budgets: Iterable[float] = BUDGETS,
    baselines: Iterable[Path] = (),
    own: Iterable[str] = (),
    rows: int | None = None,
    data: str | None = None,
    device: torch.device | str = "cpu",
    allow_code: bool = False,
) -> tuple[Comparison, list[Path]]:
    """Compares as `compare` does, and writes `compare.json`, `compare.md` and `figures/` into the first run's folder.

    Args:
        own: baselines that need no training, as `file.py:name`.

    Returns:
        The comparison, and the pictures that were drawn: none without matplotlib.
    """
    named = [_own_baseline(reference) for reference in own]
    comparison = compare(folders, budgets=budgets, baselines=baselines, own=named, rows=rows, data=data, device=device, allow_code=allow_code)
    folder = folders[0]
    atomic_write(folder / COMPARED, json.dumps(comparison.to_json(), indent=2, ensure_ascii=False) + "\n")
    pictures: list[Path] = []
    if find_spec("matplotlib") is not None:
        task = read_run(folder, allow_code=allow_code).load_task(data)
        pictures = draw_all(comparison, folder / FIGURES, task, Rows.load(task, "cpu", rows).test)
    atomic_write(folder / REPORT, markdown(comparison, [picture.relative_to(folder) for picture in pictures]))
    return comparison, pictures


def _own_baseline(reference: str) -> MeasuredBaseline:
    if reference in BASELINES.names():
        raise UserError(f"the baseline {reference!r} is part of every comparison; set --baseline to file.py:name for one of your own")
    baseline = BASELINES.find(reference)
    if not isinstance(baseline, MeasuredBaseline):
        raise UserError(f"{reference} is a {type(baseline).__name__}, not a rl_skip.MeasuredBaseline; set --baseline to one")
    return baseline
