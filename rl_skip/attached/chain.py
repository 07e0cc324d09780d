"""What a model does after its layers, where it is no more than modules one after the other: then these alone answer, without a call of the model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.core.stack import version_of

__all__ = ["ChainTrace", "tracing_calls"]

SAME = (Tensor.data_ptr, Tensor.size, Tensor.stride, Tensor.type)
"""In what a view of all of a tensor is like it."""


class ChainTrace:
    """Watches a model after its layers: whether each module takes just what the one before it returned, and the last returns the logits.

    What is compared is the tensors themselves, and how often they were written to, so nothing that the model does between its modules goes unseen.

    Args:
        hidden: what the last layer hands on.
        views: whether a view of all of a tensor is that tensor, such as `hidden[:, 0:]` of a decoder that may be asked for its last logits alone. Of
            another number of tokens the same view may be a part, so only where there always are as many.
    """

    def __init__(self, hidden: Tensor, views: bool = False) -> None:
        self._views = views
        self._handed, self._version, self._unbroken = hidden, version_of(hidden), True
        self._names: list[str] = []

    def called(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """A module beside the layers was called, and returned something."""
        follows = len(args) == 1 and not kwargs and self._is_handed(args[0]) and isinstance(output, Tensor)
        self._unbroken = self._unbroken and follows
        if self._unbroken:
            self._names.append(name)
            self._handed, self._version = output, version_of(output)

    def _is_handed(self, given: Any) -> bool:
        """Whether somebody was given just what the last module returned."""
        handed = self._handed
        if not isinstance(given, Tensor) or version_of(handed) != self._version:
            return False
        return given is handed or (self._views and all(look(given) == look(handed) for look in SAME))

    def names(self, logits: Any) -> tuple[str, ...] | None:
        """The modules in their order, where they alone make the `logits` of the hidden state; None where they do not."""
        alone = self._unbroken and self._names and self._is_handed(logits) and not torch.compiler.is_compiling()
        return tuple(self._names) if alone else None


@contextmanager
def tracing_calls(beside: Mapping[str, nn.Module], traces: Sequence[ChainTrace]) -> Iterator[None]:
    """Within it, `traces` are told of calls of the modules beside the layers; there is none until the layers are done."""

    def tell(name: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for trace in traces:
            trace.called(name, args, kwargs, output)

    hooks = [module.register_forward_hook(partial(tell, name), with_kwargs=True) for name, module in beside.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
