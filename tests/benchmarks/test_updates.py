"""The cost of an update: what is printed as the exact gradient is measured with it."""

import sys

import pytest

from benchmarks import updates

TINY = ["updates.py", "--pairs", "6", "--layers", "3", "--width", "8", "--heads", "2", "--train-rows", "64"]


@pytest.mark.parametrize("flags", [[], ["--warmup-epochs", "1"]])
def test_an_update_is_timed_with_a_teacher_and_without(flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [*TINY, *flags])
    updates.main()
    assert "joint / plain" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--gradient", "sampled"], "has the exact gradient; leave --gradient and --baseline out, or set --sampled"),
        (["--sampled", "1"], "cannot do with 1 routes per input"),
    ],
)
def test_a_gradient_that_is_not_what_would_be_printed_is_refused(flags: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [*TINY, *flags])
    with pytest.raises(SystemExit, match=complaint):
        updates.main()
