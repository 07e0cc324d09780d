"""What a run promises at its end, and what it leaves of that in its folder."""

import json
from pathlib import Path

import pytest

import train
from agents.baselines.training import ONE_SHOT, baselines_of
from benchmarks.kill import SMALL
from rl_skip.core.dial import Guarantee
from rl_skip.export.policy_folder import load
from rl_skip.measure.guarantee import guarantee
from rl_skip.tasks import load_task

SHORT = (*SMALL, "--warmup-epochs", "1", "--epochs", "1", "--train-rows", "200")


def test_a_run_keeps_the_kind_that_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert train.main(["--out", str(folder), *SHORT, "--guarantee", "0.6", "--guarantee-kind", "expectation"]) == 0
    model, task = load(folder / "policy"), load_task("digits")
    expected = guarantee(model.stack, model.policy, task, task.load("validation"), model.table, model.price, 0.6, "expectation")
    assert model.guarantee == expected == Guarantee("expectation", 0.6, price=model.price, rows=359)
    assert json.loads((folder / "report.json").read_text())["price"] == model.price
    said = f"guaranteed at price {model.price:.4g}: {expected.in_words('accuracy')}"
    assert said in capsys.readouterr().out
    assert expected.in_words("accuracy") in (folder / "policy" / "README.md").read_text()
    _, one_shot = baselines_of(folder)[ONE_SHOT.name]  # is set beside the run, and needs no promise of its own
    assert one_shot.pricing.guarantee is None


def test_a_run_whose_data_support_no_guarantee_says_so_and_promises_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert train.main(["--out", str(folder), *SHORT, "--guarantee", "0.0001"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "guarantee" in line]
    assert len(said) == 1 and said[0].startswith("no guarantee: the policy cannot guarantee a loss of at most 0.0001")
    assert load(folder / "policy").guarantee is None


def test_a_kind_without_a_tolerance_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--out", str(tmp_path / "run"), "--guarantee-kind", "expectation"]) == 2
    assert "set --guarantee" in capsys.readouterr().err
    assert train.main(["--out", str(tmp_path / "run"), "--guarantee", "1.5"]) == 2
    assert "(0, 1)" in capsys.readouterr().err
