"""Reading files that may be anybody's: regular files alone, no more of them than is stated here, whatever they say of their own size."""

import bz2
import gzip
import io
import json
import lzma
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors.torch import load_file
from torch import Tensor

from rl_skip.core.errors import UserError

__all__ = [
    "LEAST_BUDGET",
    "MOST_LAYERS",
    "MOST_WIDTH",
    "Packed",
    "checked_file",
    "checked_header",
    "most_unpacked",
    "read_bytes",
    "read_json",
    "read_tensors",
    "unpacked",
]

MIB = 2**20
MOST_BYTES = 16 * 1024 * MIB
"""Of a file that is read whole."""
MOST_JSON = 16 * MIB
MOST_DEPTH = 64
"""Objects and lists of JSON inside each other."""
MOST_HEADER = 16 * MIB
"""Of the header of a safetensors file: names, types and shapes, about 100 bytes for each tensor."""
MOST_LAYERS, MOST_WIDTH = 1000, 2**16
"""Of a network that is described in a file or by options, its policy and its readouts."""
LEAST_BUDGET = 1 / MOST_LAYERS
"""Mean compute: what one layer costs of the deepest network."""
UNPACKED_RATIO = 32
"""How many times its packed size data may have: texts, pictures and sound have 2 to 10 times, a file made to fill the memory 1,000 times."""
UNPACKED_ALWAYS = 64 * MIB
"""That packed data may have in any case."""
PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""How packed files begin, and what unpacks them: each checks the checksum at its end."""


def checked_file(file: Path, advice: str, most: int = MOST_BYTES) -> int:
    """The size of a regular file, in bytes. What never ends, or waits for a writer, is refused without being opened.

    Args:
        advice: what mends it, to end the message.
        most: bytes that it may have.

    Raises:
        UserError: if it is no regular file, or larger.
    """
    try:
        found = os.stat(file)
    except (OSError, ValueError) as error:  # a zero in the name is a ValueError
        raise UserError(f"{file} cannot be read ({getattr(error, 'strerror', None) or error}); {advice}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{file} is {_kind(found.st_mode)} and no file; {advice}")
    if found.st_size > most:
        raise UserError(f"{file} has {found.st_size:,} bytes, and at most {most:,} are read; {advice}")
    return found.st_size


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "a device")


def read_bytes(file: Path, advice: str, most: int = MOST_BYTES) -> bytes:
    """The content of a regular file, of as many bytes as it had when it was opened.

    Raises:
        UserError: if it is no regular file, too large, or cannot be read.
    """
    size = checked_file(file, advice, most)
    try:
        with file.open("rb") as opened:
            return opened.read(size)
    except (OSError, MemoryError) as error:
        reason = "it is larger than the memory" if isinstance(error, MemoryError) else error.strerror
        raise UserError(f"{file} cannot be read ({reason}); {advice}") from None


def most_unpacked(packed: int) -> int:
    """How many bytes may come out of so many packed ones."""
    return max(UNPACKED_ALWAYS, UNPACKED_RATIO * packed)


class Packed(io.RawIOBase):
    """What unpacks a file, to be read no further than is right for the packed size; plain files are read as they are.

    Args:
        opened: the file, at its beginning.
        size: its size in bytes.

    Example:
        >>> content = gzip.compress(b"word " * 5)
        >>> Packed(io.BytesIO(content), len(content)).read(4)
        b'word'
    """

    def __init__(self, opened: IO[bytes], size: int) -> None:
        start = opened.read(6)
        opened.seek(0)
        unpack = next((unpack for magic, unpack in PACKED.items() if start.startswith(magic)), None)
        self._packed = unpack is not None
        self._file: IO[bytes] = opened if unpack is None else unpack(opened)
        self.most = size if unpack is None else most_unpacked(size)

    def refuse_beyond(self, end: int) -> None:
        """Raises `ValueError` for a place that lies further on than there is, or may be, to read."""
        if end > self.most:
            there = "its packed size allows" if self._packed else "it is cut short: it has"
            raise ValueError(f"it holds or names byte {end:,}, and {there} {self.most:,}")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; as a tar is read, whose headers say how many follow."""
        if size >= 0:
            piece = self._file.read(min(size, max(self.most + 1 - self.tell(), 0)))
            self.refuse_beyond(self.tell())
            return piece
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """All that follows, a piece at a time, to the end, where the checksum is compared."""
        while piece := self._file.read(MIB):
            self.refuse_beyond(self.tell())
            yield piece

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self.refuse_beyond(place)
        return self._file.seek(place, whence)

    def tell(self) -> int:
        return self._file.tell()


def unpacked(content: bytes) -> bytes:
    """Content that may be packed with gzip, bzip2 or xz, its checksum compared.

    Raises:
        ValueError, EOFError, OSError: if it is cut short or altered, or has more bytes than its packed size allows.
    """
    return Packed(io.BytesIO(content), len(content)).read()


def read_json(file: Path, advice: str) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: if it cannot be read, is no JSON in UTF-8, or is larger or deeper than any that rl_skip writes.
    """
    content = read_bytes(file, advice, MOST_JSON)
    try:
        values = json.loads(content.decode("utf-8"))
        _refuse_depth(values)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}); {advice}") from None
    return values


def _refuse_depth(values: Any) -> None:
    level = [values]
    for _ in range(MOST_DEPTH + 1):
        level = [inner for value in level if isinstance(value, dict | list) for inner in (value.values() if isinstance(value, dict) else value)]
        if not level:
            return
    raise ValueError(f"more than {MOST_DEPTH} objects or lists inside each other")


def read_tensors(file: Path, advice: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which are read from the disk where they are used.

    Raises:
        UserError: if it cannot be read, or its header is damaged or larger than any that rl_skip writes.
    """
    with checked_header(file, advice):
        return load_file(file)


@contextmanager
def checked_header(file: Path, advice: str) -> Iterator[None]:
    """Within it, a safetensors file may be opened: what goes wrong is one line with its name."""
    size = checked_file(file, advice, 2**63)
    try:
        with file.open("rb") as opened:
            header = int.from_bytes(opened.read(8), "little")
        if not 0 < header <= min(size - 8, MOST_HEADER):
            raise ValueError(f"a header of {header:,} bytes in {size:,}, of which at most {MOST_HEADER:,} are read")
        yield
    except Exception as error:  # safetensors and torch raise what they like for types and shapes that cannot be
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file} is not a readable safetensors file ({reason}); {advice}") from None
