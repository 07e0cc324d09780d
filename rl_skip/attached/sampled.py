"""A few numbers of each weight of a model, by which a policy distinguishes the model that learned with it from one that has other weights.

They are the same, but for rounding, in whatever precision the model is loaded, and wherever it lies. They are compared by the names of the weights.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rl_skip.core.fields import Fields

__all__ = ["check_samples", "differing", "sampled"]

NUMBERS = 4
"""Of each weight."""
MOST = 256
"""Weights of which numbers are kept; of a model with more, some are left out, evenly."""
TOLERANCE = 0.01
"""Relative; bfloat16 rounds by 0.004, and training moves most weights by more."""
FLOOR = 1e-6
KNOWN = 0.5
"""Share of the weights that another model must have under the same names to be compared: adapters rename what they adapt."""


def sampled(weights: Mapping[str, Tensor], vocabulary: int | None = None) -> dict[str, list[float]]:
    """`NUMBERS` evenly spaced numbers of each weight, by the weights' names.

    Args:
        weights: by their names; those that hold no floating-point numbers are left out.
        vocabulary: size of those that are left out too, since words may be added.
    """
    names = sorted(name for name, weight in weights.items() if weight.is_floating_point() and weight.numel() > 0 and vocabulary not in weight.shape)
    stride = max(1, -(-len(names) // MOST))
    return {name: list(_numbers(weights[name])) for name in names[::stride]}


def differing(saved: Mapping[str, list[float]], weights: Mapping[str, Tensor]) -> str | None:
    """The name of a weight that has other numbers than were saved; None where all are the same, or too few can be compared.

    Args:
        saved: of `sampled`.
        weights: of the model that is compared, by their names.
    """
    found = {name: weights[name] for name in saved if name in weights and weights[name].is_floating_point() and weights[name].numel() > 0}
    if len(found) < KNOWN * len(saved):
        return None
    return next((name for name, weight in found.items() if not _alike(saved[name], list(_numbers(weight)))), None)


def check_samples(fields: Fields, name: str) -> None:
    """Refuses what `sampled` cannot have returned."""
    given: Any = fields.get(name)
    values: list[Any] = list(given.values()) if isinstance(given, dict) else [None]
    lists = len(values) <= MOST and all(isinstance(numbers, list) and len(numbers) <= NUMBERS for numbers in values)
    if not lists or not all(type(number) in (int, float) for numbers in values for number in numbers):
        raise fields.wrong(name, f"{NUMBERS} numbers each for at most {MOST} weights")


def _numbers(weight: Tensor) -> Iterator[float]:
    flat = weight.detach().reshape(-1)
    places = torch.linspace(0, len(flat) - 1, min(NUMBERS, len(flat)), dtype=torch.float64).long()
    for value in flat[places.to(flat.device)].float().tolist():
        yield float(f"{value:.6g}")


def _alike(saved: list[float], given: list[float]) -> bool:
    """Whether at least half of the numbers are the same."""
    same = sum(abs(a - b) <= max(TOLERANCE * max(abs(a), abs(b)), FLOOR) for a, b in zip(saved, given, strict=False))
    return len(saved) == len(given) and 2 * same >= len(saved)
