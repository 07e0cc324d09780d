"""Atomic writes: a file or a folder is there whole or not at all."""

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from rl_skip.core.errors import UserError

__all__ = ["atomic_replace", "atomic_write", "refuse_links", "remove_unfinished"]

UNFINISHED = re.compile(r"\..+\.\d+\.tmp|\..+-\d+-\w{8}")
"""Names of what is being written, each with the process that writes it; a process that was killed leaves them."""


def atomic_write(file: Path, content: bytes | str) -> None:
    """Writes a file so that, whatever happens, either the old content is there or all of the new.

    Written beside, flushed to the disk, renamed over. Text is written as UTF-8.

    Raises:
        UserError: if it cannot be written.
    """
    beside = file.with_name(f".{file.name[::-1]}.{os.getpid()}.tmp")  # reversed, so that no search by name finds it
    try:
        with beside.open("wb") as opened:
            opened.write(content.encode() if isinstance(content, str) else content)
            opened.flush()
            os.fsync(opened.fileno())
        beside.replace(file)
    except OSError as error:
        with suppress(OSError):  # the room that it takes
            beside.unlink()
        advice = "make room, then run the command again, train.py with --resume"
        raise UserError(f"{file} cannot be written ({error.strerror}); {advice}") from None


def refuse_links(folder: Path) -> None:
    """Raises `UserError` if a folder is a link or holds one: what is copied from it, to be given away, could be any file of the person's."""
    link = next((place for place in (folder, *sorted(folder.rglob("*"))) if place.is_symlink()), None)
    if link is not None:
        raise UserError(f"{link} is a link, and what it leads to is not copied; put the file itself there")


def atomic_replace(folder: Path, fill: Callable[[Path], None], *, overwrite: bool = False) -> None:
    """Makes a folder beside its place, lets `fill` write into it, and renames it into place.

    Args:
        folder: what to make; its parents are made too.
        fill: is given the empty folder.
        overwrite: replaces what is there.

    Raises:
        UserError: if something is in its place that may not be overwritten.
    """
    if not overwrite and (folder.is_symlink() or folder.exists()):
        raise UserError(f"{folder} exists and is left as it is; name another folder, or overwrite it with overwrite=True")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-{os.getpid()}-") as staging:
        new, old = Path(staging, "new"), Path(staging, "old")
        new.mkdir()
        fill(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def remove_unfinished(folder: Path) -> None:
    """Removes what killed processes were writing into a folder that nobody but the caller writes into."""
    for child in folder.iterdir() if folder.is_dir() else ():
        if not UNFINISHED.fullmatch(child.name):
            continue
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
