"""Words that can be read; and standard output and error that outlast whoever reads them, as with `rl-skip info RUN | head -3`."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rl_skip.core.errors import UserError

__all__ = ["check_words", "outlasting_readers"]

LONGEST_WORD = 4096
"""As of a path."""


class _Outlasting:
    """A text stream; once nobody reads it any more, what is written is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        """Points the stream at nothing, what it still holds included: Python flushes it once more when it ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def outlasting_readers() -> Iterator[None]:
    """Within it, what is printed may be piped into a program that ends first: no error, and the work goes on."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Outlasting(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def check_words(words: Iterable[str]) -> None:
    """Raises `UserError` for a word of a command line that no file can be named by and no report can hold."""
    for number, word in enumerate(words, start=1):
        if len(word) > LONGEST_WORD:
            raise UserError(f"word {number} of the command line has {len(word):,} letters, and at most {LONGEST_WORD:,} are read; shorten it")
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"word {number} of the command line, {ascii(word)}, is not UTF-8; rename the file that it names") from None
        if "\0" in word:
            raise UserError(f"word {number} of the command line, {ascii(word)}, holds a zero byte; leave it out")
