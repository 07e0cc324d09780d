"""Inputs of a network: one tensor, or a dictionary of tensors, rows first."""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Inputs", "by_length", "device_of", "lengths", "map_inputs", "row_count", "take_rows", "trimmed"]

Inputs = Tensor | dict[str, Tensor]


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
