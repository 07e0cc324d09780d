"""Inputs of a network: one tensor, or a dictionary of tensors, rows first."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rl_skip.core.errors import UserError

__all__ = ["Inputs", "as_inputs", "by_length", "device_of", "lengths", "map_inputs", "row_count", "take_rows", "trimmed"]

Inputs = Tensor | dict[str, Tensor]


def as_inputs(given: object) -> Inputs:
    """What a person gave, as inputs; of a mapping that is no dictionary, such as what a tokenizer returns, the dictionary.

    Raises:
        UserError: if it is neither a tensor nor a mapping of tensors.
    """
    if isinstance(given, Tensor):
        return given
    if isinstance(given, Mapping) and given and all(isinstance(value, Tensor) for value in given.values()):
        return dict(given)
    raise UserError(f"inputs are one tensor, rows first, or tensors by their names, got {_in_words(given)}; make tensors of it, torch.as_tensor(…)")


def _in_words(given: object) -> str:
    if not isinstance(given, Mapping):
        return f"a {type(given).__name__}"
    others = [f"{name!r} of type {type(value).__name__}" for name, value in given.items() if not isinstance(value, Tensor)]
    return f"a {type(given).__name__} with {others[0] if others else 'nothing in it'}"


def map_inputs(inputs: Inputs, function: Callable[[Tensor], Tensor]) -> Inputs:
    """Applies `function` to every tensor of `inputs`."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    return {name: function(tensor) for name, tensor in inputs.items()}


def row_count(inputs: Inputs) -> int:
    """B, the number of rows."""
    tensor = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    return tensor.shape[0]


def device_of(inputs: Inputs) -> torch.device:
    """Where the inputs are."""
    tensor = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    return tensor.device


def take_rows(inputs: Inputs, rows: Tensor | slice) -> Inputs:
    """The rows that `rows` names, by index or by slice."""
    return map_inputs(inputs, lambda tensor: tensor[rows.to(tensor.device) if isinstance(rows, Tensor) else rows])


def lengths(inputs: Inputs) -> Tensor | None:
    """(B,), up to which place each row of a padded dictionary is real, as its `attention_mask` (B, T) says; None without one."""
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    if mask is None or mask.dim() != 2:
        return None
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask.bool() * places).amax(dim=1)


def trimmed(inputs: Inputs) -> Inputs:
    """The inputs without the places at the end that are padding in every row."""
    reach = lengths(inputs)
    if reach is None or len(reach) == 0:
        return inputs
    assert isinstance(inputs, dict)
    padded, longest = inputs["attention_mask"].shape, max(int(reach.max()), 1)
    return {name: tensor[:, :longest] if tensor.shape[:2] == padded else tensor for name, tensor in inputs.items()}


def by_length(inputs: Inputs) -> Tensor:
    """(B,), the rows in the order of their lengths, so that those of a batch are alike; as they are where lengths are not known."""
    reach = lengths(inputs)
    return torch.arange(row_count(inputs)) if reach is None else reach.cpu().argsort(stable=True)
