"""Which baselines were to be trained for a run, so that `compare` can say which are missing, and why."""

import json
from dataclasses import dataclass
from pathlib import Path

from rl_skip.core.fields import Fields
from rl_skip.core.files import atomic_write

__all__ = ["BASELINES_FOLDER", "Planned", "read_plan", "write_plan"]

BASELINES_FOLDER = "baselines"
"""Where in a run's folder its baselines are trained."""
PLAN = "plan.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Planned:
    """One baseline of a run."""

    title: str
    """As its record says."""
    left_out: str | None = None
    """Why it was not trained, where it could not be."""


def write_plan(run: Path, plan: dict[str, Planned]) -> None:
    """Writes `RUN/baselines/plan.json`: the baselines by the names of their folders there."""
    listed = [{"folder": folder, "title": planned.title, "left_out": planned.left_out} for folder, planned in plan.items()]
    (run / BASELINES_FOLDER).mkdir(exist_ok=True)
    described = {"format_version": FORMAT_VERSION, "baselines": listed}
    atomic_write(run / BASELINES_FOLDER / PLAN, json.dumps(described, indent=2, ensure_ascii=False) + "\n")


def read_plan(run: Path) -> dict[str, Planned]:
    """Reads what `write_plan` wrote; empty where no baselines were ever trained.

    Raises:
        UserError: if a field is missing or wrong, by name.
    """
    file = run / BASELINES_FOLDER / PLAN
    if not file.is_file():
        return {}
    listed = Fields.read(file, FORMAT_VERSION).objects("baselines")
    return {entry.text("folder"): Planned(entry.text("title"), entry.text_or_none("left_out")) for entry in listed}
