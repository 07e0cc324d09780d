from collections import UserDict

import pytest
import torch

from rl_skip import UserError
from rl_skip.core.inputs import as_inputs

ROWS = torch.zeros(2, 3)


def test_tensors_and_mappings_of_tensors_are_inputs() -> None:
    assert as_inputs(ROWS) is ROWS
    given = as_inputs(UserDict(ids=ROWS))  # as what a tokenizer returns is
    assert isinstance(given, dict) and given["ids"] is ROWS


@pytest.mark.parametrize(
    ("given", "said"),
    [([1.0], "got a list;"), ("a text", "got a str;"), ({}, "a dict with nothing in it"), ({"ids": ROWS, "text": "a"}, "with 'text' of type str")],
)
def test_other_things_are_refused_in_a_line(given: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        as_inputs(given)
