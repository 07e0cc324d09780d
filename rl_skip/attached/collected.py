"""What transformers collects inside layers, such as attention weights: of rows that skip a layer there is none, and zeros stand for it."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.returns import blank, spread
from rl_skip.core.errors import UserError
from rl_skip.core.tracing import refuse_tracing

__all__ = ["Collected", "refuse_collecting"]


class Collected:
    """What is collected inside the layers during one call of a model.

    transformers keeps it in lists, to which hooks on modules inside the layers append.
    """

    def __init__(self) -> None:
        self._like: dict[tuple[str, ...], dict[str, list[Any]]] = {}
        """What a layer with such modules inside added, of all rows, by what is collected."""
        self._before: dict[str, int] = {}

    def begin(self) -> None:
        """Called before a layer runs."""
        self._before = {key: len(values) for key, values in _lists().items()}

    def end(self, layer: nn.Module, rows: Tensor | None, row_count: int) -> None:
        """Called after a layer ran on the named rows (None: on none): what it added becomes as if of all rows.

        Raises:
            UserError: for what is neither attention weights nor hidden states, if rows skip the layer.
        """
        lists = _lists()
        if not lists:
            return
        kind = tuple(type(module).__name__ for module in layer.modules())
        for key, values in lists.items():
            if rows is None:
                added = [blank(like) for like in self._known(kind, key)]
            else:
                added = values[self._before.get(key, 0) :]
                if rows.shape[0] == row_count:
                    self._like.setdefault(kind, {})[key] = added
                    continue
                del values[len(values) - len(added) :]
            if added and not key.endswith(("attentions", "hidden_states")):
                raise UserError(_refused(key))
            likes = self._like.get(kind, {}).get(key, added)
            values += added if rows is None else [spread(one, like, rows, row_count, key) for one, like in zip(added, likes, strict=False)]

    def _known(self, kind: tuple[str, ...], key: str) -> list[Any]:
        if kind not in self._like:
            raise UserError(f"no row ran a layer of a kind, so there are no {key} of which it could have zeros: call with output_{key}=False")
        return self._like[kind].get(key, [])


def refuse_collecting() -> None:
    """Refuses to leave a layer out of a graph that is recorded while something is collected inside the layers: nothing shows how large zeros are.

    Raises:
        UserError: naming what is collected.
    """
    if torch.compiler.is_dynamo_compiling() and not getattr(_collector(), "compiling", False):
        return  # the compiler cannot trace how the context is read, and what collects reads it too
    for key in _lists():
        if not key.endswith("hidden_states"):
            refuse_tracing(f"a graph that is recorded as a whole has no {key} of layers that it leaves out: record it with output_{key}=False")


def _collector() -> Any:
    """What transformers collects with; None before it is loaded, and where it is of a release that does it in another way."""
    return getattr(sys.modules.get("transformers.utils.output_capturing"), "_active_collector", None)


def _lists() -> dict[str, list[Any]]:
    """What is being collected now, by its name."""
    collector = _collector()
    collected = None if collector is None else collector.get()
    return {key: values for key, values in (collected or {}).items() if isinstance(values, list)}


def _refused(key: str) -> str:
    balanced = "a loss that balances experts would count rows that never came to them" if "router" in key else "zeros could be taken for some"
    off = f"call with output_{key}=False, and so in the configuration"
    return f"{key} are collected inside the layers, rows skip some of them, and {balanced}: {off}, or run all layers (handle.disabled())"
