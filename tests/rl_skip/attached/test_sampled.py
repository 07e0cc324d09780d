"""A few numbers of each weight: the same in every precision, others after training; what cannot be compared is not."""

import pytest
import torch
from torch import Tensor

from rl_skip.attached.sampled import MOST, check_samples, differing, sampled
from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"a": torch.randn(8, 8) * 0.04, "norm": torch.ones(8), "bias": torch.zeros(3), "one": torch.randn(()), "step": torch.tensor(3)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_they_are_the_same_in_every_precision(dtype: torch.dtype) -> None:
    saved = sampled(weights())
    assert saved.keys() == {"a", "norm", "bias", "one"}
    assert differing(saved, {name: weight.to(dtype) for name, weight in weights().items()}) is None


@pytest.mark.parametrize("name", ["a", "norm", "bias", "one"])
def test_a_weight_that_was_trained_is_named(name: str) -> None:
    trained = weights()
    trained[name] = trained[name] * 1.1 + 0.001
    assert differing(sampled(weights()), trained) == name


def test_a_weight_of_another_shape_is_named() -> None:
    assert differing(sampled(weights()), weights() | {"bias": torch.zeros(2)}) == "bias"


def test_a_vocabulary_may_grow() -> None:
    assert sampled(weights() | {"words": torch.randn(11, 8)}, vocabulary=11).keys() == sampled(weights()).keys()


def test_what_has_other_names_or_whole_numbers_is_not_compared() -> None:
    saved = sampled(weights())
    assert differing(saved, {f"inside.{name}": weight + 1 for name, weight in weights().items()}) is None
    assert differing(saved, {name: torch.ones_like(weight, dtype=torch.int8) for name, weight in weights().items()}) is None
    assert differing({}, weights()) is None


def test_of_many_weights_some_are_left_out() -> None:
    many = {f"w{i:04d}": torch.randn(2) for i in range(1000)}
    saved = sampled(many)
    assert MOST / 2 < len(saved) <= MOST
    check_samples(Fields({"weights": saved}, "a file"), "weights")


@pytest.mark.parametrize("wrong", [None, 3, [1.0], {"a": 1.0}, {"a": ["x"]}, {"a": [True]}, {"a": [0.0] * 5}, {str(i): [0.0] for i in range(257)}])
def test_what_cannot_have_been_written_is_refused(wrong: object) -> None:
    with pytest.raises(UserError, match="a file: weights must be 4 numbers each for at most 256 weights"):
        check_samples(Fields({"weights": wrong}, "a file"), "weights")
