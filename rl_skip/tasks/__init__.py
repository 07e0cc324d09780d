"""Tasks: data with labels in three splits, and how its inputs become tokens.

A task of your own is a function in a Python file that returns a `Task`; `--task my_file.py:my_task --data PATH` calls
it with the path (None without `--data`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from rl_skip.blocks import Embedding
from rl_skip.core.plugins import Registry, is_own, load_own
from rl_skip.errors import UserError
from rl_skip.inputs import Inputs, map_inputs, row_count, take_rows, trimmed
from rl_skip.network import NetworkConfig, build_network
from rl_skip.stack import LayerStack
from rl_skip.tasks.options import TaskOptions

__all__ = ["TASKS", "BundledTask", "Defaults", "Examples", "Split", "Task", "defaults_of", "load_task", "stratified_split"]

Split = Literal["train", "validation", "test"]
DEFAULTS = TaskOptions()
Defaults = Mapping[str, Any] | Callable[[Mapping[str, str]], Mapping[str, Any]]
"""Options of training that suit a task, by their names on the command line, with underscores: what `train.py --task` takes where a flag is not
given. Where they depend on other options: a function of what the command line gives, such as {"tune": "all"}."""


@dataclass(frozen=True)
class Examples:
    """N rows with their labels."""

    inputs: Inputs
    labels: Tensor
    """(N,) long, or (N, T) where every token has its own."""

    def __len__(self) -> int:
        return row_count(self.inputs)

    def take(self, rows: Tensor | slice) -> "Examples":
        """The named rows, without padding that none of them needs."""
        return Examples(trimmed(take_rows(self.inputs, rows)), self.labels[rows])

    def some(self, rows: int) -> "Examples":
        """At most that many rows, drawn at random but always the same."""
        return self.take(torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:rows].to(self.labels.device))

    def to(self, device: torch.device | str) -> "Examples":
        """The same rows on a device."""
        return Examples(map_inputs(self.inputs, lambda tensor: tensor.to(device)), self.labels.to(device))


@dataclass(frozen=True)
class Task:
    """What a network is trained and measured on.

    Example:
        >>> def my_task(path: str | None) -> Task:
        ...     def load(split: Split) -> Examples:
        ...         generator = torch.Generator().manual_seed(len(split))
        ...         x = torch.randn(300, 5, 3, generator=generator)  # N rows of 5 tokens with 3 features
        ...         return Examples(x, (x.sum(dim=(1, 2)) > 0).long())
        ...     return Task("signs", ("minus", "plus"), load, embedding=lambda width: torch.nn.Linear(3, width), tokens=5)
    """

    name: str
    classes: tuple[str, ...]
    load: Callable[[Split], Examples]
    """Reads one split. Test is asked for by evaluation alone."""
    embedding: Embedding
    """How inputs become tokens: `PatchEmbedding`, `FrameEmbedding`, or a function width → module."""
    tokens: int
    """T, tokens of one row, for the cost of a layer."""
    in_words: Callable[[Examples], list[str]] | None = None
    """What each row says, for figures; None: rows are drawn, as images or sounds."""
    required_depth: Callable[[Examples], Tensor] | None = None
    """(N,) long, how many layers each row needs, where the task knows; the warm-up trains a network on just these."""
    network: Callable[[NetworkConfig], LayerStack] | None = None
    """Builds the network where it is a model from transformers; None: one of ours is built around the embedding."""
    defaults: Defaults = field(default_factory=dict, compare=False)
    """Options of training that suit it, such as {"epochs": 6, "score": "probability"}."""

    def build(self, config: NetworkConfig) -> LayerStack:
        """The network: fresh, or the model that the task was given."""
        if self.network is not None:
            return self.network(config)
        return build_network(config, self.embedding, self.tokens, len(self.classes))

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(B,), cross-entropy of each row."""
        return torch.nn.functional.cross_entropy(outputs, labels, reduction="none")

    def accuracy(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(B,), 1 where the likeliest class is the label, else 0."""
        return (outputs.argmax(dim=1) == labels).float()

    def probability(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(B,), the probability that the outputs give to the label."""
        return torch.softmax(outputs, dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)

    def prediction(self, outputs: Tensor) -> Tensor:
        """(B,) long, the likeliest class of each row."""
        return outputs.argmax(dim=-1)

    def class_of(self, labels: Tensor) -> Tensor:
        """(B,) long, the class of each row, for figures."""
        return labels

    def majority_accuracy(self, validation: Tensor, test: Tensor) -> Tensor:
        """(N,), the score of each test row where nothing is run and the class most frequent on validation data is answered."""
        return (test == validation.mode().values).float()

    def measures(self, score: Tensor) -> dict[str, float]:
        """What is reported of the scores (N,) besides their mean."""
        return {}


def stratified_split(labels: Tensor, fractions: tuple[float, float, float] = (0.6, 0.2, 0.2), seed: int = 0) -> dict[Split, Tensor]:
    """Splits rows into train, validation and test so that each class has the same share in all three.

    The split depends on `seed` alone, not on the seed of a run: runs with different seeds are measured on the same rows.

    Returns:
        The row numbers of each split, sorted.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        first = round(len(rows) * fractions[0])
        second = first + round(len(rows) * fractions[1])
        for part, chunk in zip(parts, (rows[:first], rows[first:second], rows[second:]), strict=True):
            part.append(chunk)
    train, validation, test = (torch.cat(part).sort().values for part in parts)
    return {"train": train, "validation": validation, "test": test}


@dataclass(frozen=True)
class BundledTask:
    """A task of the package, before its data are read."""

    make: Callable[[Path, TaskOptions], Task] | Callable[[], Task]
    """Reads the data: from a path, or brings its own."""
    defaults: Defaults = field(default_factory=dict)
    """As `Task.defaults`."""
    needs_data: bool = True
    """Whether `make` takes a path, and the options with which models from transformers are named."""


TASKS: Registry[BundledTask] = Registry("task", "--task")
for _name, _place in {
    "digits": "digits:DIGITS",
    "hops": "hops:HOPS",
    "hops-16": "hops:HOPS_16",
    "speech": "speech:SPEECH",
    "images": "images:IMAGES",
    "text": "text:TEXT",
    "language": "language:LANGUAGE",
}.items():
    TASKS.register_lazily(_name, f"rl_skip.tasks.{_place}")


@cache
def load_task(name: str, data: str | None = None, options: TaskOptions = DEFAULTS) -> Task:
    """The task `name`: a bundled one, such as "digits" or "text", or "file.py:function" for one of your own.

    Args:
        data: where its data are; digits and hops need none.
        options: the model, and where in the data what stands.

    Raises:
        UserError: if there is no such task, or the data cannot be read.
    """
    bundled = None if is_own(name) else TASKS.find(name)
    if bundled is not None and data is not None and not Path(data).exists():  # what it means to a person's own task is theirs to say
        raise UserError(f"there is nothing at {data}; set --data to a path that exists")
    if bundled is not None and not bundled.needs_data and data is not None:
        raise UserError(f"the task {name!r} brings its own data and does not read {data}; leave out --data, or set --task")
    if options.pretrained and (bundled is None or not bundled.needs_data):
        raise UserError(f"the task {name!r} builds its network itself and does not take {options.model}; leave out --model, or set --task")
    if bundled is None:
        return _own_task(name, data)
    if bundled.needs_data and data is None:
        raise UserError(f"the task {name!r} needs data; set --data PATH")
    task = bundled.make(Path(data), options) if data is not None else bundled.make()  # type: ignore[call-arg]
    return replace(task, defaults=bundled.defaults)


def defaults_of(name: str, data: str | None, given: Mapping[str, str]) -> Mapping[str, Any]:
    """The defaults of a task's options. Of a bundled task no data are read for them.

    Args:
        name, data: as `load_task` takes them.
        given: the options that are given, by their names with underscores.
    """
    defaults = _own_task(name, data).defaults if is_own(name) else TASKS.find(name).defaults
    return defaults(given) if callable(defaults) else defaults


@cache
def _own_task(name: str, data: str | None) -> Task:
    make: Any = load_own(name, "task", "--task")
    file, _, function = name.rpartition(":")
    if not callable(make):
        raise UserError(f"{function!r} in {file} is no function; set --task to file.py:function")
    try:
        task = make(data)
    except UserError:
        raise
    except Exception as error:  # a person's own code can fail in any way
        needed = "" if data is not None else "; it was called without data: set --data if it needs some"
        raise UserError(f"{function} in {file} failed: {type(error).__name__}: {' '.join(str(error).split())}{needed}") from error
    if not isinstance(task, Task):
        raise UserError(f"{function} in {file} returned {type(task).__name__}, not a rl_skip.Task")
    return task
