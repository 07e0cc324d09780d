"""Options that suit a task: what `train.py --task` takes where a flag is not given."""

from dataclasses import replace
from typing import Any

from agents.config import TrainConfig

__all__ = ["PRESETS", "for_task"]

PRESETS: dict[str, dict[str, Any]] = {}
"""For each task that has some, the parts of `TrainConfig` that differ from its defaults."""


def for_task(task: str | None) -> TrainConfig:
    """The options of a task before any flag is read; None: of the task that is the default.

    Example:
        >>> for_task("digits") == TrainConfig(task="digits")
        True
    """
    return TrainConfig() if task is None else replace(TrainConfig(task=task), **PRESETS.get(task, {}))
