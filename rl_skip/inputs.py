"""Inputs of a network: one tensor, or a dictionary of tensors, rows first."""

from collections.abc import Callable

from torch import Tensor

__all__ = ["Inputs", "map_inputs", "row_count", "take_rows"]

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


def take_rows(inputs: Inputs, rows: Tensor | slice) -> Inputs:
    """The rows that `rows` names, by index or by slice."""
    return map_inputs(inputs, lambda tensor: tensor[rows.to(tensor.device) if isinstance(rows, Tensor) else rows])
