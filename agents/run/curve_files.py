"""Files that curves are appended to, TensorBoard's among them: what a full disk does not take is kept, and written once it does."""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams

__all__ = ["EVENTS", "CurveFile", "CurveWriter"]

EVENTS = "events.out.tfevents."
"""How TensorBoard's files are called."""
VERSION = "brain.Event:2"
_NUMBERS = count()


class CurveFile:
    """A file that is appended to. Writing never fails: what is not taken is kept in memory, and tried again with what follows.

    Args:
        file: made when it is first written to.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.fault: OSError | None = None
        """Why the last of what was written is not in the file; None where it is."""
        self._pending = bytearray()
        self._handle: int | None = None

    def write(self, content: bytes) -> None:
        """Appends, sooner or later."""
        self._pending += content
        self.flush()

    def flush(self) -> None:
        """Writes what is left, as far as that goes."""
        try:
            if self._handle is None:
                self.file.parent.mkdir(exist_ok=True)
                self._handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
            while self._pending:
                del self._pending[: os.write(self._handle, self._pending)]
            self.fault = None
        except OSError as error:
            self.fault = error

    def sync(self) -> None:
        """Hands it all to the disk."""
        self.flush()
        try:
            if self._handle is not None:
                os.fsync(self._handle)
        except OSError as error:
            self.fault = error

    def close(self) -> None:
        """Writes what is left, and closes the file."""
        self.flush()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class _EventFile:
    """What `EventFileWriter` of TensorBoard is to `FileWriter`; that one writes in a thread, which a fault ends with a traceback."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.curve_file = CurveFile(folder / f"{EVENTS}{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}")
        self._records = RecordWriter(self.curve_file)
        self.add_event(Event(wall_time=time.time(), file_version=VERSION))

    def get_logdir(self) -> str:
        return str(self.folder)

    def add_event(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        self.curve_file.flush()

    def close(self) -> None:
        self.curve_file.close()


class _FileWriter(FileWriter):
    def __init__(self, folder: Path) -> None:
        self.event_writer = _EventFile(folder)


class CurveWriter(SummaryWriter):
    """A `SummaryWriter` that no fault of its disk breaks.

    Args:
        folder: made if it is not there.
        purge_step: for a TensorBoard that runs: what it has read from this step on is no more.
    """

    file_writer: Any
    all_writers: Any

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        with suppress(OSError):  # the file says what is wrong, and is tried again
            folder.mkdir(parents=True, exist_ok=True)
        super().__init__(str(folder), purge_step=purge_step)

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            self.file_writer = _FileWriter(Path(self.log_dir))
            self.all_writers = {self.log_dir: self.file_writer}
            if self.purge_step is not None:
                for said in ({"file_version": VERSION}, {"session_log": SessionLog(status=SessionLog.START)}):
                    self.file_writer.add_event(Event(step=self.purge_step, **said))
        return self.file_writer

    @property
    def curve_file(self) -> CurveFile:
        """Where the curves go."""
        event_file: _EventFile = self._get_file_writer().event_writer
        return event_file.curve_file

    def hyper_parameters(self, settings: Mapping[str, bool | str | float | int], metrics: Mapping[str, float]) -> None:
        """As `add_hparams`, which would open another file, for the run itself."""
        for summary in hparams(dict(settings), dict(metrics)):
            self._get_file_writer().add_summary(summary)
        for name, value in metrics.items():
            self.add_scalar(name, value)
