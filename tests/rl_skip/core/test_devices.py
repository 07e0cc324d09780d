"""The device that is asked for, or one line that says it is not there."""

import pytest
import torch

from rl_skip.core.devices import pick_device
from rl_skip.core.errors import UserError

THERE = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


@pytest.mark.parametrize("name", THERE)
def test_a_device_that_is_named_is_taken_or_refused(name: str) -> None:
    if THERE[name]:
        assert pick_device(name) == pick_device(torch.device(name)) == torch.device(name)
        return
    with pytest.raises(UserError, match=f"there is no {name} device here; set --device auto or cpu"):
        pick_device(name)


def test_auto_takes_the_first_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cuda, mps in ((True, True), (False, True), (False, False)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: there)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: there)
        found.append(pick_device("auto").type)
    assert found == ["cuda", "mps", "cpu"]


def test_a_name_that_is_none_is_told_in_one_line() -> None:
    with pytest.raises(UserError, match="the device abacus cannot be used") as told:
        pick_device("abacus")
    assert "\n" not in str(told.value)
