"""What a run says of its data, and that it goes on with the same rows alone."""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from agents.agent import AgentConfig
from agents.options.config import TrainConfig
from agents.run.session import train as train_run
from rl_skip.cli.main import main as rl_skip
from rl_skip.core.errors import UserError
from rl_skip.core.task import Examples, Task
from rl_skip.measure.runs import load_run
from rl_skip.tasks.data_report import DataReport, read_data_report

OWN_TASK = """
import json
from pathlib import Path

import torch

from rl_skip import Examples, Task


def signs(path):
    rows = json.loads(Path(path).read_text())

    def load(split):
        labels = [label for _, label in rows[split]][: -rows["labels left out"][0] if "labels left out" in rows else None]
        return Examples(torch.tensor([x for x, _ in rows[split]]), torch.tensor(labels))

    return Task("signs", ("minus", "plus", "none"), load, lambda width: torch.nn.Linear(3, width), 4, remarks=("2 rows of signs.json were odd",))
"""
SIZES = {"train": 90, "validation": 40, "test": 30}
OPTIONS = ("--layers", "3", "--width", "16", "--heads", "2", "--warmup-epochs", "1", "--epochs", "1", "--batch-size", "30", "--device", "cpu")


def rows() -> dict[str, list[Any]]:
    """Rows of 4 × 3 numbers with a label each."""
    made = {}
    for split, count in SIZES.items():
        made[split] = [[[[(n * 7 + place * 3 + part) % 11 - 5.0 for part in range(3)] for place in range(4)], n % 2] for n in range(count)]
    return made


@pytest.fixture(scope="module")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a task of one's own, whose file and data lie beside it."""
    top = tmp_path_factory.mktemp("own")
    (top / "own.py").write_text(OWN_TASK)
    (top / "signs.json").write_text(json.dumps(rows()))
    assert train.main(["--task", f"{top / 'own.py'}:signs", "--data", str(top / "signs.json"), "--out", str(top / "run"), *OPTIONS]) == 0
    return top / "run"


@pytest.fixture
def other_data(tmp_path: Path) -> Callable[[Callable[[dict[str, list[Any]]], object]], str]:
    """Writes the data with a change."""

    def write(change: Callable[[dict[str, list[Any]]], object]) -> str:
        made = rows()
        change(made)
        (tmp_path / "other.json").write_text(json.dumps(made))
        return str(tmp_path / "other.json")

    return write


def stopped(run: Path, folder: Path) -> Path:
    """The run as one that was stopped before its end, which never read its test data."""
    shutil.copytree(run, folder)
    for name in ("report.json", "SHA256SUMS"):
        (folder / name).unlink()
    shutil.rmtree(folder / "policy")
    described = json.loads((folder / "data.json").read_text())
    del described["splits"]["test"]
    (folder / "data.json").write_text(json.dumps(described))
    return folder


# ------------------------------------------------------------------------------------------------------------ the report


def test_rows_of_each_split_and_class_stand_in_the_run_folder(finished_run: Any) -> None:
    from sklearn.datasets import load_digits

    described = json.loads((finished_run.folder / "data.json").read_text())
    assert described["task"] == "digits" and list(described["splits"]) == ["train", "validation", "test"]
    total: Counter[str] = Counter()
    for split in described["splits"].values():
        assert split["rows"] == sum(split["classes"].values())
        total += Counter(split["classes"])
    assert total == Counter(map(str, load_digits().target.tolist()))


def test_a_persons_own_task_is_reported_on_the_terminal_and_for_info(own_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = ["--task", f"{own_run.parent / 'own.py'}:signs", "--data", str(own_run.parent / "signs.json"), "--out", str(tmp_path / "run")]
    assert train.main([*task, *OPTIONS, "--train-rows", "60"]) == 0
    said = capsys.readouterr().out.splitlines()
    begin = said.index("data of the task signs:")
    assert said[begin + 1 : begin + 6] == [
        "  train       90 rows (minus: 45, plus: 45, none: 0), of which 60 are drawn",
        "  validation  40 rows (minus: 20, plus: 20, none: 0)",
        "  test        30 rows (minus: 15, plus: 15, none: 0)",
        "  - 2 rows of signs.json were odd",
        "  - classes without a training row: none",
    ]
    assert rl_skip(["info", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == {
        "train": "90 rows (minus: 45, plus: 45, none: 0)",
        "validation": "40 rows (minus: 20, plus: 20, none: 0)",
        "test": "30 rows (minus: 15, plus: 15, none: 0)",
        "remarks": ["2 rows of signs.json were odd", "classes without a training row: none"],
    }


def labels_left_out(made: dict[str, list[Any]]) -> None:
    made["labels left out"] = [3]


WRONG: list[tuple[Callable[[dict[str, list[Any]]], object], str]] = [
    (lambda made: made["validation"][7].__setitem__(1, -100), "the label of row 7 of the validation data is -100, and the classes of the task signs"),
    (lambda made: made["train"][50][0][2].__setitem__(1, math.nan), "the input of row 50 holds a number that is not finite; mend the task"),
    (lambda made: made["train"].clear(), "the train data of the task signs cannot be used: they hold no rows; mend the task"),
    (labels_left_out, "the train data of the task signs cannot be used: the input has 90 rows, and there are 87 labels; mend the task"),
    (lambda made: made["train"][4].append("more"), "the train data of the task signs cannot be loaded (ValueError: too many values to unpack"),
]


@pytest.mark.parametrize(("change", "told"), WRONG)
def test_rows_that_cannot_be_learnt_from_are_refused_in_one_line(
    change: Any, told: str, own_run: Path, other_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ["--task", f"{own_run.parent / 'own.py'}:signs", "--data", other_data(change), "--out", str(tmp_path / "run")]
    assert train.main([*task, *OPTIONS]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_labels_that_are_not_those_of_the_loaded_rows_are_refused() -> None:
    rows = Examples(torch.zeros(4, 3), torch.tensor([0, 1, 1, 1]))
    whole = Task("signs", ("minus", "plus"), lambda split: rows, lambda width: torch.nn.Linear(3, width), 4)
    report = DataReport(replace(whole, labels=lambda split: torch.tensor([0, 1, 1, 1])))
    assert len(report.task.load("test")) == 4
    report = DataReport(replace(whole, labels=lambda split: torch.tensor([0, 0, 1, 1])))
    with pytest.raises(UserError, match="the task signs has other test labels where it is asked for them alone than those that it loads; mend"):
        report.task.load("test")


# -------------------------------------------------------------------------------------------------------------- the same


CHANGES: list[tuple[str, Callable[[dict[str, list[Any]]], object], str]] = [
    ("train", lambda made: made["train"].pop(), "90 and 89 rows"),
    ("train", lambda made: made["train"][50][0][2].__setitem__(1, 9.0), "the inputs differ"),
    ("validation", lambda made: made["validation"].reverse(), "the labels differ"),
    ("validation", lambda made: made["validation"][3].__setitem__(1, 0), "the classes of the rows differ"),
]


@pytest.mark.parametrize(("split", "change", "how"), CHANGES)
def test_a_run_goes_on_with_the_rows_it_was_begun_with_alone(
    split: str, change: Any, how: str, own_run: Path, other_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stopped(own_run, tmp_path / "run")
    before = (folder / "data.json").read_bytes()
    assert train.main(["--resume", str(folder), "--allow-code", "--data", other_data(change)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"error: the {split} data are not those that the run {folder} was begun with ({how}); "
        "set --data to where those are, or begin a new run with --out"
    ]
    assert (folder / "data.json").read_bytes() == before and not (folder / "policy").exists()


def test_the_same_rows_elsewhere_are_taken(own_run: Path, other_data: Any, tmp_path: Path) -> None:
    folder = stopped(own_run, tmp_path / "run")
    assert train.main(["--resume", str(folder), "--allow-code", "--data", other_data(lambda made: None)]) == 0
    assert json.loads((folder / "data.json").read_text()) == json.loads((own_run / "data.json").read_text())


def test_a_run_without_the_file_goes_on(own_run: Path, tmp_path: Path) -> None:
    folder = stopped(own_run, tmp_path / "run")
    (folder / "data.json").unlink()
    assert train.main(["--resume", str(folder), "--allow-code"]) == 0
    assert (folder / "data.json").is_file()


def test_what_is_measured_on_other_rows_says_so_or_is_refused(own_run: Path, other_data: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = other_data(lambda made: made["test"][0][0][0].__setitem__(0, 40.0))
    assert rl_skip(["eval", "--allow-code", str(own_run), "--json", "--device", "cpu"]) == 0
    assert capsys.readouterr().err == ""
    assert rl_skip(["eval", "--allow-code", str(own_run), "--json", "--device", "cpu", "--data", data]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["rows"] == SIZES["test"]
    assert found.err == f"note: the test data are not those of the run {own_run} (the inputs differ)\n"
    assert rl_skip(["compare", str(own_run), "--allow-code", "--data", data]) == 2
    assert "(the inputs differ); set --data to where those are, or measure on others with: eval" in capsys.readouterr().err
    _, task = load_run(own_run, data=data, allow_code=True)
    assert len(task.load("validation")) == SIZES["validation"]
    with pytest.raises(UserError, match="the test data are not those of the run"):
        task.load("test")


def test_a_baseline_is_set_beside_runs_of_the_same_rows_alone(own_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(own_run, run)
    shutil.copytree(own_run, other)
    described = json.loads((other / "data.json").read_text())
    described["splits"]["test"]["rows"] = 31
    (other / "data.json").write_text(json.dumps(described))
    (other / "SHA256SUMS").unlink()
    assert rl_skip(["compare", str(run), "--allow-code", "--baselines", str(other)]) == 2
    assert f"the test data of {run} and of {other} are not the same (30 and 31 rows)" in capsys.readouterr().err


def test_a_baseline_begins_at_a_run_of_the_same_rows_alone(own_run: Path, other_data: Any, tmp_path: Path) -> None:
    config = replace(TrainConfig.from_json(own_run, True), resume=None, out=str(tmp_path / "exits"), agent="exits", agent_config=AgentConfig())
    config = replace(config, data=other_data(lambda made: made["train"].pop()))
    with pytest.raises(UserError, match="the train data are not those that the run .* was begun with"):
        train_run(config, start=own_run / "start.safetensors")
    assert not (tmp_path / "exits").exists()


def test_a_name_that_is_not_utf_8_is_spelled_out(tmp_path: Path) -> None:
    """A file that lies beside the data may be called anything."""
    rows, said = Examples(torch.zeros(2, 1), torch.arange(2)), ("passed over: \udcff.txt",)
    report = DataReport(Task("odd", ("a", "b"), lambda split: rows, torch.nn.Identity, 1, remarks=said))
    report.write(tmp_path)
    assert read_data_report(tmp_path)[1] == ("passed over: \\udcff.txt",)
    assert "  - passed over: \\udcff.txt" in [*report.lines()]
