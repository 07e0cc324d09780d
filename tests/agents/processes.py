"""Functions run in several processes that train together, over gloo."""

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing

import train
from agents.run.launch import joined

LIMIT = 120
"""Seconds after which processes that have not ended count as hanging."""


def as_launched(rank: int, count: int, port: int) -> dict[str, str]:
    """What a launcher tells a process by its environment."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in told.items()} | {"TORCHELASTIC_USE_AGENT_STORE": "True"}


def meeting_place() -> distributed.TCPStore:
    """Where processes find one another, kept by the launcher, as torchrun keeps it."""
    return distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def _work(rank: int, count: int, port: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(as_launched(rank, count, port))
    torch.set_num_threads(1)
    with joined():
        torch.save(function(*arguments), Path(folder, f"{rank}.pt"))


def in_processes(count: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What a function of a module returns in each of so many processes, its tensors and plain values."""
    folder.mkdir(exist_ok=True)
    store = meeting_place()
    method = "fork" if sys.platform == "linux" else "spawn"  # which imports everything once more
    started = multiprocessing.start_processes(_work, (count, store.port, str(folder), function, arguments), count, join=False, start_method=method)
    begun = time.monotonic()
    while not started.join(LIMIT):  # which returns whenever one ends
        assert time.monotonic() - begun < LIMIT, f"the processes hang after {LIMIT} seconds"
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _end(rank: int, count: int, port: int, folder: str, run: Callable[[], int]) -> None:
    os.environ.update(as_launched(rank, count, port))
    torch.set_num_threads(1)
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        with Path(folder, f"{rank}.{name}").open("w") as file:
            os.dup2(file.fileno(), 1 if name == "out" else 2)
        stream.flush()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))  # which pytest had replaced
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    sys.exit(run())


class Running:
    """Processes that each call a function in the end of which is an exit code, as a launcher starts them.

    Args:
        count: how many.
        folder: where what they print goes.
        run: called in each.
    """

    def __init__(self, count: int, folder: Path, run: Callable[[], int]) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.store = folder, meeting_place()
        make = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn").Process
        self.each = [make(target=_end, args=(rank, count, self.store.port, str(folder), run)) for rank in range(count)]
        for process in self.each:
            process.start()

    def ended(self, limit: float = LIMIT) -> list[int]:
        """Their exit codes, once all have ended; −n where signal n ended one."""
        until = time.monotonic() + limit
        for process in self.each:
            process.join(max(until - time.monotonic(), 0.1))
        hanging = [process for process in self.each if process.is_alive()]
        for process in hanging:
            process.kill()
        assert not hanging, f"{len(hanging)} processes hang after {limit} seconds"
        return [process.exitcode or 0 for process in self.each]

    def said(self, name: str = "err") -> list[str]:
        """The lines that all of them printed, together."""
        return [line for rank in range(len(self.each)) for line in (self.folder / f"{rank}.{name}").read_text().splitlines()]


def training(count: int, folder: Path, *arguments: str) -> Running:
    """`train.py` with these arguments, in so many processes."""
    return Running(count, folder, partial(train.main, list(arguments)))
