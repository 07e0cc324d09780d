"""Whether two loads of a split gave the same rows: digests of labels and inputs that machines agree on."""

import ctypes
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rl_skip.core.fields import Fields
from rl_skip.core.task import Examples

__all__ = ["Fingerprint"]

PROJECTIONS = 16
TOLERANCE = 1e-3
"""Of the size of a sum. Another machine's rounding moves a sum by far less, one row of N that is replaced by about (2 / N)^½."""


@dataclass(frozen=True)
class Fingerprint:
    """Of the rows of one split, in their order.

    Whole numbers, such as labels and tokens, are digested (SHA-256). Numbers with a fraction, such as pixels that were
    normalised or spectra, are rounded differently by other machines, so no digest of them would survive a move: of them there
    are random signed sums over all rows (Johnson and Lindenstrauss 1984), which are compared up to a small tolerance.
    """

    labels: str
    """SHA-256, in hexadecimal."""
    whole: Mapping[str, str]
    """SHA-256 of each input of whole numbers, by its name, which is empty where there is but one."""
    sums: Mapping[str, tuple[float, ...]]
    """Of each other input: its size, and 16 sums."""

    @classmethod
    def of(cls, examples: Examples) -> "Fingerprint":
        """The fingerprint of rows with their labels."""
        inputs = examples.inputs if isinstance(examples.inputs, dict) else {"": examples.inputs}
        exact = {name for name, tensor in inputs.items() if not tensor.is_floating_point() and not tensor.is_complex()}
        whole = {name: _digest(tensor) for name, tensor in inputs.items() if name in exact}
        sums = {name: _sums(tensor) for name, tensor in inputs.items() if name not in exact}
        return cls(_digest(examples.labels), whole, sums)

    def same_rows(self, other: "Fingerprint") -> bool:
        """Whether both are of the same rows with the same labels."""
        if (self.labels, self.whole, self.sums.keys()) != (other.labels, other.whole, other.sums.keys()):
            return False
        return all(_close(sums, other.sums[name]) for name, sums in self.sums.items())

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"labels": self.labels, "whole": dict(self.whole), "sums": {name: list(sums) for name, sums in self.sums.items()}}

    @classmethod
    def from_json(cls, fields: Fields) -> "Fingerprint":
        """What `to_json` made.

        Raises:
            UserError: if a field is missing or wrong, by name.
        """
        whole, sums = fields.object("whole"), fields.object("sums")
        listed = {name: sums.numbers(name, 1 + PROJECTIONS, low=-math.inf) for name in sums.values}
        return cls(fields.text("labels"), {name: whole.text(name) for name in whole.values}, listed)


def _digest(tensor: Tensor) -> str:
    """SHA-256 of type, shape and values. Without a copy, and without NumPy, which a server may lack."""
    values = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)}".encode())
    if values.numel():
        digest.update((ctypes.c_char * (values.numel() * values.element_size())).from_address(values.data_ptr()))
    return digest.hexdigest()


def _sums(tensor: Tensor) -> tuple[float, ...]:
    """The root of the mean square of what is summed, then Σ_n ±(Σ_f ±x_nf) for 16 choices of signs, each of both in its own way."""
    values = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().cpu()
    rows = values.unsqueeze(-1).flatten(1)  # (N, F)
    signs = torch.stack([_signs(rows.shape[1], stream) for stream in range(PROJECTIONS)], dim=1)  # (F, 16)
    along = (rows.float() @ signs).double().nan_to_num(nan=1.0, posinf=2.0, neginf=-2.0)  # (N, 16)
    sums = [float(along[:, k] @ _signs(len(along), PROJECTIONS + k).double()) for k in range(PROJECTIONS)]
    return (float(along.square().sum(dim=0).mean().sqrt()), *sums)


def _close(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    allowed = TOLERANCE * max(one[0], other[0])
    return len(one) == len(other) and all(abs(a - b) <= allowed for a, b in zip(one, other, strict=True))


def _signs(count: int, stream: int) -> Tensor:
    """(count,) of −1 and 1, by integer arithmetic alone, which is the same everywhere (the mixing steps of MurmurHash3)."""
    low = 0xFFFFFFFF
    mixed = torch.arange(count) + (stream + 1) * 0x9E3779B9 & low
    for multiplier in (0x5BD1E995, 0x7FEB352D):
        mixed = (mixed ^ (mixed >> 15)) * multiplier & low
    return (mixed >> 16 & 1).float() * 2 - 1
