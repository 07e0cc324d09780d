"""Calls timed in turns, so that a machine that slows down slows all alike; and what else a call costs: memory, and waiting for a GPU."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.benchmark import Timer

__all__ = ["CLOCKS", "Taken", "Way", "host_syncs", "in_turns", "peak_bytes"]

Way = Callable[[], object]


class Taken(NamedTuple):
    """The time of one way, over rounds."""

    milliseconds: float
    """Its median."""
    ratio: float
    """Of its time to that of the first way in the same round, the median,"""
    low: float
    """its first quartile,"""
    high: float
    """and its third."""

    def __str__(self) -> str:
        return f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f})"


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}
"""The time that passed, and the time on the processor, all threads together, which a machine with other work disturbs less."""


def in_turns(ways: dict[str, Way], threads: int, rounds: int, seconds: float, clock: str = "wall") -> dict[str, Taken]:
    """Times all ways in `rounds` rounds of alternating order, each for at least `seconds` in a round, by one of `CLOCKS`."""
    timers = {name: Timer("call()", globals={"call": call}, num_threads=threads, timer=CLOCKS[clock]) for name, call in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in list(ways) if turn % 2 else reversed(list(ways)):
            median = timers[name].blocked_autorange(min_run_time=seconds).median
            if turn > 0:  # the first round warms up
                times[name].append(median)
    first = torch.tensor(next(iter(times.values())), dtype=torch.float64)
    return {name: _taken(torch.tensor(values, dtype=torch.float64), first) for name, values in times.items()}


def _taken(seconds: Tensor, first: Tensor) -> Taken:
    low, ratio, high = (seconds / first).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return Taken(1e3 * float(seconds.median()), ratio, low, high)


class HostSyncs(TorchDispatchMode):
    """Counts operators whose result the host waits for on a GPU: sizes that depend on data, and numbers that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name, there = func.overloadpacket.__name__, any(isinstance(value, Tensor) and value.device.type != "cpu" for value in args)
        masks = args[1] if name in ("index", "index_put_", "index_put") else ()
        result = func(*args, **(kwargs or {}))
        self.count += there and name in ("nonzero", "_local_scalar_dense", "masked_select", "unique_dim", "_unique2", "is_nonzero", "equal")
        self.count += there and any(isinstance(mask, Tensor) and mask.dtype == torch.bool for mask in masks)
        self.count += there and name in ("_to_copy", "to", "copy_") and isinstance(result, Tensor) and result.device.type == "cpu"
        return result


def host_syncs(call: Way) -> int:
    """How often one call makes the host wait for a GPU."""
    with HostSyncs() as counter:
        call()
    return counter.count


def peak_bytes(call: Way, device: torch.device) -> int:
    """The most memory that one call holds at once beyond what there was before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = peak = 0
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak
