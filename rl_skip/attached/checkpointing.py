"""Gradient checkpointing of routed layers: the backward pass computes again what a layer did for the rows that it ran, and nothing else.

What is computed again must lie within the routing, since a route is known only while its call goes on. transformers before 5.23
checkpoints a layer's whole call, the routing in it too; there the same function is moved inwards, around the layer's own `forward`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from rl_skip.core.errors import UserError

__all__ = ["check_first_time", "outside_checkpoint", "run_checkpointed"]


def check_first_time(i: int) -> None:
    """Refuses to begin a call of the model at layer `i` in the middle of a backward pass.

    Raises:
        UserError: if the layer alone was put into a checkpoint. A model within one starts again at layer 0.
    """
    if i > 0 and torch._C._current_graph_task_id() != -1:
        raise UserError(
            f"the backward pass calls layer {i} again, whose rows and route are gone: checkpoint the model as a whole, "
            "or by transformers' gradient_checkpointing_enable(), not single layers by torch.utils.checkpoint"
        )


@contextmanager
def outside_checkpoint(layer: nn.Module) -> Iterator[None]:
    """Within it, a checkpoint around the layer's call keeps what autograd saves, so it never calls the layer again.

    Raises:
        UserError: if the checkpoint is a reentrant one, which saves nothing that could be kept.
    """
    function = _around(layer)
    if function is None:
        yield
        return
    if getattr(function, "keywords", {}).get("use_reentrant"):
        raise UserError(
            "checkpointing with use_reentrant=True does not go with a route before transformers 5.23: "
            'install a newer one, or gradient_checkpointing_enable({"use_reentrant": False})'
        )
    with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        yield


def run_checkpointed(layer: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Calls the layer's `forward`, within the checkpoint that was around the layer's call."""
    function = _around(layer)
    return forward(*args, **kwargs) if function is None else function(partial(forward, **kwargs), *args)


def _around(layer: nn.Module) -> Any:
    """What checkpoints the layer's call, as transformers before 5.23 does; None where nothing does, or the layer's `forward` does it itself."""
    in_call = type(layer).__call__ is not nn.Module.__call__
    return layer._gradient_checkpointing_func if in_call and layer.training and getattr(layer, "gradient_checkpointing", False) else None
