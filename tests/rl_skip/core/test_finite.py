"""Numbers that are not finite are found by name, and nothing else is."""

import math

import pytest
import torch
from torch import nn

from rl_skip.core.finite import NotFinite, found_in, not_finite, refuse_not_finite, row_not_finite

BAD = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_number_among_many_is_found_and_its_tensor_named(bad: float, dtype: torch.dtype) -> None:
    tensors = {name: torch.randn(7, 5).to(dtype) for name in "abc"} | {"whole": torch.arange(3), "none": torch.zeros(0)}
    assert not_finite(tensors.items()) is None
    tensors["b"][3, 2] = bad
    assert not_finite(tensors.items()) == "b"


def test_what_is_large_is_finite() -> None:
    assert not_finite([("double", torch.tensor(1e300, dtype=torch.float64)), ("half", torch.tensor(65504, dtype=torch.float16))]) is None


@pytest.mark.parametrize("bad", BAD)
def test_masks_alone_hold_minus_infinity(bad: float) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module.register_buffer("mask", torch.tensor([0.0, bad]))
    assert found_in(module) == (None if bad == -math.inf else "mask")
    module.register_buffer("mask", torch.tensor([-math.inf, -math.inf]))
    assert found_in(module) is None
    module[1].weight.data[0, 1] = bad
    with pytest.raises(NotFinite, match="a/file: the weight 1.weight holds numbers that are not finite; load another"):
        refuse_not_finite(module, "a/file", "load another")


def test_the_first_row_is_named() -> None:
    rows = torch.zeros(6, 2, 3)
    assert row_not_finite(rows) is None and row_not_finite(torch.arange(3)) is None
    rows[4, 1, 2], rows[5] = math.nan, math.inf
    assert row_not_finite(rows) == 4
    assert row_not_finite(rows[:, 1, 2]) == 4
