"""Five folds of digits: every row is a test row once, and a run reads its fold again."""

from pathlib import Path

import pytest
import torch

from benchmarks import folds
from benchmarks.folds import FOLDS, fold
from rl_skip import UserError
from rl_skip.tasks.digits import digits


def test_every_row_is_tested_on_once_and_never_learned_from_where_it_is() -> None:
    whole = sum(len(digits().load(split)) for split in ("train", "validation", "test"))
    tested = []
    for number in range(FOLDS):
        task = fold(str(number))
        parts = [task.load(split) for split in ("train", "validation", "test")]
        assert sum(map(len, parts)) == whole
        assert all(torch.equal(task.labels(split), task.load(split).labels) for split in ("train", "validation", "test"))  # type: ignore[misc]
        assert len(torch.cat([part.inputs.flatten(1) for part in parts]).unique(dim=0)) == whole  # so no row is in two parts
        tested.append(parts[2].inputs.flatten(1))
    assert len(torch.cat(tested).unique(dim=0)) == whole


def test_the_path_that_a_run_keeps_names_the_fold(tmp_path: Path) -> None:
    assert torch.equal(fold(str(tmp_path / "3")).load("test").labels, fold("3").load("test").labels)
    with pytest.raises(UserError, match="there is no fold 5; set --data to 0 … 4"):
        fold("5")


def test_one_command_trains_a_fold_and_reads_it_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its task is a Python file, which nothing but this command may run."""
    monkeypatch.setattr(folds, "FOLDS", 1)
    network = ["--layers", "3", "--width", "16", "--train-rows", "64", "--threads", "1"]
    short = ["--warmup-epochs", "0", "--epochs", "2", "--policy-epochs", "1", "--baselines", "none", "--computes", "0.9"]
    monkeypatch.setattr("sys.argv", ["folds.py", "--out", str(tmp_path), *network, *short])
    folds.main()
    said = capsys.readouterr().out
    assert "| fold-0 |" in said and "warm-up" not in said  # there was none whose end could be shown
