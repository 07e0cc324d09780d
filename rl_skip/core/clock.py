"""Timing calls that take turns."""

import itertools
import statistics
import time
from collections.abc import Callable, Mapping

import torch

__all__ = ["REPEATS", "seconds_per_batch"]

REPEATS = 15
"""Timed calls, of which the median counts."""


@torch.no_grad()
def seconds_per_batch(calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int = REPEATS) -> dict[str, float]:
    """Median seconds of each call, the calls taking turns so that noise falls on all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in itertools.chain.from_iterable(itertools.repeat(list(calls.items()), repeats + 2)):
        _synchronise(device)
        begun = time.perf_counter()
        call()
        _synchronise(device)
        times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(taken[2:]) for name, taken in times.items()}


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
