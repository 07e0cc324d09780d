"""What `torch.compile` comes to at a routed layer: the graph ends, the routing runs as it is, and the layer's own computation is compiled.

The code that is traced imports this module, so nothing but `torch.compile` loads the compiler.
"""

from typing import Any, TypeAlias

from torch._dynamo.decorators import skip

from rl_skip.attached.checkpointing import outside_checkpoint, run_checkpointed
from rl_skip.core.compiled import eager, refuse_whole_graph, whole_graph
from rl_skip.core.tracing import ONE_ROUTE

__all__ = ["call_beside", "call_layer", "call_model"]

WITH_READOUTS = "a model with readouts is no one graph for torch.compile: leave fullgraph=True out, or export it with strict=False"
Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any]


def call_layer(stand_in: Any, args: Args, kwargs: Kwargs) -> Any:
    """As `RoutedForward` does by itself, with the layer compiled.

    Raises:
        WholeGraphError: where the graph must not end here, and rows may take routes of their own.
    """
    if whole_graph() and stand_in.handle.takes_fixed(args, kwargs):
        return stand_in.handle.run_fixed(stand_in.index, args, kwargs)
    refuse_whole_graph(ONE_ROUTE)
    return _call_layer(stand_in, args, kwargs)


def call_model(stand_in: Any, args: Args, kwargs: Kwargs) -> Any:
    """As `ModelCall` does by itself, with the model compiled up to its layers, and after them.

    Raises:
        WholeGraphError: where the graph must not end here.
    """
    refuse_whole_graph(WITH_READOUTS)
    return _call_model(stand_in, args, kwargs)


def call_beside(stand_in: Any, args: Args, kwargs: Kwargs) -> Any:
    """As `Beside` does by itself."""
    return eager(stand_in)(*args, **kwargs)


# The compiler passes over these two alone, and compiles what they call; `forward` of a module of PyTorch, such as nn.Sequential, within another
# function alone, which `run_checkpointed` is.
@skip
def _call_layer(stand_in: Any, args: Args, kwargs: Kwargs) -> Any:
    turn = eager(stand_in.handle.open_turn)(stand_in.index, args, kwargs)
    with outside_checkpoint(stand_in.module):
        returned = None if turn.rows is None else run_checkpointed(stand_in.module, stand_in.original, turn.args, turn.kwargs)
    return eager(stand_in.handle.close_turn)(turn, returned)


@skip
def _call_model(stand_in: Any, args: Args, kwargs: Kwargs) -> Any:
    stack = stand_in.handle.stack
    eager(stand_in.handle.check_standing)()
    eager(stack.begin_call)(stand_in.original, args, kwargs)
    try:
        return stand_in.original(*args, **kwargs)
    finally:
        eager(stack.end_call)()
