"""How many passes a run makes suits how many rows there are; whoever says how many gets them."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import train
from agents.options.config import NetworkConfig, ScheduleConfig, TrainConfig
from agents.run.session import train as run_training
from rl_skip.core.errors import UserError
from rl_skip.core.task import Examples, Split, Task


@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        ([], 1_078),
        (["--task", "images"], 10_000),
        (["--task", "speech"], 3_000),
        (["--task", "text", "--model", "minilm"], 10_003),
        (["--task", "text", "--model", "minilm"], 6_920),
        (["--task", "hops"], 100_000),
        (["--task", "hops-16", "--tune", "all"], 100_000),
        (["--task", "images", "--epochs", "40"], 60_000),
        (["--task", "images", "--warmup-epochs", "40"], 60_000),
    ],
)
def test_small_data_and_passes_that_were_asked_for_stay_as_they_are(flags: list[str], rows: int) -> None:
    schedule = train.read_options(flags).schedule
    assert schedule.suited_to(rows) == schedule


@pytest.mark.parametrize("rows", [30_000, 60_000, 200_000, 5_000_000])
@pytest.mark.parametrize(
    "flags", [["--task", "images", "--jumps"], ["--task", "images", "--warmup-epochs", "10", "--epochs", "90", "--max-updates", "9000"]]
)
def test_large_data_are_passed_fewer_times_in_the_same_proportion(flags: list[str], rows: int) -> None:
    schedule = train.read_options(flags).schedule
    suited = schedule.suited_to(rows)
    assert suited.warmup_epochs >= 1 and suited.epochs >= 1 and suited.suited_to(rows) == suited
    assert suited.updates(rows) <= max(schedule.max_updates, 2 * (rows // schedule.batch_size))
    assert replace(suited, warmup_epochs=schedule.warmup_epochs, epochs=schedule.epochs) == schedule
    share = schedule.warmup_epochs / schedule.epochs
    assert abs(suited.warmup_epochs - share * suited.epochs) <= 1


@pytest.mark.parametrize(
    ("flags", "passes"),
    [
        ([], (0, 40)),
        (["--task", "images"], (0, 40)),
        (["--task", "speech"], (0, 20)),
        (["--task", "text"], (0, 12)),
        (["--task", "speech", "--jumps"], (8, 12)),
        (["--jumps"], (15, 25)),
        (["--no-readouts"], (15, 25)),
        (["--tune", "frozen"], (15, 25)),
        (["--tune", "frozen", "--readouts", "--no-jumps"], (15, 25)),
        (["--task", "text", "--tune", "frozen", "--readouts", "--no-jumps"], (4, 8)),
        (["--stack", "mine.py:stack"], (15, 25)),
        (["--warmup-epochs", "3"], (3, 40)),
        (["--epochs", "3"], (0, 3)),
        (["--task", "text", "--model", "minilm"], (2, 6)),
        (["--task", "text", "--model", "minilm", "--no-begin-again"], (2, 4)),
        (["--task", "text", "--model", "minilm", "--jumps"], (2, 4)),
        (["--task", "hops"], (1, 2)),
    ],
)
def test_a_network_that_is_made_anew_learns_together_with_a_policy_that_can_but_leave(flags: list[str], passes: tuple[int, int]) -> None:
    schedule = train.read_options(flags).schedule
    assert (schedule.warmup_epochs, schedule.epochs) == passes


@pytest.mark.parametrize(
    ("flags", "again"),
    [
        ([], True),
        (["--tune", "lora"], True),
        (["--no-begin-again"], False),
        (["--jumps"], False),
        (["--no-readouts"], False),
        (["--tune", "frozen", "--readouts", "--no-jumps"], False),
        (["--warmup-epochs", "0"], False),
        (["--distillation-weight", "0"], False),
    ],
)
def test_a_model_that_is_given_begins_again_where_it_can_be_its_own_teacher(flags: list[str], again: bool) -> None:
    assert train.read_options(["--task", "text", "--model", "minilm", *flags]).begins_again == again


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--jumps"], "the warm-up teaches the network routes, too"),
        (["--no-readouts", "--no-jumps", "--allow-exit"], "there are no readouts"),
        ([], "there is no warm-up"),
        (["--warmup-epochs", "2", "--distillation-weight", "0"], "without --distillation-weight nothing learns from a teacher"),
        (["--warmup-epochs", "2", "--tune", "frozen", "--readouts", "--no-jumps"], "with --tune frozen nothing learns after the warm-up"),
    ],
)
def test_beginning_again_where_it_does_nothing_is_one_line(flags: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=f"--begin-again does nothing here: {reason}; leave it out"):
        train.read_options(["--begin-again", *flags])


@pytest.mark.parametrize(("deep", "passes"), [("", (0, 40)), (", required_depth=len", (15, 25)), (", network=len", (15, 25))])
def test_own_networks_and_layers_that_learn_how_many_a_row_needs_are_warmed_up(deep: str, passes: tuple[int, int], tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(f'from rl_skip import Task\n\n\ndef mine(path):\n    return Task("mine", ("no", "yes"), None, None, 5{deep})\n')
    schedule = train.read_options(["--task", f"{file}:mine"]).schedule
    assert (schedule.warmup_epochs, schedule.epochs) == passes


def test_a_run_says_what_was_chosen_and_keeps_it(tmp_path: Path) -> None:
    def load(split: Split) -> Examples:
        x = torch.randn(160, 5, 3, generator=torch.Generator().manual_seed(len(split)))
        return Examples(x, (x.sum(dim=(1, 2)) > 0).long())

    task = Task("sums", ("minus", "plus"), load, embedding=lambda width: torch.nn.Linear(3, width), tokens=5)
    schedule, said = ScheduleConfig(warmup_epochs=20, epochs=30, batch_size=16, max_updates=60), io.StringIO()
    network = NetworkConfig(layers=3, width=8, heads=2)
    run_training(TrainConfig(out=str(tmp_path / "run"), network=network, schedule=schedule), Console(file=said), task=task)
    assert "160 training rows: 2 + 4 passes, warm-up and policy, in place of 20 + 30: 500 updates would be more than 60" in said.getvalue()
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["schedule"]
    assert (kept["warmup_epochs"], kept["epochs"]) == (2, 4)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/supervised_loss" in line][-1] == 60
    assert TrainConfig.from_json(tmp_path / "run").schedule == replace(schedule, warmup_epochs=2, epochs=4)
