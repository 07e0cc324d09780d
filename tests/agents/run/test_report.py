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
from agents.agent import Unreported, find_agent
from agents.options.config import NetworkConfig, PolicyConfig, PriceConfig, ScheduleConfig, TrainConfig
from agents.run.remarks import remarks
from agents.run.run_folder import is_finished
from agents.run.session import train as run_training
from rl_skip.core.task import Examples, Split, Task
from rl_skip.measure.evaluation import Evaluation

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


@pytest.mark.parametrize("broken", ["calibrate", "show_routes", "final table"])
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
    part = {"calibrate": "calibration", "show_routes": "pictures", "final table": "table"}[broken]
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


def test_a_report_that_failed_is_an_error_to_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents.policy.policy_agent, "show_routes", lambda *_: 1 / 0)
    with pytest.raises(Unreported, match="pictures failed"):
        run_training(options(tmp_path / "run"), Console(file=io.StringIO()), task=task_of(3, 3))


# ------------------------------------------------------------------------------------ a policy that does the same with all


def evaluation(*routes: tuple[int, ...], price: float = 0.1) -> Evaluation:
    route = torch.tensor(routes).bool()
    right = torch.ones(len(routes))
    return Evaluation(price, route, right, route.float().mean(dim=1), right.long())


LEARNED = ScheduleConfig(warmup_epochs=0, epochs=100, batch_size=32)
"""Four hundred updates, on the tiny learner's rows."""
ALL, FIRST = (1, 1, 1, 1), (1, 0, 0, 0)


def test_a_policy_that_tells_rows_apart_is_not_remarked(tiny_learner: Any, tmp_path: Path) -> None:
    assert remarks(tiny_learner(), evaluation(ALL, (1, 0, 0, 1)), 1.0, [], tmp_path) == []


@pytest.mark.parametrize(
    ("schedule", "pricing", "dial", "why"),
    [
        (LEARNED, PriceConfig(), [(0.3, 1.0), (0.5, 0.6), (0.9, 0.2)], "its price of 0.1 is too low; at 0.5 it spends 0.600: python -m rl_skip eval"),
        (ScheduleConfig(warmup_epochs=0, epochs=1, batch_size=32), PriceConfig(), [(0.3, 1.0)], "4 updates with the policy are too few to learn in"),
        (LEARNED, PriceConfig(price=0.1), [], "makes skipping pay; raise --price, now 0.1"),
        (LEARNED, PriceConfig(budget=0.9), [], "makes skipping pay; lower --budget, now 0.9"),
    ],
)
def test_a_policy_that_skips_nothing_is_told_why(
    tiny_learner: Any, tmp_path: Path, schedule: ScheduleConfig, pricing: PriceConfig, dial: list[tuple[float, float]], why: str
) -> None:
    learner = tiny_learner(schedule=schedule, pricing=pricing)
    points = [{"price": price, "compute": compute} for price, compute in dial]
    (said,) = remarks(learner, evaluation(ALL, ALL), 1.0, points, tmp_path)
    assert said.startswith("the policy skips nothing: ") and why in said


@pytest.mark.parametrize(
    ("full", "dial", "why"),
    [
        (1.0, [], "all layers are no better"),
        (1.04, [(0.05, 0.6)], "its price of 0.1 is too high for more; at 0.05 it spends 0.600"),
        (1.04, [], "4.0 points better on these rows, which at its price of 0.1 does not pay; lower --price-range, now 0.003 1"),
        (1.5, [], "50.0 points better on these rows; lower --price-range"),
    ],
)
def test_a_policy_that_runs_the_least_is_told_why(tiny_learner: Any, tmp_path: Path, full: float, dial: list[tuple[float, float]], why: str) -> None:
    learner = tiny_learner(schedule=LEARNED, policy=PolicyConfig(allow_exit=True))
    points = [{"price": price, "compute": compute} for price, compute in dial]
    (said,) = remarks(learner, evaluation(FIRST, FIRST), full, points, tmp_path)
    assert said.startswith("the policy runs nothing but the first layer: ") and why in said
    (said,) = remarks(tiny_learner(schedule=LEARNED), evaluation((1, 0, 0, 1)), full, points, tmp_path)
    assert said.startswith("the policy runs nothing but the first and the last layer: ")
