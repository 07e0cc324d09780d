"""What `torch.compile` comes to where rows are routed: the graph ends, the routing runs as it is, and each layer's own computation is compiled.

The code that is traced imports this module, so nothing but `torch.compile` loads the compiler.
"""

from typing import Any

import torch
from torch._dynamo.decorators import skip
from torch.utils._pytree import tree_leaves

from rl_skip.attached.handle import RoutedForward, Turn

__all__ = ["call_beside", "call_layer", "call_model"]


@skip
def call_layer(stand_in: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As `Handle.call_layer`, with the layer itself compiled."""
    turn = _open(stand_in, args, kwargs)
    returned = None if turn.rows is None else stand_in.original(*turn.args, **turn.kwargs)
    return _close(stand_in, turn, returned)


@skip
def call_model(stand_in: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    _enter(stand_in, args, kwargs)
    try:
        return stand_in.original(*args, **kwargs)
    finally:
        _leave(stand_in)


@torch.compiler.disable
def call_beside(stand_in: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return stand_in.handle.stack.call_beside(stand_in.name, stand_in.original, args, kwargs)


@torch.compiler.disable
def _open(stand_in: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Turn:
    return stand_in.handle.open_turn(stand_in.index, args, kwargs)


@torch.compiler.disable
def _close(stand_in: Any, turn: Turn, returned: Any) -> Any:
    return stand_in.handle.close_turn(turn, returned)


@torch.compiler.disable
def _enter(stand_in: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    stand_in.handle.check_standing()
    stand_in.handle.stack.begin_call(stand_in.original, args, kwargs)


@torch.compiler.disable
def _leave(stand_in: Any) -> None:
    stand_in.handle.stack.end_call()
