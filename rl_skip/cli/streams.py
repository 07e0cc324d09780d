"""Words that can be read; and standard output and error that outlast whoever reads them, as with `rl-skip info RUN | head -3`."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rl_skip.core.errors import UserError

__all__ = ["Outlasting", "check_words", "outlasting_readers"]

LONGEST_WORD = 4096
"""As of a path."""


class Outlasting:
    """A text stream that what is written to cannot break: what it has no letters for is spelled out, and once it is closed or full all is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.fault: OSError | None = None
        """Why it is no longer written to."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        """Points the stream at nothing, what it still holds included: Python flushes it once more when it ends."""
        self.fault = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    @property
    def lost(self) -> bool:
        """Whether something was dropped that somebody wanted; not where a reader has ended."""
        return self.fault is not None and not isinstance(self.fault, BrokenPipeError)


@contextmanager
def outlasting_readers(loss: str = "error") -> Iterator[Outlasting]:
    """Within it, what is printed may be piped into a program that ends first, or onto a full disk: no error, and the work goes on.

    Args:
        loss: what the line begins with that says that something is lost: "warning" where what is printed is not the result.

    Yields:
        Standard output. Where something of it is lost, a line on standard error says so.
    """
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # for a stream that was closed before the program began
        shown, said = Outlasting(sys.stdout or nowhere), Outlasting(sys.stderr or nowhere)
        sys.stdout, sys.stderr = shown, said
        try:
            yield shown
        finally:
            shown.flush()
            if shown.lost and shown.fault is not None:
                said.write(f"{loss}: standard output cannot be written ({shown.fault.strerror}), and some of it is lost\n")
            said.flush()
            sys.stdout, sys.stderr = before


def check_words(words: Iterable[str]) -> None:
    """Raises `UserError` for a word of a command line that no file can be named by and no report can hold."""
    for number, word in enumerate(words, start=1):
        if len(word) > LONGEST_WORD:
            raise UserError(f"word {number} of the command line has {len(word):,} letters, and at most {LONGEST_WORD:,} are read; shorten it")
        try:
            word.encode()
        except UnicodeEncodeError:
            advice = "rename the file that it names, or set LC_ALL=C.UTF-8"
            raise UserError(f"word {number} of the command line, {ascii(word)}, is not UTF-8; {advice}") from None
        if "\0" in word:
            raise UserError(f"word {number} of the command line, {ascii(word)}, holds a zero byte; leave it out")
