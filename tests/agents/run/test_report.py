"""The end of a run: splits of any size, and a part that fails."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import agents.policy.policy_agent
import agents.run.report
import train
from agents.agent import TrainedRun, Unreported, find_agent
from agents.options.config import NetworkConfig, PolicyConfig, PriceConfig, ScheduleConfig, TrainConfig
from agents.run.report import final_report
from agents.run.run_folder import is_finished
from agents.run.session import train as run_training
from rl_skip.core.dial import PriceTable
from rl_skip.core.reward import LINEAR, BudgetReward
from rl_skip.core.task import Examples, Split, Task
from rl_skip.measure.evaluation import evaluate

SETTINGS: dict[str, dict[str, Any]] = {
    "leaving": {"policy": PolicyConfig(readouts=True, jumps=False)},
    "jumping": {},
    "to a budget": {"policy": PolicyConfig(readouts=True, jumps=False), "pricing": PriceConfig(budget=0.7)},
    "confidence exits": {"agent": "exits"},
    "one fixed route": {"agent": "static", "pricing": PriceConfig(budget=0.7)},
}


def task_of(validation: int, test: int) -> Task:
    sizes = {"train": 32, "validation": validation, "test": test}

    def load(split: Split) -> Examples:
        x = torch.randn(sizes[split], 5, 3, generator=torch.Generator().manual_seed(len(split)))
        return Examples(x, (x.sum(dim=(1, 2)) > 0).long())

    return Task("sums", ("minus", "plus"), load, embedding=lambda width: nn.Linear(3, width), tokens=5)


def options(out: Path, **changes: Any) -> TrainConfig:
    schedule = ScheduleConfig(warmup_epochs=1, epochs=1, batch_size=16)
    few = {} if "agent" in changes else {"agent_config": find_agent("reinforce").config_class(policy_epochs=1)}
    return TrainConfig(out=str(out), network=NetworkConfig(layers=3, width=8, heads=2), schedule=schedule, **(few | changes))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(("validation", "test"), [(3, 1), (1, 3), (80, 63)])
def test_splits_of_any_size_are_reported(validation: int, test: int, setting: str, tmp_path: Path) -> None:
    config, said = options(tmp_path / "run", **SETTINGS[setting]), io.StringIO()
    run_training(config, Console(file=said, width=200), task=task_of(validation, test))
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    timed = min(64, validation) if "points" in report else min(64, validation, test)
    assert report["rows"] == test and report["timed_rows"] == timed and "unfinished" not in report
    assert f"ms per {timed} row" in said.getvalue()


@pytest.mark.parametrize("broken", ["calibrate", "show_policy", "final table"])
def test_a_part_that_fails_is_told_and_the_rest_is_kept(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*arguments: Any, **named: Any) -> None:
        raise RuntimeError(f"{broken} does not\nwork")

    run = tmp_path / "run"
    small = ["--layers", "3", "--width", "16", "--heads", "2", "--warmup-epochs", "0", "--epochs", "1", "--policy-epochs", "1", "--train-rows", "64"]
    with monkeypatch.context() as patch:
        if broken == "final table":
            patch.setattr(agents.run.report, "_leaving", fails)
        else:
            patch.setattr(agents.policy.policy_agent, broken, fails)
        assert train.main(["--out", str(run), *small]) == 1
    said = capsys.readouterr()
    part = {"calibrate": "calibration", "show_policy": "pictures", "final table": "table"}[broken]
    assert f"{part} failed: RuntimeError: {broken} does not work\n" in said.out
    assert said.err.startswith(f"error: {part} failed, as {run / 'report.json'} tells; python train.py --resume {run}")
    assert "Traceback" not in said.out + said.err
    kept = json.loads((run / "report.json").read_text())
    assert "RuntimeError" in kept["unfinished"][part] and kept["policy"]["compute"] > 0
    assert (run / "policy" / "policy.json").is_file() and not is_finished(run, "reinforce")
    if broken != "final table":
        assert kept["full depth"]["compute"] == 1.0 and "test rows, price" in said.out

    steps = (run / "metrics.jsonl").read_text()
    assert train.main(["--resume", str(run)]) == 0
    assert (run / "metrics.jsonl").read_text() == steps, "nothing was trained again"
    whole = json.loads((run / "report.json").read_text())
    assert "unfinished" not in whole and whole["policy"]["milliseconds"] > 0 and is_finished(run, "reinforce")
    assert len(whole["dial"]) > 0


def test_the_policy_is_measured_too_as_it_was_validated(known_optimum: Any, tmp_path: Path) -> None:
    learner = known_optimum.learner(PriceConfig(budget=0.5), 1)
    run, paid = TrainedRun(tmp_path, Console(file=io.StringIO()), None, 0.0, own_stack=True), BudgetReward(LINEAR, 0.5, 0.2)  # type: ignore[arg-type]
    report = final_report(learner, PriceTable(), 0.9, run, eval_price=0.2, eval_reward=paid)
    at = evaluate(learner.stack, learner.policy, learner.task, learner.task.load("test"), price=0.2)
    shown = report["at_eval_price"]
    assert shown["price"] == 0.2 and shown["compute"] == pytest.approx(at.compute)
    compute = at.compute_by_row.double()
    penalty = 0.2 * ((compute - 0.5) ** 2 - 0.5**2)  # less that of a row that runs nothing
    assert shown["reward"] == pytest.approx(float((at.correct.double() - 0.2 * compute - penalty).mean()))


def test_a_report_that_failed_is_an_error_to_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents.policy.policy_agent, "show_policy", lambda *_: 1 / 0)
    with pytest.raises(Unreported, match="pictures failed"):
        run_training(options(tmp_path / "run"), Console(file=io.StringIO()), task=task_of(3, 3))
