"""The launchers that people have: torchrun, accelerate launch, and plain python, from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import train
from agents.run.launch import joined, launched
from rl_skip.core.errors import UserError
from rl_skip.core.processes import ALONE, Processes

TOP = Path(__file__).resolve().parents[3]
OPTIONS = ("--train-rows", "100", "--layers", "3", "--width", "16", "--heads", "2", "--warmup-epochs", "1", "--epochs", "2", "--policy-epochs", "1")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0")


def command(launcher: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *launcher, "train.py", *arguments], cwd=TOP, capture_output=True, text=True, env=environment, timeout=240)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run by each launcher."""
    pytest.importorskip("accelerate")
    folder = tmp_path_factory.mktemp("runs")
    for name, launcher in (("python", ()), ("torchrun", TORCHRUN), ("accelerate", ACCELERATE)):
        done = command(launcher, *OPTIONS, "--out", str(folder / name))
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("data of the task digits:") == 1 and done.stdout.count("best fixed route") >= 1
    return {name: folder / name for name in ("python", "torchrun", "accelerate")}


def curves(run: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if not name.startswith("time/")} for entry in entries]


def test_each_launcher_trains_one_model_the_same(runs: dict[str, Path]) -> None:
    assert [json.loads((run / "config.json").read_text())["processes"] for run in runs.values()] == [1, 2, 2]
    assert curves(runs["torchrun"]) == curves(runs["accelerate"])
    for alone, together in zip(curves(runs["python"]), curves(runs["torchrun"]), strict=True):
        assert together == pytest.approx(alone, rel=1e-3, abs=1e-3)
    exports = [(run / "policy" / "policy.safetensors").read_bytes() for run in (runs["torchrun"], runs["accelerate"])]
    assert exports[0] == exports[1]


def test_torchrun_ends_where_train_does(runs: dict[str, Path]) -> None:
    done = command(TORCHRUN, *OPTIONS, "--out", str(runs["python"]))
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and f"the run folder {runs['python']} exists" in lines[0]


LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}


def test_what_accelerate_is_configured_for_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    schedule = train.read_options([]).schedule
    assert (schedule.precision, schedule.accumulate) == ("bf16", 4)
    schedule = train.read_options(["--precision", "no", "--accumulate", "1"]).schedule
    assert (schedule.precision, schedule.accumulate) == ("no", 1)


def test_an_accelerate_that_starts_one_process_for_several_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert train.main(["--epochs", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: accelerate launch was asked for several processes and started one") and "--multi_gpu" in line


def test_what_does_not_say_which_process_it_is_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were started that do not say which is which"), joined():
        pass


@pytest.mark.parametrize(
    ("told", "processes"),
    [
        ({}, ALONE),
        ({"WORLD_SIZE": "1", "RANK": "0"}, ALONE),
        ({"WORLD_SIZE": "4", "RANK": "3"}, Processes(3, 4)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, Processes(1, 2)),
        ({"PMI_SIZE": "8", "PMI_RANK": "7"}, Processes(7, 8)),
    ],
)
def test_launchers_say_how_many_there_are(told: dict[str, str], processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert launched() == processes


@pytest.mark.parametrize("rank", ["0", "1"])
def test_compare_runs_in_one_process(rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert train.main(["compare", "runs/none"]) == 2
    assert capsys.readouterr().err.count("compare runs in one process, and 2 were started") == (rank == "0")
