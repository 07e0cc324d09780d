"""Graphs that are recorded on some inputs and then run on others: where a router decides, they would repeat the routes that they were recorded on."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock

import torch

from rl_skip.core.errors import UserError

__all__ = ["ONE_ROUTE", "PRUNE", "RECORDING", "part_by_part", "refuse_tracing", "tracing"]

WHOLE = "a graph that is recorded as a whole (fullgraph=True, torch.export, torch.jit) would repeat the routes of the rows that it was recorded on"
ONE_ROUTE = f"{WHOLE}: record it with one route (L,) for all rows, within handle.forced(route), and use_cache=False"
PRUNE = f"{WHOLE}: record the network of one route, PrunedNetwork(stack, layers) or rl-skip prune"

RECORDING = RLock()
"""Held by the thread that records what a policy does: PyTorch records in one at a time, and says so to all."""
_in_parts: ContextVar[bool] = ContextVar("in_parts", default=False)


@contextmanager
def part_by_part() -> Iterator[None]:
    """Within it a stack may be recorded, by what records its parts one by one and leaves the routes to whoever runs them."""
    token = _in_parts.set(True)
    try:
        yield
    finally:
        _in_parts.reset(token)


def tracing() -> bool:
    """Whether the operations of this call are being recorded, by `torch.export` or `torch.jit.trace`."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined]


def refuse_tracing(sentence: str) -> None:
    """Refuses to be recorded, by that sentence; `torch.compile` may go on where its graph may end.

    Raises:
        UserError: where operations are being recorded.
    """
    if torch.compiler.is_dynamo_compiling():
        from rl_skip.core.compiled import refuse_whole_graph

        refuse_whole_graph(sentence)
    elif tracing() and not _in_parts.get() and not _waited():
        raise UserError(sentence)


def _waited() -> bool:
    """Whether it was another thread that recorded what a policy does; waits for its end."""
    if RECORDING.acquire(blocking=False):
        RECORDING.release()
        return False
    with RECORDING:
        return True
