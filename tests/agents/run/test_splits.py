"""What is wrong with a split of a person's own task is told in one line before anything is trained or written, test data included."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from agents.options.config import TrainConfig
from agents.run.session import train as train_run
from rl_skip.core.errors import UserError
from rl_skip.core.task import Examples, Split, Task
from rl_skip.nets.network import NetworkConfig

WIDTH = 8
SMALL = TrainConfig(network=NetworkConfig(layers=3, width=WIDTH, heads=2), device="cpu")


def rows(split: Split, tokens: int = 4, features: int = 3) -> Examples:
    x = torch.randn(40, tokens, features, generator=torch.Generator().manual_seed(len(split)))
    return Examples(x, (x.sum(dim=(1, 2)) > 0).long())


def signs(load: Callable[[Split], Examples], kind: type[Task] = Task) -> Task:
    return kind("signs", ("minus", "plus"), load, lambda width: nn.Linear(3, width), 4)


def refused(task: Task, folder: Path) -> str:
    with pytest.raises(UserError) as told:
        train_run(replace(SMALL, out=str(folder)), task=task)
    assert not folder.exists() and "\n" not in str(told.value)
    return str(told.value)


def missing() -> Examples:
    raise FileNotFoundError("test.csv")


FAULTS: dict[str, tuple[Callable[[Examples], Any], str]] = {
    "raises": (lambda _: missing(), "the test data of the task signs cannot be loaded (FileNotFoundError: test.csv)"),
    "nothing": (lambda _: None, "load returned NoneType"),
    "wider": (lambda _: rows("test", features=5), "the test data of the task signs cannot be used: RuntimeError"),
    "two classes more": (lambda found: Examples(found.inputs, found.labels + 2), "the classes of the task signs have the numbers 0 to 1"),
    "not finite": (lambda found: Examples(found.inputs / 0, found.labels), "of row 0 holds a number that is not finite"),
    "fewer labels": (lambda found: Examples(found.inputs, found.labels[:5]), "has 40 rows, and there are 5 labels"),
}


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_split_that_cannot_be_used(fault: str, split: str, tmp_path: Path) -> None:
    change, said = FAULTS[fault]
    task = signs(lambda asked: rows(asked) if asked != split else change(rows(asked)))
    assert said.replace("test data", f"{split} data") in refused(task, tmp_path / "run")


class PerToken(Task):
    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return torch.ones(len(labels), 2)


class Points(Task):
    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return torch.full((len(labels),), 100.0)


class Lost(Task):
    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return super().loss(outputs, labels) / 0


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (PerToken, "the score of 2 rows must have shape (2,), got (2, 2)"),
        (Points, "the score of a row must lie in [0, 1], got [100.0, 100.0]"),
        (Lost, "the loss of a row must be finite"),
    ],
)
def test_what_a_task_says_of_its_rows(kind: type[Task], said: str, tmp_path: Path) -> None:
    assert said in refused(signs(rows, kind), tmp_path / "run")


def test_trying_draws_nothing_from_the_random_numbers_of_a_run(tmp_path: Path) -> None:
    def noisy(split: Split) -> Examples:
        if split == "test":
            torch.rand(7)
        return rows(split)

    weights = []
    for name, load in (("plain", rows), ("noisy", noisy)):
        config = replace(SMALL, out=str(tmp_path / name)).with_defaults({"epochs": 1, "warmup_epochs": 1}, "here")
        weights.append((train_run(config, task=signs(load)) / "policy" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("if split == 'test': raise ValueError('not downloaded')", "the test data of the task signs cannot be loaded (ValueError: not downloaded)"),
        ("width = 5 if split == 'test' else 3", "the test data of the task signs cannot be used: RuntimeError: "),
        ("width = 5 if split == 'validation' else 3", "the network on the data of the task signs failed: RuntimeError: "),
    ],
)
def test_an_own_file_is_tried_from_the_command_line(line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "import torch\nfrom rl_skip import Examples, Task\n"
        "def load(split):\n"
        f"    width = 3\n    {line}\n"
        "    x = torch.randn(40, 4, width, generator=torch.Generator().manual_seed(len(split)))\n"
        "    return Examples(x, (x.sum(dim=(1, 2)) > 0).long())\n"
        "def signs(path): return Task('signs', ('minus', 'plus'), load, lambda width: torch.nn.Linear(3, width), 4)\n"
    )
    assert train.main(["--task", f"{file}:signs", "--out", str(tmp_path / "run"), "--layers", "3", "--width", "8", "--heads", "2"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert said in told
    assert not (tmp_path / "run").exists()
