"""train.py in several processes: one run, one folder, one voice; stopped and resumed, and ended by whatever ends one of them."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.agents.processes import Running, training

OPTIONS = ("--train-rows", "200", "--layers", "3", "--width", "16", "--heads", "2", "--warmup-epochs", "1", "--epochs", "4", "--policy-epochs", "2")
SAMPLED = (*OPTIONS, "--no-readouts", "--dropout", "0.1")
FAILING = """
import os, signal, time
from dataclasses import replace
import torch
from rl_skip import Task
from rl_skip.core.errors import UserError
from rl_skip.tasks import load_task

updates = 0

class Failing(Task):
    def loss(self, outputs, labels):
        global updates
        updates += 1
        if os.environ["RANK"] == "1" and updates >= 12:
            {failure}
        return super().loss(outputs, labels)

def failing(path):
    task = load_task("digits")
    return Failing("failing", task.classes, task.load, task.embedding, task.tokens)
"""


def weights(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run / "policy").glob("*.safetensors")}


def curves(run: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if not name.startswith("time/")} for entry in entries]


def state(run: Path) -> dict[str, Any]:
    return torch.load(max((run / "checkpoints").glob("*.pt")), weights_only=True)


def finished(count: int, folder: Path, *options: str) -> Running:
    running = training(count, folder / f"{count}-said", *options)
    assert running.ended() == [0] * count, running.said()
    return running


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes with sampled routes and dropout, never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    running = finished(2, folder, *SAMPLED, "--out", str(folder / "run"))
    assert not running.said(), "nothing goes wrong"
    assert len(running.said("out")) == len((running.folder / "0.out").read_text().splitlines()), "the first process alone speaks"
    return folder / "run"


def test_one_process_writes_and_all_have_what_it_is_made_of(whole: Path) -> None:
    config = json.loads((whole / "config.json").read_text())
    assert config["processes"] == 2
    report = json.loads((whole / "report.json").read_text())
    assert report["rows"] == 360 and "unfinished" not in report and report["policy"]["milliseconds"] > 0
    assert len({file.name.split(".")[-2] for file in whole.rglob("events.out.tfevents.*")}) == 1, "the process of each file"
    assert list(whole.glob("env_steps/events.out.tfevents.*"))
    assert [entry["step"] for entry in curves(whole)] == list(range(1, 17)), "an update each, and the finished policy"
    assert not (whole / ".owner").exists() and (whole / "SHA256SUMS").is_file()


def test_a_run_of_which_one_process_was_stopped_goes_on_bit_for_bit(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    running = training(2, tmp_path / "said", *SAMPLED, "--out", str(run), "--checkpoint-updates", "1")
    while not list(run.glob("checkpoints/update-00000000[5-9]*.pt")):
        assert all(process.is_alive() for process in running.each), running.said()
        time.sleep(0.01)
    os.kill(running.each[1].pid or 0, signal.SIGTERM)
    assert running.ended(30) == [143, 143]
    assert running.said() == [f"stopped; go on with: torchrun --nproc_per_node 2 train.py --resume {run}"]
    assert 5 <= state(run)["done"] < 15
    finished(2, tmp_path, "--resume", str(run))
    assert weights(run) == weights(whole) and curves(run) == curves(whole)


def test_another_number_of_processes_is_refused(whole: Path, tmp_path: Path) -> None:
    for count in (1, 3):
        (whole / "report.json").rename(tmp_path / "report.json")
        before = sorted(whole.rglob("*"))
        running = training(count, tmp_path / str(count), "--resume", str(whole))
        assert running.ended() == [2] * count and sorted(whole.rglob("*")) == before
        advice = f"go on with torchrun --nproc_per_node 2 train.py --resume {whole}"
        assert running.said() == [f"error: the run {whole} was begun in 2 processes, not {count}; {advice}"]
        (tmp_path / "report.json").rename(whole / "report.json")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--agent", "ppo"), "error: the agent ppo trains in one process, and 2 were started; start it with python, or set --agent reinforce"),
        (("--agent", "static", "--budget", "0.5"), "error: the agent static trains in one process, and 2 were started"),
        (("--batch-size", "1"), "error: a batch of 1 rows does not divide into 2 parts, for each process and pass one; raise --batch-size"),
        (("--budget", "2"), "error: a budget is a mean compute in (0, 1], 0.001 at the least, got 2.0; set --budget, or budget="),
    ],
    ids=["ppo", "baseline", "batch", "budget"],
)
def test_a_mistake_is_told_once(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    running = training(2, tmp_path / "said", *options, "--out", str(tmp_path / "run"))
    assert running.ended() == [2, 2] and not (tmp_path / "run").exists()
    (line,) = running.said()
    assert line.startswith(said)


def test_a_second_start_is_refused_as_ever(whole: Path, tmp_path: Path) -> None:
    running = training(2, tmp_path / "said", *SAMPLED, "--out", str(whole))
    codes = running.ended()
    assert codes[0] == 2 and codes[1] != 0
    (line,) = running.said()
    assert line.startswith(f"error: the run folder {whole} exists")


@pytest.mark.parametrize(
    ("failure", "codes", "said"),
    [
        ("raise UserError('the second one gives up')", {2}, "error: the second one gives up"),
        ("os.kill(os.getpid(), signal.SIGKILL)", {-signal.SIGKILL}, "error: another of the 2 processes ended without a word"),
        ("return super().loss(outputs, labels) * float('nan')", {1}, "error: training stopped at update"),
    ],
    ids=["refusal", "killed", "not finite"],
)
def test_what_ends_one_process_ends_all(failure: str, codes: set[int], said: str, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING.replace("{failure}", failure))
    running = training(2, tmp_path / "said", "--task", f"{tmp_path / 'failing.py'}:failing", *OPTIONS, "--out", str(tmp_path / "run"))
    first, second = running.ended(60)
    assert first != 0 and second in codes
    (line,) = running.said()
    assert line.startswith(said)
    assert not (tmp_path / "run" / ".owner").exists() or first < 0


def test_a_part_of_the_end_that_fails_in_one_process_ends_all_and_is_done_later(tmp_path: Path) -> None:
    run = tmp_path / "run"
    running = training(2, tmp_path / "said", *OPTIONS, "--out", str(run), "--checkpoint-updates", "1")
    while not (run / "start.safetensors").is_file():
        assert all(process.is_alive() for process in running.each), running.said()
        time.sleep(0.01)
    (run / "policy").write_text("a file where the export goes")
    assert set(running.ended()) == {1}
    (line,) = running.said()
    assert "export of the policy failed" in line and line.endswith("what was trained is kept, and --resume does what is left")
    (run / "policy").unlink()
    finished(2, tmp_path, "--resume", str(run))
    assert weights(run) and "unfinished" not in json.loads((run / "report.json").read_text())
