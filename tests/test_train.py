"""The command line of training: what it refuses, in one line and before anything is written, and what it explains."""

import re
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import train
from agents.options.config import TrainConfig
from rl_skip.cli.main import main as rl_skip

TOP = Path(__file__).resolve().parents[1]


def contents(folder: Path) -> dict[str, bytes | None]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() if file.is_file() else None for file in folder.rglob("*")}


def option_names(kind: type) -> list[str]:
    """The flags of all fields of a dataclass and of those inside it."""
    names = []
    for field, hint in ((field, get_type_hints(kind)[field.name]) for field in fields(kind)):
        names += option_names(hint) if is_dataclass(hint) else ["--" + field.name.replace("_", "-")]
    return names


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "speech"], "the task 'speech' needs data; set --data PATH"),
        (["--task", "speech", "--data", "missing.tar.gz"], "there is nothing at missing.tar.gz; set --data"),
        (["--task", "images", "--data", "missing"], "there is nothing at missing; set --data"),
        (["--task", "speech", "--data", "empty"], "empty"),
        (["--task", "images", "--data", "empty"], "empty"),
        (["--task", "speech", "--data", "zero.tar.gz"], "zero.tar.gz"),
        (["--task", "images", "--data", "zero.npz"], "zero.npz"),
        (["--task", "poetry"], "there is no task 'poetry'; set --task"),
        (["--layers", "0"], "a network has 1 to 1,000 layers, got 0; set --layers"),
        (["--width", "30"], "30 does not divide into 4 heads; set --width"),
        (["--price", "-1"], "must be a finite number of at least 0, got -1.0; set --price"),
        (["--price", "nan"], "must be a finite number of at least 0, got nan; set --price"),
        (["--price-range", "1", "0.1"], "the price range must ascend, got 1.0 0.1; set --price-range"),
        (["--budget", "0"], "a budget is a mean compute in (0, 1], 0.001 at the least, got 0.0; set --budget"),
        (["--budget", "0.5", "--price", "0.5"], "a price and a budget exclude each other"),
        (["--layers", "6", "--max-jump", "6"], "for 6 layers, got 6; set --max-jump"),
        (["--max-jump", "0"], "got 0; set --max-jump"),
        (["--epochs", "0"], "set --epochs"),
        (["--epochs", "1_0"], "--epochs: expected a whole number in the digits 0 to 9, got '1_0'"),
        (["--budget", "٠.٥"], "--budget: expected a number in the digits 0 to 9, got '٠.٥'"),
        (["--train-rows", "ten"], "--train-rows: expected a whole number in the digits 0 to 9, got 'ten'"),
        (["--price-range", "0.1", "1_0"], "--price-range: expected a number in the digits 0 to 9, got '1_0'"),
        (["--learning-rate", "inf"], "set --learning-rate"),
        (["--threads", "0"], "got 0; set --threads"),
        (["--checkpoint-minutes", "0"], "set --checkpoint-minutes"),
        (["--checkpoint-updates", "0"], "set --checkpoint-updates"),
        (["--keep-checkpoints", "0"], "set --keep-checkpoints"),
        (["--out", "a-run"], "the run folder a-run exists; name another with --out"),
        (["--out", "a-run", "--overwrite"], "a-run is not a run folder, so it is not replaced"),
        (["--out", "no-run", "--overwrite"], "no-run is not a run folder, so it is not replaced"),
        (["--out", "file", "--overwrite"], "file is not a run folder, so it is not replaced"),
        (["--agnet", "ppo"], "is --agent meant? python train.py --help"),
        (["--policy-layers", "2"], "python train.py --help lists the options"),
        (["--resume", "no-run"], "no-run is no run folder, it has no config.json"),
        (["--resume", "nowhere"], "nowhere is no run folder, it has no config.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_writes_nothing(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("zero.tar.gz", "zero.npz", "file"):
        (tmp_path / name).touch()
    for name, file in (("a-run", "config.json"), ("no-run", "thesis.tex")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("years of work")
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert train.main([*flags, "--threads", "1"] if "--threads" not in flags and "--resume" not in flags else flags) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1 and said.err.startswith("error: ")
    assert message in said.err
    assert contents(tmp_path) == before


def test_the_process_ends_with_code_2_and_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(TOP / "train.py"), "--price", "nan"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: the price must be a finite number of at least 0, got nan; set --price, or price=\n"
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_left_byte_for_byte(finished_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished_run.folder)
    assert train.main(["--out", str(finished_run.folder), *finished_run.options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert contents(finished_run.folder) == before


# ---------------------------------------------------------------------------------------------------------- the folder


def test_the_run_folder_holds_what_the_next_commands_need(finished_run: Any) -> None:
    names = {name.partition(".tfevents")[0] for name in contents(finished_run.folder)}
    assert {"config.json", "metrics.jsonl", "report.json", "events.out"} <= names
    assert {"policy/policy.json", "policy/policy.safetensors", "policy/model.safetensors", "policy/README.md"} <= names


@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_a_finished_run_of_which_a_bit_changed_is_refused(name: str, finished_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sums = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=finished_run.folder, capture_output=True, text=True)
    assert sums.returncode == 0 and {"config.json: OK", "report.json: OK", "metrics.jsonl: OK"} <= set(sums.stdout.splitlines())
    folder = Path(shutil.copytree(finished_run.folder, tmp_path / "run"))
    (folder / name).write_text((folder / name).read_text().replace("0", "1", 1))
    assert rl_skip(["eval", str(folder)]) == 2
    assert f"{folder / name} is not as it was written" in capsys.readouterr().err


def test_overwrite_replaces_a_run_and_the_same_seed_gives_the_same_policy(finished_run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text('{"format_version": 1, "task": {}, "network": {}, "agent": ""}')  # of an earlier version
    (folder / "stale").touch()
    assert train.main(["--out", str(folder), "--overwrite", *finished_run.options]) == 0
    assert not (folder / "stale").exists() and not (folder / ".owner").exists()
    for name in ("policy.safetensors", "model.safetensors"):
        assert (folder / "policy" / name).read_bytes() == (finished_run.folder / "policy" / name).read_bytes()


# ------------------------------------------------------------------------------------------------------------ the help


def test_help_explains_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "79")  # one column of options
    with pytest.raises(SystemExit) as done:
        train.main(["--help"])
    assert done.value.code == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    text = "\n".join(line.strip("│╭╮╰╯─ ") for line in text.splitlines())
    explained = dict(re.findall(r"^(--[a-z][a-z-]+)(.*?)\((?:default:|repeatable)", text, flags=re.MULTILINE | re.DOTALL))
    names = [name for name in option_names(TrainConfig) if name != "--processes"]  # which the launcher says, and nobody else
    assert "--processes" not in text and len(names) > 40 and len(set(names)) == len(names)
    for name in names:
        shown = re.sub(r"^, --no-\S+|\b[A-Z]{3,}\b|\{.*?\}|\|", "", explained.get(name, ""))  # without the kind of its value
        assert len(shown.split()) >= 3, f"{name} is explained by {shown!r}"


def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    assert train.main(["--layers", "4", "--width", "16", "--out", str(tmp_path / "file" / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the run folder") and error.count("\n") == 1 and "--out" in error
