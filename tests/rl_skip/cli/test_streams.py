"""What is piped into a program that ends first."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parents[3]


def with_a_reader_that_is_gone(*words: str) -> subprocess.CompletedProcess[str]:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run([sys.executable, *words], stdout=writing, stderr=subprocess.PIPE, text=True, cwd=TOP, timeout=120, check=False)
    finally:
        os.close(writing)


@pytest.mark.parametrize("unbuffered", [False, True])
def test_what_nobody_reads_is_dropped_without_a_word(finished_run: Any, unbuffered: bool) -> None:
    options = ["-u"] * unbuffered
    ended = with_a_reader_that_is_gone(*options, "-m", "rl_skip", "info", str(finished_run.folder))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_training_goes_on_when_its_reader_is_gone(finished_run: Any, tmp_path: Path) -> None:
    ended = with_a_reader_that_is_gone("-u", "train.py", "--out", str(tmp_path / "run"), *finished_run.options[:-1], "1")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "run" / "report.json").is_file()
