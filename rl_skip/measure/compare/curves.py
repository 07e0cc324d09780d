"""What a baseline writes for `compare`: for each point of its score-compute curve, every row's score, compute and route."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as packed
from torch import Tensor

from rl_skip.core.bounded import read_tensors
from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields
from rl_skip.core.files import atomic_write
from rl_skip.core.finite import NotFinite, not_finite
from rl_skip.core.seal import check_sealed, is_sealed
from rl_skip.measure.compare.baseline import BaselineRecord

__all__ = ["CURVE", "Curve", "Point", "load_curve", "price_label", "save_curve"]

CURVE = "curve.json"
TENSORS = "curve.safetensors"
FORMAT_VERSION = 2
SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Point:
    """One way to run a network, measured on the N rows of a split."""

    label: str
    """Its name among the curve's points, such as "threshold 0.3"."""
    price: float | None
    """The price it was trained for or runs at, where there is one."""
    budget: float | None
    """The mean compute that was set, where it was."""
    correct: Tensor
    """(N,) float, the score of each row."""
    compute: Tensor
    """(N,) float, in units of the whole stack at full depth."""
    route: Tensor | None = None
    """(N, L) bool, the layers that each row ran; None where the layers are not those of the whole stack."""

    @property
    def score(self) -> float:
        """Mean score."""
        return float(self.correct.double().mean())

    @property
    def mean_compute(self) -> float:
        """Mean compute."""
        return float(self.compute.double().mean())


def price_label(price: float) -> str:
    """What a curve's point is called that runs at a price."""
    return f"price {price:.5g}"


@dataclass(frozen=True)
class Curve:
    """The points of one baseline with one seed; validation and test hold the same points in the same order."""

    record: BaselineRecord
    """What it is."""
    seed: int
    validation: tuple[Point, ...]
    test: tuple[Point, ...]

    def __post_init__(self) -> None:
        if [point.label for point in self.validation] != [point.label for point in self.test]:
            raise ValueError(f"the curve of {self.record.name} must have the same points on validation and test data, in the same order")


def save_curve(folder: Path, curve: Curve) -> None:
    """Writes `curve.json` and `curve.safetensors` into a folder, which is made; each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    points: dict[str, list[dict[str, Any]]] = {}
    for split in SPLITS:
        points[split] = []
        for n, point in enumerate(getattr(curve, split)):
            columns = {"correct": point.correct.float(), "compute": point.compute.float(), "route": point.route}
            tensors |= {f"{split}.{n}.{name}": column.detach().cpu().clone().contiguous() for name, column in columns.items() if column is not None}
            points[split].append({"label": point.label, "price": point.price, "budget": point.budget, "routed": point.route is not None})
    if (name := not_finite(tensors.items())) is not None:
        raise NotFinite(f"the curve of {curve.record.name} is not finite, in {name}; look at the task's score, and train the baseline again")
    described = {"format_version": FORMAT_VERSION, "baseline": curve.record.to_json(), "seed": curve.seed, **points}
    atomic_write(folder / TENSORS, packed(tensors))
    atomic_write(folder / CURVE, json.dumps(described, indent=2, ensure_ascii=False) + "\n")  # last: where it is, the tensors are


def load_curve(folder: Path) -> Curve:
    """Reads what `save_curve` wrote.

    Raises:
        UserError: if there is none, or a field or tensor is missing, wrong, or of a shape that does not fit, by name.
    """
    if not (folder / CURVE).is_file():
        raise UserError(f"{folder} has no {CURVE}; name the run folder of a finished baseline as train.py leaves it")
    fields = Fields.read(folder / CURVE, FORMAT_VERSION)
    tensors = read_tensors(folder / TENSORS, "train the baseline again")
    if is_sealed(folder):
        check_sealed(folder, CURVE, TENSORS)
    validation, test = (_read_points(fields.objects(split), tensors, split, folder / TENSORS) for split in SPLITS)
    if [point.label for point in validation] != [point.label for point in test]:
        raise UserError(f"{fields.source}: validation and test must have the same points in the same order; write the file anew")
    return Curve(BaselineRecord.read(fields.object("baseline")), fields.integer("seed", low=0), validation, test)


def _read_points(described: list[Fields], tensors: dict[str, Tensor], split: str, source: Path) -> tuple[Point, ...]:
    points: list[Point] = []
    for n, fields in enumerate(described):
        correct = _tensor(tensors, f"{split}.{n}.correct", source, torch.float32, dimensions=1)
        compute = _tensor(tensors, f"{split}.{n}.compute", source, torch.float32, dimensions=1)
        route = _tensor(tensors, f"{split}.{n}.route", source, torch.bool, dimensions=2) if fields.flag("routed") else None
        rows = len(points[0].correct) if points else len(correct)
        for name, column in (("correct", correct), ("compute", compute), ("route", route)):
            if column is not None and len(column) != rows:
                raise UserError(f"{source}: {split}.{n}.{name} has {len(column)} rows, expected {rows}; train the baseline again")
        price, budget = (None if fields.get(name) is None else fields.number(name) for name in ("price", "budget"))
        points.append(Point(fields.text("label"), price, budget, correct, compute, route))
    return tuple(points)


def _tensor(tensors: dict[str, Tensor], name: str, source: Path, dtype: torch.dtype, dimensions: int) -> Tensor:
    if name not in tensors:
        raise UserError(f"{source}: the tensor {name} is missing; train the baseline again")
    tensor = tensors[name]
    if tensor.dtype != dtype or tensor.dim() != dimensions or len(tensor) == 0:
        expected = f"{dimensions} axes of {dtype} with at least one row"
        got = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise UserError(f"{source}: the tensor {name} must have {expected}, got {got}; train the baseline again")
    if not_finite([(name, tensor)]) is not None:
        raise UserError(f"{source}: the tensor {name} holds numbers that are not finite; train the baseline again")
    return tensor
