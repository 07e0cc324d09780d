"""Checkpoints: the whole state of a run, written so that an interruption at any time leaves a whole one."""

import hashlib
import io
import random
import re
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch

from agents.options.config import CheckpointConfig
from rl_skip.core.bounded import read_bytes
from rl_skip.core.errors import UserError
from rl_skip.core.files import atomic_write, remove_unfinished

__all__ = ["CHECKPOINTS", "Checkpoints", "StopRequests", "Stopped", "load_random_states", "random_states"]

CHECKPOINTS = "checkpoints"
NAME = re.compile(r"update-(\d{9})-([0-9a-f]{16})\.pt")


def random_states() -> dict[str, Any]:
    """The states of Python's and NumPy's global random generators, in types that `torch.load(weights_only=True)` reads."""
    version, words, gauss = random.getstate()
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    return {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "words": torch.tensor(numpy["state"]["key"].astype(np.int64)),
            "position": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
    }


def load_random_states(state: dict[str, Any]) -> None:
    """Goes back to where `random_states` was taken."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    words = numpy["words"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, numpy["position"], numpy["has_gauss"], numpy["gauss"]))


class Checkpoints:
    """The folder `checkpoints/` of a run: the last few.

    A checkpoint's name carries the beginning of its SHA-256, so that one that was cut short or altered is detected.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path, config: CheckpointConfig) -> None:
        self.folder, self.config = folder / CHECKPOINTS, config
        self._written = (0, time.monotonic())  # which update, and when

    def due(self, done: int) -> bool:
        """Whether a checkpoint is due after `done` updates."""
        update, moment = self._written
        every = self.config.checkpoint_updates
        return time.monotonic() - moment >= 60 * self.config.checkpoint_minutes or (every is not None and done - update >= every)

    def write(self, done: int, state: dict[str, Any]) -> None:
        """Writes the state after `done` updates, unless it is there already, and drops the oldest."""
        if done == self._written[0]:
            return
        content = _packed(state)
        self.folder.mkdir(exist_ok=True)
        atomic_write(self.folder / f"update-{done:09}-{_digest(content)}.pt", content)
        self._written = done, time.monotonic()
        for file in self._files()[self.config.keep_checkpoints :]:
            file.unlink()

    def latest(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest whole checkpoint, on the CPU, or None; each damaged one is reported with `say`, and set aside."""
        remove_unfinished(self.folder)
        for file in self._files():
            update, digest = _parts(file)
            content = read_bytes(file, f"take it out of {self.folder}, and the one before it is used")
            if _digest(content) == digest:
                self._written = update, time.monotonic()
                say(f"going on from {file}")
                return _unpacked(content, file)
            aside = file.with_suffix(".damaged")
            file.replace(aside)
            say(f"the checkpoint {file} is damaged or cut short; it is set aside as {aside.name}, and the one before it is used")
        return None

    def _files(self) -> list[Path]:
        """All checkpoints, newest first."""
        files = [file for file in self.folder.glob("*.pt") if NAME.fullmatch(file.name)]
        return sorted(files, key=lambda file: (_parts(file)[0], file.stat().st_mtime), reverse=True)


def _packed(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _unpacked(content: bytes, file: Path) -> dict[str, Any]:
    """The state in a checkpoint; nothing but tensors, numbers, strings, lists and dictionaries is made of it, and no code is run.

    Raises:
        UserError: if it holds anything else, or is packed, which rl_skip's never are, and what they unpack to has no bound.
    """
    advice = f"take it out of {file.parent}, or begin a new run with --out"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("its content is packed")
        state: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what it likes
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint {file} is none of rl_skip's ({reason}); {advice}") from None
    if not isinstance(state, dict):
        raise UserError(f"the checkpoint {file} holds a {type(state).__name__}, and no state of a run; {advice}")
    return state


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _parts(file: Path) -> tuple[int, str]:
    match = NAME.fullmatch(file.name)
    assert match is not None
    return int(match[1]), match[2]


class Stopped(BaseException):
    """The run was stopped by Ctrl-C or SIGTERM; like `KeyboardInterrupt` no error that could be handled on the way."""

    def __init__(self, number: int, advice: str) -> None:
        super().__init__(f"stopped; {advice}")
        self.exit_code = 128 + number


class StopRequests:
    """Within it, Ctrl-C and SIGTERM raise `Stopped`: at once, or at the end of a `patiently` stretch.

    A second request does not wait for that end. Outside the main thread, which alone may handle signals, it does nothing.

    Args:
        advice: how to go on, for the message.
    """

    def __init__(self, advice: str) -> None:
        self.advice, self._patient = advice, False
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether there was a request."""
        return self.number is not None

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """A stretch in which a request waits for its end, which the caller brings about when `requested`."""
        self._patient = True
        yield
        self._patient = False
        self._stop_if_requested()

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._on_signal) for number in heeded}
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.number = self.requested, number
        if again or not self._patient:
            self._stop_if_requested()

    def _stop_if_requested(self) -> None:
        if self.number is not None:
            raise Stopped(self.number, self.advice)
