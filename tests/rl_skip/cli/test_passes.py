"""How far a command has come: lines only where it takes long, one line that changes on a terminal."""

import io
import sys

import pytest

from rl_skip.cli import passes
from rl_skip.core.progress import begin_stage, rows_done


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(passes.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_short_command_is_silent_and_a_long_one_speaks_now_and_then(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with passes.showing_progress():
        begin_stage("policy")
        for second in range(40):
            clock[0] = 100.0 + second
            rows_done(1000 * second, 60_000)
    assert sys.stderr.getvalue().splitlines() == ["policy: 15,000 of 60,000 rows, 15 s", "policy: 30,000 of 60,000 rows, 30 s"]


def test_on_a_terminal_one_line_changes_and_is_gone_at_the_end(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with passes.showing_progress():
        begin_stage("full depth")
        clock[0] += 1
        rows_done(256, 1024)
    shown = sys.stderr.getvalue()
    assert "\n" not in shown and "full depth: 256 of 1,024 rows, 1 s" in shown and shown.endswith("\r\033[K")
