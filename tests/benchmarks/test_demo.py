"""The end of `make demo`, on a tiny model: its points are those of evaluation, and its table and picture are written."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import train
from agents.run.start import START
from benchmarks import demo, exits
from rl_skip.measure.evaluation import evaluate
from rl_skip.measure.runs import load_run
from tests.rl_skip.pretrained_folders import save_bert, write_table

FLAGS = ["--task", "text", "--warmup-epochs", "2", "--epochs", "1", "--learning-rate", "3e-3", "--policy-epochs", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    data, model = write_table(folder / "films.tsv", 120), save_bert(folder / "model")
    options = ["--data", str(data), "--model", str(model), "--readouts", "--no-jumps", "--out", str(folder / "run")]
    assert train.main([*FLAGS, *options]) == 0
    return folder / "run"


@torch.no_grad()
def test_every_point_is_what_evaluation_finds(run: Path) -> None:
    """One pass through all layers stands for running each way by itself."""
    model, task = load_run(run)
    test = task.load("test")
    curves = {curve.record.name: curve for curve in demo.shown(run)}
    for price in (0.05, 0.5):
        n = min(range(len(exits.PRICES)), key=lambda n: abs(exits.PRICES[n] - price))
        found = evaluate(model.stack, model.policy, task, test, price=exits.PRICES[n])
        torch.testing.assert_close(curves["policy"].test[n].correct, found.correct)
        torch.testing.assert_close(curves["policy"].test[n].compute, found.compute_by_row)
    for k, point in enumerate(curves["layer"].test):
        found = evaluate(model.stack, torch.arange(model.stack.depth) <= k, task, test)
        torch.testing.assert_close(point.correct, found.correct)
        torch.testing.assert_close(point.compute, found.compute_by_row)
    everything = torch.ones(model.stack.depth, dtype=torch.bool)
    assert curves["full-depth"].test[0].correct.equal(evaluate(model.stack, everything, task, test).correct)


def test_table_and_picture_are_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([str(run)]) == 0
    told, written = capsys.readouterr().out, (run / "demo.md").read_text()
    assert written.strip() in told and "all rows leave after the same layer" in written and "| 0.34 |" in written
    with Image.open(run / "demo.png") as picture:
        assert picture.width > 1000


def test_what_is_no_finished_run_is_refused_in_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is not a run")
    (run / START).rename(tmp_path / START)
    try:
        assert demo.main([str(run)]) == 2
    finally:
        (tmp_path / START).rename(run / START)
    assert "in which a run leaves the fine-tuned model" in capsys.readouterr().err
