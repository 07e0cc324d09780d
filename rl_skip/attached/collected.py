"""What transformers collects inside layers, such as attention weights: of rows that skip a layer there is none, and zeros stand for it."""

import sys
from typing import Any

from torch import Tensor, nn

from rl_skip.attached.returns import blank, spread
from rl_skip.core.errors import UserError

__all__ = ["Collected"]


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


def _lists() -> dict[str, list[Any]]:
    """What is being collected now, by its name; nothing where transformers collects nothing, or is of a release that does it in another way."""
    collecting = getattr(sys.modules.get("transformers.utils.output_capturing"), "_active_collector", None)
    collected = None if collecting is None else collecting.get()
    return {key: values for key, values in (collected or {}).items() if isinstance(values, list)}


def _refused(key: str) -> str:
    balanced = "a loss that balances experts would count rows that never came to them" if "router" in key else "zeros could be taken for some"
    off = f"call with output_{key}=False, and so in the configuration"
    return f"{key} are collected inside the layers, rows skip some of them, and {balanced}: {off}, or run all layers (handle.disabled())"
