"""Tasks: splits, the digits, and tasks of a person's own."""

import doctest
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rl_skip.core.errors import UserError
from rl_skip.core.forward import routed_forward
from rl_skip.core.task import Examples, Split, Task, stratified_split
from rl_skip.nets.network import NetworkConfig, build_network
from rl_skip.tasks import load_task

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def uneven_labels() -> Tensor:
    """100 rows of class 0, 35 of class 1, 10 of class 2, mixed."""
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([100, 35, 10]))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]


def test_a_split_gives_every_row_to_one_part_alone() -> None:
    rows = stratified_split(uneven_labels())
    assert sorted(torch.cat(list(rows.values())).tolist()) == list(range(145))
    for chosen in rows.values():
        assert chosen.tolist() == sorted(chosen.tolist())


@pytest.mark.parametrize("fractions", [(0.6, 0.2, 0.2), (0.5, 0.25, 0.25), (0.8, 0.1, 0.1)])
def test_each_class_has_its_share_of_each_part(fractions: tuple[float, float, float]) -> None:
    labels = uneven_labels()
    rows = stratified_split(labels, fractions)
    for split, fraction in zip(SPLITS, fractions, strict=True):
        for label, count in enumerate((100, 35, 10)):
            assert abs(int((labels[rows[split]] == label).sum()) - fraction * count) <= 1


def test_a_split_depends_on_its_own_seed_alone_and_leaves_the_global_one() -> None:
    labels = uneven_labels()
    splits = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        random.seed(seed)
        before = torch.get_rng_state()
        splits.append(stratified_split(labels))
        assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(splits[0][split], splits[1][split]) for split in SPLITS)
    assert not torch.equal(splits[0]["train"], stratified_split(labels, seed=1)["train"])


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    task = load_task("digits")
    found = datasets.load_digits()
    wanted = sorted((*image.ravel().astype(int).tolist(), int(label)) for image, label in zip(found.images, found.target, strict=True))
    rows = []
    for split, fraction in zip(SPLITS, (0.6, 0.2, 0.2), strict=True):
        examples = task.load(split)
        assert isinstance(examples.inputs, Tensor)
        assert abs(len(examples) / 1797 - fraction) < 0.01
        pixels = ((examples.inputs + 1) * 8).round().int().flatten(1)
        rows += [(*image, label) for image, label in zip(pixels.tolist(), examples.labels.tolist(), strict=True)]
    assert sorted(rows) == wanted


def test_loss_accuracy_and_probability_of_a_row() -> None:
    task = load_task("digits")
    outputs = torch.tensor([[0.0, 1.0, 2.0], [3.0, -1.0, 0.5]])
    labels = torch.tensor([2, 2])
    share = [2.718281828**2 / (1 + 2.718281828 + 2.718281828**2), 2.718281828**0.5 / (2.718281828**3 + 2.718281828**-1 + 2.718281828**0.5)]
    torch.testing.assert_close(task.probability(outputs, labels), torch.tensor(share))
    torch.testing.assert_close(task.loss(outputs, labels), -torch.tensor(share).log())
    assert task.score(outputs, labels).tolist() == [1.0, 0.0]


def test_examples_take_rows_of_every_tensor() -> None:
    examples = Examples({"a": torch.arange(6), "b": torch.arange(12).view(6, 2)}, torch.arange(6) * 10)
    some = examples.take(torch.tensor([4, 1]))
    assert isinstance(some.inputs, dict)
    assert len(examples) == 6 and len(some) == 2
    assert some.inputs["a"].tolist() == [4, 1] and some.inputs["b"].tolist() == [[8, 9], [2, 3]] and some.labels.tolist() == [40, 10]


OWN = """
import torch
from rl_skip import Examples, Split, Task


def signs(path: str | None) -> Task:
    def load(split: Split) -> Examples:
        x = torch.randn(300, 5, 3, generator=torch.Generator().manual_seed(len(split)))
        return Examples(x, (x.sum(dim=(1, 2)) > 0).long())

    return Task(f"signs of {path}", ("minus", "plus"), load, embedding=lambda width: torch.nn.Linear(3, width), tokens=5)


def nothing(path):
    return None


number = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> Callable[[str], str]:
    """Names a function of the file above."""
    (tmp_path / "own.py").write_text(OWN)
    return lambda function: f"{tmp_path / 'own.py'}:{function}"


def test_a_task_of_ones_own_is_loaded_with_its_data_and_runs(own: Callable[[str], str]) -> None:
    task = load_task(own("signs"), "some/where")
    assert task.name == "signs of some/where" and load_task(own("signs")).name == "signs of None"
    stack = build_network(NetworkConfig(layers=3, width=16, heads=2), task.embedding, task.tokens, len(task.classes))
    rows = task.load("train").take(slice(0, 4))
    outputs = routed_forward(stack, torch.ones(3, dtype=torch.bool), rows.inputs).outputs
    assert outputs.shape == (4, 2) and task.loss(outputs, rows.labels).shape == (4,)


def test_the_example_in_the_documentation_runs() -> None:
    (example,) = doctest.DocTestParser().get_examples(Task.__doc__ or "")
    names = {"torch": torch, "Task": Task, "Examples": Examples, "Split": Split}
    exec(example.source, names)
    task = names["my_task"](None)  # type: ignore[operator]
    rows = task.load("validation")
    assert len(rows) == 300 and task.embedding(16)(rows.inputs).shape == (300, task.tokens, 16)
    assert rows.labels.tolist() == [int(row.sum() > 0) for row in rows.inputs]


def test_tasks_that_cannot_be_are_refused_in_one_line(own: Callable[[str], str], tmp_path: Path) -> None:
    names = [
        ("letters", "--task"),
        (own("missing"), "'missing'"),
        (own("number"), "'number'"),
        (own("nothing"), "NoneType"),
        (f"{tmp_path}/missing.py:signs", "missing.py"),
        (f"{tmp_path}/own.txt:signs", "--task"),
        ("speech", "--data"),
        ("images", "--data"),
    ]
    for name, words in names:
        with pytest.raises(UserError) as caught:
            load_task(name)
        assert words in str(caught.value) and "\n" not in str(caught.value)
    for name in ("speech", "images"):
        with pytest.raises(UserError, match="nothing at .*missing.*--data"):
            load_task(name, str(tmp_path / "missing"))


def test_digits_refuses_data_that_it_would_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing at"):
        load_task("digits", str(tmp_path / "missing"))
    with pytest.raises(UserError, match="leave out --data"):
        load_task("digits", str(tmp_path))


@pytest.mark.parametrize("code", ["def mine(path):\n    return 1 / 0\n", "def mine(path:\n"])
def test_an_own_task_that_fails_is_told_in_one_line(tmp_path: Path, code: str) -> None:
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(UserError, match="(mine in .*own.py|the file .*own.py with the task) failed: (ZeroDivisionError|SyntaxError)") as found:
        load_task(f"{tmp_path / 'own.py'}:mine")
    assert "\n" not in str(found.value)
