"""How far long passes over rows have come: what runs them tells, and who shows it to a person listens."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

__all__ = ["Listener", "begin_stage", "listening", "rows_done"]


class Listener(Protocol):
    """What is told where a program stands."""

    def begin_stage(self, title: str) -> None:
        """Something begins that has a name, such as "full depth"."""
        ...

    def rows_done(self, done: int, rows: int) -> None:
        """A pass over so many `rows` has come so far."""
        ...


_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within it, `listener` is told; nobody else is."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def begin_stage(title: str) -> None:
    """Tells that something begins that may take a while."""
    if (listener := _LISTENER.get()) is not None:
        listener.begin_stage(title)


def rows_done(done: int, rows: int) -> None:
    """Tells how far a pass over all `rows` has come."""
    if (listener := _LISTENER.get()) is not None:
        listener.rows_done(done, rows)
