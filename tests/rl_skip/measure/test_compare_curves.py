"""What baselines leave for `compare`: it comes back as it was, and what is damaged is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl_skip import UserError
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.curves import Curve, Point, load_curve, save_curve

RECORD = BaselineRecord(
    "gumbel", "Gumbel gate", about="gates", advice="train it", trained=True, per_budget=True, colour="#123456", marker="P", line=(6, 1.5)
)


def point(label: str, rows: int, price: float | None = None, budget: float | None = None, routed: bool = True) -> Point:
    generator = torch.Generator().manual_seed(len(label) + rows)
    route = torch.rand(rows, 4, generator=generator) < 0.5 if routed else None
    return Point(label, price, budget, torch.rand(rows, generator=generator).round(), torch.rand(rows, generator=generator), route)


@pytest.fixture
def curve() -> Curve:
    validation = (point("a", 5, price=0.3), point("bb", 5, budget=0.5, routed=False))
    test = (point("a", 7, price=0.3), point("bb", 7, budget=0.5, routed=False))
    return Curve(RECORD, 3, validation, test)


def test_a_curve_comes_back_as_it_was(tmp_path: Path, curve: Curve) -> None:
    save_curve(tmp_path / "baseline", curve)
    back = load_curve(tmp_path / "baseline")
    assert (back.record, back.seed) == (RECORD, 3)
    for mine, theirs in zip((*curve.validation, *curve.test), (*back.validation, *back.test), strict=True):
        assert (mine.label, mine.price, mine.budget) == (theirs.label, theirs.price, theirs.budget)
        assert torch.equal(mine.correct, theirs.correct) and torch.equal(mine.compute, theirs.compute)
        assert (mine.route is None) == (theirs.route is None)
        assert mine.route is None or (theirs.route is not None and torch.equal(mine.route, theirs.route))
    assert {file.name for file in (tmp_path / "baseline").iterdir()} == {"curve.json", "curve.safetensors"}


def test_a_curve_has_the_same_points_on_both_splits(curve: Curve) -> None:
    with pytest.raises(ValueError, match="gumbel"):
        Curve(RECORD, 0, curve.validation, curve.test[::-1])


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("baseline", RECORD.to_json() | {"title": 3}, "baseline.title must be a string"),
        ("baseline", RECORD.to_json() | {"line": [1, -1]}, r"baseline.line\[1\] must be"),
        ("baseline", {}, "baseline.name is missing"),
        ("seed", -1, "seed must be"),
        ("format_version", 3, "format_version is 3"),
        ("test", {}, "test must be a list"),
        ("validation", [{"label": "a", "price": "dear", "budget": None, "routed": True}], r"validation\[0\].price must be"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, curve: Curve, field: str, value: object, named: str) -> None:
    save_curve(tmp_path, curve)
    described = json.loads((tmp_path / "curve.json").read_text())
    (tmp_path / "curve.json").write_text(json.dumps(described | {field: value}))
    with pytest.raises(UserError, match=named):
        load_curve(tmp_path)


def test_a_wrong_tensor_is_named(tmp_path: Path, curve: Curve) -> None:
    save_curve(tmp_path, curve)
    tensors = load_file(tmp_path / "curve.safetensors")
    infinite = torch.full((7,), torch.inf)
    wrongs = ("test.1.compute", torch.zeros(6)), ("test.0.route", torch.zeros(7, 4)), ("validation.0.correct", None), ("test.0.compute", infinite)
    for name, wrong in wrongs:
        save_file({key: value for key, value in (tensors | {name: wrong}).items() if value is not None}, tmp_path / "curve.safetensors")
        with pytest.raises(UserError, match=name.replace(".", r"\.")):
            load_curve(tmp_path)
    (tmp_path / "curve.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_curve(tmp_path)
    with pytest.raises(UserError, match="has no curve.json"):
        load_curve(tmp_path / "nowhere")


def test_a_curve_that_is_not_finite_is_not_written(tmp_path: Path, curve: Curve) -> None:
    curve.test[1].correct[3] = torch.nan
    with pytest.raises(UserError, match="the curve of gumbel is not finite, in test.1.correct"):
        save_curve(tmp_path / "baseline", curve)
    assert not list((tmp_path / "baseline").iterdir())
