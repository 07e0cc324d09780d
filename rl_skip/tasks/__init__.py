"""Tasks: data with labels in three splits, and how its inputs become tokens.

A task of your own is a function in a Python file that returns a `Task`; `--task my_file.py:my_task --data PATH` calls
it with the path (None without `--data`).
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rl_skip.blocks import Embedding
from rl_skip.errors import UserError
from rl_skip.inputs import Inputs, map_inputs, row_count, take_rows, trimmed
from rl_skip.network import NetworkConfig, build_network
from rl_skip.stack import LayerStack
from rl_skip.tasks.options import TaskOptions

__all__ = ["Examples", "Split", "Task", "load_task", "stratified_split"]

BUNDLED = ("digits", "hops", "hops-16", "speech", "images", "text", "language")
Split = Literal["train", "validation", "test"]
DEFAULTS = TaskOptions()


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
    needed: Callable[[Examples], Tensor] | None = None
    """(N,) long, how many layers each row needs, where the task knows; the warm-up trains a network on just these."""
    network: Callable[[NetworkConfig], LayerStack] | None = None
    """Builds the network where it is a model from transformers; None: one of ours is built around the embedding."""

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

    def floor(self, validation: Tensor, test: Tensor) -> Tensor:
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


@cache
def load_task(name: str, data: str | None = None, options: TaskOptions = DEFAULTS) -> Task:
    """The task `name`: "digits", "hops", "hops-16", "speech", "images", "text", "language", or "file.py:function" for one of your own.

    Args:
        data: where its data are; digits and hops need none.
        options: the model, and where in the data what stands.

    Raises:
        UserError: if there is no such task, or the data cannot be read.
    """
    if name in BUNDLED and data is not None and not Path(data).exists():  # what it means to a person's own task is theirs to say
        raise UserError(f"there is nothing at {data}; set --data to a path that exists")
    if name in ("digits", "hops", "hops-16"):
        if data is not None:
            raise UserError(f"the task {name!r} brings its own data and does not read {data}; leave out --data, or set --task")
        if options.pretrained:
            raise UserError(f"the task {name!r} builds its network itself and does not take {options.model}; leave out --model, or set --task")
        if name == "digits":
            from rl_skip.tasks.digits import digits

            return digits()
        from rl_skip.tasks.hops import hops

        size = 16 if name == "hops-16" else 8
        return hops(name, nodes=size, longest=size)
    if name in BUNDLED:
        if data is None:
            raise UserError(f"the task {name!r} needs data; set --data PATH")
        module = importlib.import_module(f"rl_skip.tasks.{name}")
        task: Task = getattr(module, name)(Path(data), options)
        return task
    if options.pretrained:
        raise UserError(f"the task {name!r} builds its network itself and does not take {options.model}; leave out --model, or set --task")
    return _own_task(name, data)


def _own_task(name: str, data: str | None) -> Task:
    file, separator, function = name.rpartition(":")
    path = Path(file)
    if not separator or path.suffix != ".py":
        raise UserError(f"there is no task {name!r}; set --task to {', '.join(BUNDLED)}, or file.py:function for your own")
    if not path.is_file():
        raise UserError(f"there is no file {file} with a task; set --task to file.py:function")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        make = getattr(module, function, None)
        if not callable(make):
            raise UserError(f"{file} has no function {function!r}; set --task to file.py:function")
        task = make(data)
    except UserError:
        raise
    except Exception as error:  # a person's own code can fail in any way
        needed = "" if data is not None else "; it was called without data: set --data if it needs some"
        raise UserError(f"{function} in {file} failed: {type(error).__name__}: {' '.join(str(error).split())}{needed}") from error
    if not isinstance(task, Task):
        raise UserError(f"{function} in {file} returned {type(task).__name__}, not a rl_skip.Task")
    return task
