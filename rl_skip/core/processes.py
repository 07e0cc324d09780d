"""Processes that train one network together: which of them this is, and what they tell one another. Alone, nothing is told and nothing costs."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed

__all__ = ["ALONE", "LostProcess", "Processes", "talking", "together", "working"]

T = TypeVar("T")
GLOO = "gloo/transport"
"""What stands in the errors of gloo, which are of no class of their own."""
TOLD = "rl_skip/told"
"""The key under which the first process that ends with a message claims to be the one that says it."""
CLAIM = timedelta(seconds=5)
"""How long a process that ends waits for the store, which may have ended."""


class LostProcess(BaseException):
    """Another of the processes has ended, so this one cannot go on; like `KeyboardInterrupt` no error that could be handled on the way."""


@dataclass(frozen=True)
class Processes:
    """This process among `count` that train together. All of them must call the methods below in the same order."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and speaks to the terminal."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def add(self, tensor: Tensor) -> None:
        """Sums a tensor over all processes, in place; afterwards it is the same in all, bit for bit."""
        if self.several:
            _talk(lambda: distributed.all_reduce(tensor))

    def highest(self, *numbers: int) -> list[int]:
        """The highest that any process gives, of each number."""
        if not self.several:
            return list(numbers)
        highest = torch.tensor(numbers)
        _talk(lambda: distributed.all_reduce(highest, distributed.ReduceOp.MAX))
        return highest.tolist()

    def gather(self, value: T) -> list[T]:
        """What each process gives, in the order of their ranks, in all of them; tensors must be on the CPU."""
        if not self.several:
            return [value]
        gathered: list[T] = [value] * self.count
        _talk(lambda: distributed.all_gather_object(gathered, value))
        return gathered

    def from_first(self, value: T) -> T:
        """What the first process gives, in all of them; the others wait for it."""
        if not self.several:
            return value
        given = [value]
        _talk(lambda: distributed.broadcast_object_list(given, src=0))
        return given[0]

    def copy_first(self, tensors: Iterator[Tensor]) -> None:
        """Gives all processes the first one's tensors, in place."""
        if self.several:
            for tensor in tensors:
                held = tensor.data.contiguous()
                _talk(lambda held=held: distributed.broadcast(held, src=0))  # type: ignore[misc]
                tensor.data.copy_(held)

    def may_tell(self) -> bool:
        """Whether this process, which ends with a message, is the first to, so that one of them says why. Called in any order."""
        if not self.several:
            return True
        store = distributed.distributed_c10d._get_default_store()
        try:
            store.set_timeout(CLAIM)
            return store.add(TOLD, 1) == 1
        except RuntimeError:  # it ended with another process
            return True


def _talk(call: Callable[[], object]) -> None:
    try:
        call()
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise LostProcess(str(error)) from None


@contextmanager
def talking() -> Iterator[None]:
    """Within it, what PyTorch itself sends to other processes, beside what it computes, tells of one that ended as the methods of `Processes` do."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or GLOO in str(error):
            raise LostProcess(str(error)) from None
        raise


ALONE = Processes()
_WORKING: ContextVar[Processes] = ContextVar("working", default=ALONE)


def together() -> Processes:
    """The processes that train together, as the program stands; `ALONE` where nobody said otherwise."""
    return _WORKING.get()


@contextmanager
def working(processes: Processes) -> Iterator[Processes]:
    """Within it `together` returns these processes; what runs over many rows is shared among them."""
    token = _WORKING.set(processes)
    try:
        yield processes
    finally:
        _WORKING.reset(token)
