"""Faults while training: a full disk, a folder that is gone, a clock set back, an output that cannot be written: none loses what was trained."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from safetensors import SafetensorError

import agents.policy.policy_agent
import agents.run.session
import rl_skip.export.weights
import train
from agents.options.config import CheckpointConfig
from agents.run.checkpoints import Checkpoints
from agents.run.curve_files import CurveFile
from agents.run.run_folder import is_finished
from agents.run.session import VALIDATED_ROWS
from agents.run.telemetry import Telemetry
from benchmarks.kill import differences, points, reached
from rl_skip.cli.main import main as rl_skip_main
from rl_skip.core.files import NoRoom
from rl_skip.core.seal import check_sealed

TOP = Path(__file__).resolve().parents[3]
TINY = (
    "--layers", "3", "--width", "8", "--heads", "2", "--warmup-epochs", "1", "--epochs", "2", "--eval-epochs", "1", "--policy-epochs", "1",
    "--train-rows", "128", "--batch-size", "32", "--threads", "1", "--checkpoint-updates", "1",
)  # fmt: skip
"""Twelve updates, each with a checkpoint."""
UPDATES = 12


@contextmanager
def unwritable(which: Callable[[Path], bool], number: int = errno.ENOSPC) -> Iterator[None]:
    """Within it, files that `which` names cannot be written whole."""
    replace = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if which(target):
            raise OSError(number, os.strerror(number), str(self))
        return replace(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", fails)
        yield


def checkpoint_of(*updates: int) -> Callable[[Path], bool]:
    return lambda target: target.name.startswith("update-") and int(target.name.split("-")[1]) in updates


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert train.main([*TINY, "--out", str(folder)]) == 0
    assert reached(folder) == UPDATES
    return folder


# ------------------------------------------------------------------------------------------------------------ the curves


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes the disk still takes from `os.write`."""
    left, write = [10**9], os.write

    def limited(handle: int, content: bytes) -> int:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(handle, bytes(content)[: left[0]])
        left[0] -= written
        return written

    monkeypatch.setattr("agents.run.curve_files.os.write", limited)
    return left


def test_what_a_full_disk_does_not_take_is_written_later_and_once(tmp_path: Path, room: list[int]) -> None:
    file = CurveFile(tmp_path / "lines")
    file.write(b"first\n")
    room[0] = 3
    file.write(b"second\n")
    file.write(b"third\n")
    assert file.fault is not None and (tmp_path / "lines").read_bytes() == b"first\nsec"
    room[0] = 10**9
    file.write(b"fourth\n")
    assert file.fault is None and (tmp_path / "lines").read_bytes() == b"first\nsecond\nthird\nfourth\n"
    file.close()


def test_curves_go_on_over_a_full_disk(tmp_path: Path, room: list[int]) -> None:
    said: list[str] = []
    telemetry = Telemetry(tmp_path, said.append)
    for step in range(1, 7):
        room[0] = {3: 20, 6: 10**9}.get(step, room[0])
        telemetry.scalars(step, {"a": step, "b": -step})
        telemetry.flush()
    telemetry.close()
    assert points(tmp_path) == {(tag, step): 1 for tag in "ab" for step in range(1, 7)}
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [*range(1, 7)]
    assert len(said) == 3 and all("No space left on device); the run goes on" in line for line in said[:2]) and "written again" in said[2]


def test_a_training_does_not_end_with_its_curves(tmp_path: Path, room: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    room[0] = 300
    run = tmp_path / "run"
    assert train.main([*TINY, "--out", str(run)]) == 1
    said = capsys.readouterr()
    assert "test rows, price" in said.out and "the run goes on" in said.out
    assert said.err.startswith("error: last curves failed") and said.err.count("\n") == 1
    assert (run / "policy" / "policy.json").is_file()
    room[0] = 10**9
    assert train.main(["--resume", str(run)]) == 0 and is_finished(run, "reinforce")


# ------------------------------------------------------------------------------------------------- checkpoints and folder


def test_a_run_goes_on_where_there_is_no_room_for_a_checkpoint(unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with unwritable(checkpoint_of(1, 2, 6)):
        assert train.main([*TINY, "--out", str(run)]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "cannot be written" in line]
    assert ["there is none yet" in line for line in said] == [True, True, False]
    assert "(No space left on device); the checkpoint after update 5 is kept, and the run goes on" in said[2]
    assert differences(unbroken, run) == []
    assert not [*run.glob("checkpoints/.*")], "nothing half written takes room"


def test_older_checkpoints_make_room_for_a_new_one_and_the_newest_stays(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path, CheckpointConfig(keep_checkpoints=3))
    for update in (1, 2, 3):
        made.write(update, {"done": update})
    with unwritable(lambda target: len(list(target.parent.glob("*.pt"))) > 1):
        made.write(4, {"done": 4})
    assert sorted(file.name[:16] for file in tmp_path.glob("checkpoints/*.pt")) == ["update-000000003", "update-000000004"]
    with unwritable(lambda target: True), pytest.raises(NoRoom):
        made.write(5, {"done": 5})
    assert made.kept == 4 and reached(tmp_path) == 4


def test_a_disk_that_fails_ends_it_in_a_line_and_the_last_checkpoint_is_kept(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with unwritable(checkpoint_of(7), errno.EROFS):
        assert train.main([*TINY, "--out", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "(Read-only file system); mend that, then run the command again" in said
    assert reached(run) == 6
    assert train.main(["--resume", str(run)]) == 0 and differences(unbroken, run) == []


def test_a_folder_that_is_gone_ends_it_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run, write = tmp_path / "run", Checkpoints.write

    def gone(self: Checkpoints, done: int, state: dict[str, Any]) -> None:
        write(self, done, state)
        shutil.rmtree(run, ignore_errors=True)

    monkeypatch.setattr(Checkpoints, "write", gone)
    assert train.main([*TINY, "--out", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{run / 'checkpoints'} cannot be written (No such file or directory)" in said


def test_without_room_for_the_start_the_run_goes_on(unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with unwritable(lambda target: target.name == "start.safetensors"):
        assert train.main([*TINY, "--out", str(run)]) == 0
    assert "baselines of it will repeat the warm-up" in capsys.readouterr().out
    assert differences(unbroken, run) == [] and not (run / "start.safetensors").exists()


# ------------------------------------------------------------------------------------------------------------ the run's end


@pytest.fixture
def full_for_weights(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the disk is too full for weights."""
    full, save_file = [False], safetensors.torch.save_file

    def fails(state: Any, file: Path) -> None:
        if full[0]:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(state, file)

    monkeypatch.setattr(rl_skip.export.weights, "save_file", fails)
    return full


def test_an_export_without_room_loses_nothing_else(
    unbroken: Path, tmp_path: Path, full_for_weights: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    full_for_weights[0] = True
    assert train.main([*TINY, "--out", str(run)]) == 1
    said = capsys.readouterr()
    assert f"export of the policy failed: {run / 'policy'} cannot be written (No space left on device); make room" in said.out
    assert "test rows, price" in said.out and "does what is left, without training" in said.err
    assert "Traceback" not in said.out + said.err
    full_for_weights[0] = False
    assert train.main(["--resume", str(run)]) == 0 and differences(unbroken, run) == []


def test_prune_and_export_without_room_leave_nothing(
    unbroken: Path, tmp_path: Path, full_for_weights: list[bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full_for_weights[0] = True

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("rl_skip.export.policy_folder.shutil.copyfile", full)
    for command in (["prune", str(unbroken), str(tmp_path / "cut"), "--layers", "0,1"], ["export", str(unbroken), str(tmp_path / "copy")]):
        assert rl_skip_main(command) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "cannot be written (No space left on device)" in said
    assert list(tmp_path.iterdir()) == []


def test_a_report_without_room_is_shown_all_the_same(unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with unwritable(lambda target: target.name == "report.json"):
        assert train.main([*TINY, "--out", str(run)]) == 1
    said = capsys.readouterr()
    assert said.out.count("writing the report failed") == 1 and "test rows, price" in said.out
    assert said.err.startswith("error: writing the report failed; python train.py --resume")
    assert train.main(["--resume", str(run)]) == 0 and differences(unbroken, run) == []


def test_a_seal_without_room_is_made_when_the_run_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with unwritable(lambda target: target.name == "SHA256SUMS" and target.parent == run):
        assert train.main([*TINY, "--out", str(run)]) == 2
    assert "SHA256SUMS cannot be written" in capsys.readouterr().err and not (run / "SHA256SUMS").exists()
    assert train.main(["--resume", str(run)]) == 0
    check_sealed(run, whole=True)


def test_what_was_there_stays_where_a_new_export_cannot_be_put(tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, rename = tmp_path / "run", Path.rename
    shutil.copytree(unbroken, run)
    (run / "report.json").unlink()
    before = {file.name: file.read_bytes() for file in (run / "policy").iterdir()}

    def fails(self: Path, target: Path) -> Path:
        if self.name == "new" and target.name == "policy":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    assert train.main(["--resume", str(run)]) == 1
    assert {file.name: file.read_bytes() for file in (run / "policy").iterdir()} == before


# --------------------------------------------------------------------------------------------------- signals and the clock


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_validation_does_not_hold_up_a_request_to_stop(
    name: str, code: int, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, begun = tmp_path / "run", time.monotonic()
    evaluate = agents.policy.policy_agent.evaluate

    def endless(stack: Any, policy: Any, task: Any, examples: Any, **named: Any) -> Any:
        if len(examples) > VALIDATED_ROWS:  # and not those by which the time is foreseen
            os.kill(os.getpid(), getattr(signal, name))
            time.sleep(60)
        return evaluate(stack, policy, task, examples, **named)

    before = signal.signal(getattr(signal, name), signal.SIG_DFL)
    with monkeypatch.context() as patch:
        patch.setattr(agents.policy.policy_agent, "evaluate", endless)
        assert train.main([*TINY, "--out", str(run)]) == code
    signal.signal(getattr(signal, name), before)
    assert time.monotonic() - begun < 40
    said = capsys.readouterr().err
    assert said == f"stopped; go on with: python train.py --resume {run}\n"
    assert reached(run) == 5, "the update that was to be validated, the first after the warm-up"
    assert train.main(["--resume", str(run)]) == 0
    assert differences(unbroken, run) == []
    assert set(points(run).values()) == {1}


def test_a_request_to_stop_before_the_first_update_is_answered_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(agents.run.session, "load_task", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert train.main([*TINY, "--out", str(tmp_path / "run")]) == 143
    assert capsys.readouterr().err == "stopped; nothing of this was trained yet; the same command does it\n"
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_is_set_back_changes_no_duration(unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [time.time()]

    def back() -> float:
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", back)
    run = tmp_path / "run"
    assert train.main([*TINY, "--out", str(run)]) == 0
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = [entry["time/samples_per_second"] for entry in entries if "time/samples_per_second" in entry]
    assert speeds and all(0 < speed < 1e7 for speed in speeds)
    assert 0 < json.loads((run / "report.json").read_text())["seconds"] < 600
    assert differences(unbroken, run) == []


# ------------------------------------------------------------------------------------------------------------- the display


def in_a_shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of it, `train` and `rl-skip` being the programs."""
    line = line.replace("train ", f"{sys.executable} train.py ").replace("rl-skip ", f"{sys.executable} -m rl_skip ")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=TOP, env=environment, timeout=120, check=False)


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "20"}


@pytest.mark.parametrize(
    ("after", "variables", "told"),
    [
        ("> /dev/full", {}, "warning: standard output cannot be written (No space left on device), and some of it is lost\n"),
        (">&- 2>&-", {}, ""),
        ("", ASCII, ""),
    ],
)
def test_a_training_does_not_end_with_its_display(after: str, variables: dict[str, str], told: str, unbroken: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = in_a_shell(f"train {' '.join(TINY)} --out {run} {after}", **variables)
    assert (done.returncode, done.stderr) == (0, told)
    assert differences(unbroken, run) == []


def test_a_result_that_is_lost_is_an_error(unbroken: Path) -> None:
    done = in_a_shell(f"rl-skip info {unbroken} > /dev/full")
    assert done.returncode == 1 and done.stderr.startswith("error: standard output cannot be written (No space left on device)")


def test_an_ascii_locale_spells_out_what_it_has_no_letters_for(tmp_path: Path) -> None:
    done = in_a_shell("train --help", **ASCII)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "--price" in done.stdout
    assert not [letter for letter in done.stdout if ord(letter) > 127]
    said = in_a_shell("rl-skip info na\u00efve", **ASCII)
    assert said.returncode == 2 and said.stderr.count("\n") == 1 and "LC_ALL=C.UTF-8" in said.stderr
