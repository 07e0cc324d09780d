"""Tasks: data with labels in three splits, and how its inputs become tokens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from rl_skip.core.inputs import Inputs, map_inputs, row_count, take_rows, trimmed
from rl_skip.core.stack import LayerStack

__all__ = ["Classification", "Defaults", "Embedding", "Examples", "Split", "Task", "score_key", "stratified_split"]

Split = Literal["train", "validation", "test"]
Defaults = Mapping[str, Any] | Callable[[Mapping[str, str]], Mapping[str, Any]]
"""Options of training that suit a task, by their names on the command line, with underscores: what `train.py --task` takes where a flag is not
given. Where they depend on other options: a function of what the command line gives, such as {"tune": "all"}."""


class DescribedEmbedding(Protocol):
    """An embedding that a file can hold, such as `PatchEmbedding`."""

    def build(self, width: int) -> nn.Module:
        """Inputs → hidden state (B, T, width), or a pair of it and a mask (B, T) that is true on real tokens."""
        ...


Embedding = DescribedEmbedding | Callable[[int], nn.Module]
"""How inputs become tokens: described in numbers, or a function width → module."""


class NetworkSize(Protocol):
    """The size of a network, which builds it: `NetworkConfig`."""

    def build(self, embedding: Embedding, tokens: int, classes: int) -> LayerStack:
        """The network between an embedding and outputs for so many classes."""
        ...


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


class Classification:
    """What is learned and measured of outputs (B, C) and labels (B,); a task of another kind overrides it."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(B,), cross-entropy of each row."""
        return torch.nn.functional.cross_entropy(outputs, labels, reduction="none")

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(B,) in [0, 1], how good each row's outputs are: 1 where the likeliest class is the label, else 0."""
        return (outputs.argmax(dim=1) == labels).float()

    def probability(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(B,), the probability that the outputs give to the label."""
        return torch.softmax(outputs, dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)


@dataclass(frozen=True)
class Task(Classification):
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
    """Reads one split. Only evaluation reads test; of a person's own task, a few rows of it are tried before a run begins."""
    embedding: Embedding
    """How inputs become tokens: `PatchEmbedding`, `FrameEmbedding`, or a function width → module."""
    tokens: int
    """T, tokens of one row, for the cost of a layer."""
    in_words: Callable[[Examples], list[str]] | None = None
    """A text for each row, for figures, the two of a pair in lines of their own; None: rows are drawn, as images or sounds."""
    required_depth: Callable[[Examples], Tensor] | None = None
    """(N,) long, how many layers each row needs, where the task knows; the warm-up trains a network on just these."""
    network: Callable[[Any], LayerStack] | None = None
    """`NetworkConfig` → the network, where it is a model from transformers; None: one of ours is built around the embedding."""
    defaults: Defaults = field(default_factory=dict, compare=False)
    """Options of training that suit it, such as {"epochs": 6, "score": "probability"}."""
    score_name: str = "accuracy"
    """What reports call the mean of `score`."""
    remarks: tuple[str, ...] = ()
    """What was passed over, cut off or changed when the data were read: a sentence each, with counts and file names."""
    remarks_on: Callable[[Split], tuple[str, ...]] | None = None
    """The same of one split, where it is known only once the split is loaded, such as how many texts are cut off."""
    labels: Callable[[Split], Tensor] | None = None
    """The labels of a split as `load` gives them, where they are known without its inputs: with it the report on the data counts test rows at
    once. None: they are counted when evaluation reads them."""

    def build(self, config: NetworkSize) -> LayerStack:
        """The network of a `NetworkConfig`: fresh, or the model that the task was given."""
        if self.network is not None:
            return self.network(config)
        return config.build(self.embedding, self.tokens, len(self.classes))

    def prediction(self, outputs: Tensor) -> Tensor:
        """(B,) long, the likeliest class of each row."""
        return outputs.argmax(dim=-1)

    def class_of(self, labels: Tensor) -> Tensor:
        """(B,) long, the class of each row, for figures."""
        return labels

    def majority_score(self, validation: Tensor, test: Tensor) -> Tensor:
        """(N,), the score of each test row where nothing is run and the class most frequent on validation data is answered."""
        return (test == validation.mode().values).float()

    def measures(self, score: Tensor) -> dict[str, float]:
        """What is reported of the scores (N,) besides their mean."""
        return {}


def score_key(score_name: str) -> str:
    """The name of a score as a key in JSON and in TensorBoard's tags."""
    return score_name.replace(" ", "_")


def stratified_split(labels: Tensor, fractions: tuple[float, float, float] = (0.6, 0.2, 0.2), seed: int = 0) -> dict[Split, Tensor]:
    """Splits rows into train, validation and test so that each class has the same share in all three.

    The split depends on `seed` alone, not on the seed of a run: runs with different seeds are measured on the same rows.

    Returns:
        The row numbers of each split, sorted.
    """
    generator = torch.Generator().manual_seed(seed)
    splits: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        first = round(len(rows) * fractions[0])
        second = first + round(len(rows) * fractions[1])
        for split, chunk in zip(splits, (rows[:first], rows[first:second], rows[second:]), strict=True):
            split.append(chunk)
    train, validation, test = (torch.cat(split).sort().values for split in splits)
    return {"train": train, "validation": validation, "test": test}
