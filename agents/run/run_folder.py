"""The folder of a run: whose it is, what may be replaced, and what the first of several processes writes at the beginning and the end."""

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from agents.agent import find_agent, has_report
from agents.options.config import TrainConfig
from agents.run.owner import LOCK, owning, refuse_owned
from rl_skip.core.errors import UserError
from rl_skip.core.files import atomic_write, remove_unfinished
from rl_skip.core.processes import together
from rl_skip.core.seal import SEAL, seal
from rl_skip.measure.runs import CONFIG, holds_run

__all__ = ["begin", "claim", "end", "is_finished"]

SEALED = (".json", ".jsonl", ".safetensors")
"""Files of a finished run that get a digest; its export and its model have their own, and checkpoints carry theirs in their names."""


def is_finished(folder: Path, agent: str) -> bool:
    """Whether a run folder holds the whole report and the result of its agent."""
    return has_report(folder) and (folder / find_agent(agent).leaves).exists()


def claim(config: TrainConfig, owned: ExitStack) -> None:
    """Makes the folder the first process's own, if it is there, until `owned` ends; the other processes wait until it is.

    Raises:
        UserError: if it is another's, or may not be replaced; it is left as it is.
    """
    folder = config.folder
    if together().first:
        if config.resume is None:
            _refuse_to_replace(folder, config.overwrite)
        if folder.is_dir():
            owned.enter_context(owning(folder))
        if config.resume is not None:
            remove_unfinished(folder)
    together().from_first(None)


def begin(config: TrainConfig, owned: ExitStack) -> None:
    """The folder of a new run, empty but for its options, or that of one that goes on; by the first process.

    Raises:
        UserError: if it cannot be made.
    """
    folder = config.folder
    if config.resume is None:
        if folder.is_dir():
            _empty(folder)
        else:
            _make(folder)
            owned.enter_context(owning(folder))
        atomic_write(folder / CONFIG, json.dumps(config.to_json(), indent=2) + "\n")
    (folder / SEAL).unlink(missing_ok=True)  # until the end, files change


def end(folder: Path) -> None:
    """Seals what a finished run holds; by the first process."""
    seal(folder, sorted(file.name for file in folder.iterdir() if file.suffix in SEALED))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"the run folder {folder} cannot be made ({error.strerror}); name another with --out") from None


def _empty(folder: Path) -> None:
    """Removes all that a run folder holds but its lock; last of all what shows that it is one, for whoever is interrupted here."""
    for child in sorted(folder.iterdir(), key=lambda child: child.name == CONFIG):
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != LOCK:
            child.unlink()


def _refuse_to_replace(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that is in use, one that is not to be overwritten, and one that holds anything but a run."""
    if not os.path.lexists(folder):
        return
    refuse_owned(folder)
    if not overwrite:
        raise UserError(f"the run folder {folder} exists; name another with --out, replace it with --overwrite, or go on with it: --resume {folder}")
    if not holds_run(folder) and (not folder.is_dir() or any(child.name != LOCK for child in folder.iterdir())):
        raise UserError(f"{folder} is not a run folder, so it is not replaced; name another with --out")
