"""What a batch takes with it from layer to layer, as tensors by name: what goes into a graph and comes out of it."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from rl_skip.core.errors import UserError
from rl_skip.core.inputs import Inputs, by_length, lengths, row_count, take_rows, trimmed
from rl_skip.core.stack import Carry, LayerStack

__all__ = ["Carried", "moving_axes", "probes"]

PROBE_ROWS = (3, 2)
SHORTEST = 3
"""Tokens of a probe that can lose one and still be a sequence."""


def probes(inputs: Inputs) -> tuple[Inputs, Inputs]:
    """Two small batches of the same rows that differ in every size that may differ: in rows, and in tokens where rows are padded.

    Both have padding, which a model may treat in a way of its own.

    Raises:
        UserError: if there are too few rows.
    """
    most, fewer = PROBE_ROWS
    if row_count(inputs) < most:
        raise UserError(f"a network is exported on {most} rows of its data, which has {row_count(inputs)}; set --data")
    first = trimmed(take_rows(inputs, by_length(inputs)[-most:]))
    second = take_rows(first, slice(0, fewer))
    if lengths(first) is None:
        return first, second
    assert isinstance(first, dict) and isinstance(second, dict)
    padded = first["attention_mask"].shape
    if padded[1] < SHORTEST:
        raise UserError(f"a network is exported on rows of at least {SHORTEST} tokens, the longest of the data has {padded[1]}; set --data")
    shorter = {name: tensor[:, :-1] if first[name].shape[:2] == padded else tensor for name, tensor in second.items()}
    return _padded(first), _padded(shorter)


def _padded(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    mask = inputs["attention_mask"].clone()
    mask[:, -1] = 0
    return {**inputs, "attention_mask": mask}


def moving_axes(first: Tensor, second: Tensor) -> frozenset[int]:
    """The axes in which two tensors, made alike of two probes, differ in size."""
    return frozenset(axis for axis, (size, other) in enumerate(zip(first.shape, second.shape, strict=True)) if size != other)


class Carried:
    """The tensors in the carries of a stack, each once, named by the place where it is first met; and a carry made of such tensors.

    Args:
        stack: whose `begin` makes carries.
        first, second: probes.

    Raises:
        UserError: if the two carries hold different things, or tensors whose rows are not where they belong.
    """

    def __init__(self, stack: LayerStack, first: Inputs, second: Inputs) -> None:
        self._template = stack.begin(first)
        found, other = dict(_leaves(self._template)), dict(_leaves(stack.begin(second)))
        if found.keys() != other.keys():
            odd = sorted(found.keys() ^ other.keys())[0]
            raise UserError(f"the network hands {odd} on for some batches and not for others, so its layers cannot be exported")
        self._name_of: dict[str, str] = {}  # by place
        self._counts: list[str] = []
        self.tensors: dict[str, Tensor] = {}
        """Of the first probe, by name."""
        self.axes: dict[str, frozenset[int]] = {}
        """Which axes of each change with the batch."""
        names: dict[int, str] = {}
        rows, fewer = row_count(first), row_count(second)
        for place, value in found.items():
            if isinstance(value, Tensor):
                name = self._name_of[place] = names.setdefault(id(value), place)
                if name == place:
                    self.tensors[name], self.axes[name] = value, moving_axes(value, other[place])  # type: ignore[arg-type]
                    if 0 in self.axes[name] and value.shape[0] != rows:
                        raise UserError(f"the network hands {name} on, of shape {tuple(value.shape)} for {rows} rows, which no row can take with it")
            elif (value, other[place]) == (rows, fewer):
                self._counts.append(place)

    def has_rows(self, name: str) -> bool:
        """Whether the first axis of a tensor is that of the rows; others are the same for all of them."""
        return 0 in self.axes[name]

    def of(self, carry: Carry) -> dict[str, Tensor]:
        """The tensors of a carry by their names."""
        found = dict(_leaves(carry))
        return {name: found[name] for name in self.tensors}  # type: ignore[misc]

    def changed(self, carry: Carry, given: Mapping[str, Tensor]) -> list[str]:
        """The places in a carry, made of what is `given` and run since, where another tensor is now than was given."""
        tensors = [(place, value) for place, value in _leaves(carry) if isinstance(value, Tensor)]
        return [place for place, value in tensors if place not in self._name_of or value is not given[self._name_of[place]]]

    def carry(self, given: Mapping[str, Tensor]) -> Any:
        """The carry with these tensors, by name."""
        rows = given["hidden"].shape[0]
        return _filled(self._template, {place: given[name] for place, name in self._name_of.items()} | dict.fromkeys(self._counts, rows))


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Tensor | int]]:
    """Every tensor and whole number in nested containers, with its place."""
    if isinstance(value, Tensor) or type(value) is int:
        yield place, value
    else:
        for key, item in _items(value):
            yield from _leaves(item, f"{place}.{key}".lstrip("."))


def _items(value: Any) -> list[tuple[Any, Any]]:
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if type(value) in (tuple, list) else []


def _filled(value: Any, given: Mapping[str, Any], place: str = "") -> Any:
    """A copy of nested containers with what is given in its places."""
    if place in given:
        return given[place]
    items = [(key, _filled(item, given, f"{place}.{key}".lstrip("."))) for key, item in _items(value)]
    if is_dataclass(value):
        made = copy.copy(value)
        for key, item in items:
            setattr(made, key, item)
        return made
    if isinstance(value, dict):
        return dict(items)
    return type(value)(item for _, item in items) if type(value) in (tuple, list) else value
