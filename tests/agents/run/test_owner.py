"""A run folder has one owner: real processes that hold it, die, and come second; file systems that know no locks."""

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import train
from agents.run import owner
from agents.run.owner import LOCK, owning, refuse_owned
from rl_skip.core.errors import UserError

TOP = Path(__file__).resolve().parents[3]
HOLD = """
import runpy, sys
from pathlib import Path
with runpy.run_path("agents/run/owner.py")["owning"](Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holding(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that owns the folder until it is told to end."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=TOP, stdin=-1, stdout=-1, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "mine\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused, owning(folder):
        pass
    with pytest.raises(UserError) as seen:
        refuse_owned(folder)
    assert str(seen.value) == str(refused.value)
    return str(refused.value)


def test_a_second_owner_is_refused_and_told_the_first_one(tmp_path: Path) -> None:
    with holding(tmp_path) as process:
        told = refusal(tmp_path)
        assert f"{tmp_path} is in use by process {process.pid} on {socket.gethostname()}, since 20" in told and "\n" not in told
        process.communicate("")  # it ends by itself
        with owning(tmp_path):
            assert f"process {os.getpid()} on" in refusal(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_killed_process_owns_nothing(tmp_path: Path) -> None:
    with holding(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / LOCK).read_text().startswith(f"{process.pid} ")
    refuse_owned(tmp_path)
    with owning(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f"{os.getpid()} ")


def test_of_many_processes_that_start_at_once_one_owns_the_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=TOP, stdin=-1, stdout=-1, stderr=-1, text=True) for _ in range(4)]
    try:
        winner = next(process for process in processes if process.stdout and process.stdout.readline())
        others = [process for process in processes if process is not winner]
        assert all("is in use by" in process.communicate()[1] for process in others)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_where_files_cannot_be_locked_a_process_that_lives_owns_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_handle: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(owner, "_lock_by_system", unknown)
    with holding(tmp_path) as process:
        told = refusal(tmp_path)
        assert f"process {process.pid} on" in told and f"remove {tmp_path / LOCK} if it has" in told
    with owning(tmp_path):
        pass
    (tmp_path / LOCK).write_text(f"{process.pid} another-machine 2026-01-01 00:00 UTC\n")
    assert f"process {process.pid} on another-machine" in refusal(tmp_path)


@pytest.mark.parametrize(
    "command", [["--out", "{}"], ["--out", "{}", "--overwrite"], ["--resume", "{}"], ["compare", "{}", "--train-baselines"]], ids=" ".join
)
def test_a_run_in_progress_is_left_as_it_is(command: list[str], finished_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished_run.folder
    if "--resume" in command:
        folder = tmp_path
        (tmp_path / "config.json").write_text((finished_run.folder / "config.json").read_text().replace(str(finished_run.folder), str(tmp_path)))
    with holding(folder) as process:
        before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
        assert train.main([word.format(folder) for word in command]) == 2
        assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and f"{folder} is in use by process {process.pid} " in told[0]
    (folder / LOCK).unlink()


NOT_RUNS = (
    "years of work",
    "{}",
    "[1]",
    '{"model_type": "bert"}',
    '{"format_version": 2, "task": {}}',
    '{"task": {}, "network": {}, "agent": ""}',
)


@pytest.mark.parametrize("config", NOT_RUNS)
def test_overwrite_replaces_no_folder_whose_config_is_not_of_a_run(config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(config)
    assert train.main(["--out", str(tmp_path), "--overwrite"]) == 2
    assert f"{tmp_path} is not a run folder" in capsys.readouterr().err
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("config.json", config)]
