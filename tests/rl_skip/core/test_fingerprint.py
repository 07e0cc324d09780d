"""Fingerprints of rows: any row that is another is found out, another machine's rounding is not."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rl_skip.core.fields import Fields
from rl_skip.core.fingerprint import Fingerprint
from rl_skip.core.task import Examples


def pixels(rows: int = 2000) -> Examples:
    generator = torch.Generator().manual_seed(0)
    return Examples(torch.randn(rows, 1, 5, 5, generator=generator), torch.randint(3, (rows,), generator=generator))


def tokens() -> Examples:
    ids = torch.arange(40).view(10, 4)
    return Examples({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, torch.arange(10) % 2)


def changed(examples: Examples, row: int, new: Tensor) -> Examples:
    assert isinstance(examples.inputs, Tensor)
    inputs = examples.inputs.clone()
    inputs[row] = new
    return Examples(inputs, examples.labels)


def test_whole_numbers_are_digested() -> None:
    labels = torch.tensor([1, 0, 2])
    found = Fingerprint.of(Examples(torch.zeros(3, 2), labels)).labels
    assert found == hashlib.sha256(b"torch.int64 (3,)" + b"".join(n.to_bytes(8, "little") for n in labels.tolist())).hexdigest()


@pytest.mark.parametrize("row", range(0, 2000, 100))
def test_one_row_of_many_that_is_replaced_or_moved_is_found(row: int) -> None:
    examples = pixels()
    assert isinstance(examples.inputs, Tensor)
    same = Fingerprint.of(examples)
    other = torch.randn(1, 5, 5, generator=torch.Generator().manual_seed(row))
    assert not same.same_rows(Fingerprint.of(changed(examples, row, other)))
    swapped = changed(changed(examples, row, examples.inputs[row + 1]), row + 1, examples.inputs[row])
    assert not same.same_rows(Fingerprint.of(swapped))


def test_rounding_is_not() -> None:
    examples = pixels()
    assert isinstance(examples.inputs, Tensor)
    noise = torch.randn(examples.inputs.shape, generator=torch.Generator().manual_seed(1))
    rounded = Examples(examples.inputs * (1 + 3e-7) + 1e-6 * noise + 2e-7, examples.labels)
    assert Fingerprint.of(examples).same_rows(Fingerprint.of(rounded))
    assert not Fingerprint.of(examples).same_rows(Fingerprint.of(Examples(examples.inputs * 1.01, examples.labels)))


def test_a_label_a_token_or_a_column_that_differs_is_found() -> None:
    examples = tokens()
    assert isinstance(examples.inputs, dict)
    ids, mask = examples.inputs["input_ids"], examples.inputs["attention_mask"]
    others = [
        Examples(examples.inputs, examples.labels.flip(0)),
        Examples({"input_ids": ids + (ids == 7).long(), "attention_mask": mask}, examples.labels),
        Examples({"input_ids": ids}, examples.labels),
        Examples({"input_ids": ids.view(10, 2, 2), "attention_mask": mask}, examples.labels),
        Examples({"input_ids": ids, "attention_mask": mask.float()}, examples.labels),
    ]
    same = Fingerprint.of(examples)
    assert same.same_rows(Fingerprint.of(tokens()))
    assert not any(same.same_rows(Fingerprint.of(other)) for other in others)


@pytest.mark.parametrize("values", [torch.zeros(0, 3), torch.tensor([1.0, float("nan"), float("inf")]), torch.ones(2, 2, dtype=torch.complex64)])
def test_odd_values_have_one_too(values: Tensor) -> None:
    examples = Examples(values, torch.zeros(len(values), dtype=torch.long))
    assert Fingerprint.of(examples).same_rows(Fingerprint.of(examples))


def test_it_survives_a_file(tmp_path: Path) -> None:
    for examples in (pixels(50), tokens()):
        found = Fingerprint.of(examples)
        (tmp_path / "a.json").write_text(json.dumps({"format_version": 1, "it": found.to_json()}))
        assert Fingerprint.from_json(Fields.read(tmp_path / "a.json", 1).object("it")) == found


def test_signs_are_the_same_on_every_machine() -> None:
    """Against the same arithmetic in Python's own whole numbers."""
    from rl_skip.core.fingerprint import _signs

    def sign(place: int, stream: int) -> int:
        mixed = (place + (stream + 1) * 0x9E3779B9) % 2**32
        for multiplier in (0x5BD1E995, 0x7FEB352D):
            mixed = ((mixed ^ (mixed >> 15)) * multiplier) % 2**32
        return 2 * (mixed >> 16 & 1) - 1

    for stream in (0, 5, 31):
        assert _signs(1000, stream).tolist() == [sign(place, stream) for place in range(1000)]
        assert abs(float(_signs(100_000, stream).mean())) < 0.02
