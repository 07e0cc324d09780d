"""One process at a time writes into a run folder: a lock that ends with the process that holds it."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from errno import EACCES, EAGAIN
from pathlib import Path
from typing import IO

from rl_skip.core.errors import UserError

__all__ = ["LOCK", "owning", "refuse_owned"]

LOCK = ".owner"
"""The file in the run folder: it says who, and its lock, which the operating system takes from a killed process, whether that is still so."""
FAR = 2**30
"""The byte that Windows locks: nobody else may read a locked one, and what is said stands before it."""


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Within it the run folder, which exists, is this process's own.

    Raises:
        UserError: at once, naming the other process, if it is another's.
    """
    file = folder / LOCK
    try:
        opened = _acquired(file)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}), by which a run folder has one owner; name another with --out") from None
    try:
        opened.truncate(0)
        with suppress(OSError):  # on a full disk it is empty, and locked all the same
            opened.write(f"{os.getpid()} {socket.gethostname()} {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n".encode())
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            file.unlink()
        opened.close()


def refuse_owned(folder: Path) -> None:
    """Raises `UserError`, naming the process, if a process owns the run folder; leaves everything as it is."""
    file = folder / LOCK
    if file.is_file() and os.access(file, os.W_OK):
        with file.open("r+b") as opened:
            _lock(opened, file)


def _acquired(file: Path) -> IO[bytes]:
    """The file, opened and locked. An owner that ends takes the file away, so what was locked may be one that is no longer there."""
    while True:
        opened = file.open("a+b", buffering=0)
        try:
            _lock(opened, file)
            if file.exists() and os.path.samestat(os.fstat(opened.fileno()), file.stat()):
                return opened
        except BaseException:
            opened.close()
            raise
        opened.close()


def _lock(opened: IO[bytes], file: Path) -> None:
    """Locks an open file until it is closed, or refuses."""
    try:
        _lock_by_system(opened.fileno())
        return
    except OSError as error:
        held, advice = error.errno in (EAGAIN, EACCES), "wait until that has ended"
    if not held:  # the file system, of a network for example, knows no locks
        held, advice = _lives(opened), f"wait until that has ended, remove {file} if it has"
    if held:
        raise UserError(f"the run folder {file.parent} is in use by {_named(opened)}; {advice}, or name another folder with --out")


def _lock_by_system(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, FAR, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _said(opened: IO[bytes]) -> list[str]:
    opened.seek(0)
    return opened.read(200).decode(errors="replace").split(maxsplit=2)


def _named(opened: IO[bytes]) -> str:
    said = _said(opened)
    return f"process {said[0]} on {said[1]}, since {said[2].strip()}" if len(said) == 3 else "another process"


def _lives(opened: IO[bytes]) -> bool:
    """Whether the process that the file names is there, as far as can be known: on another machine it may be."""
    said = _said(opened)
    if len(said) < 3 or not said[0].isdecimal():
        return False
    if said[1] != socket.gethostname():
        return True
    try:
        os.kill(int(said[0]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True
