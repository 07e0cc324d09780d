"""What a model does after its layers, where it is no more than modules one after the other: then these alone answer, without a call of the model."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["ChainTrace"]


class ChainTrace:
    """Watches a model after its layers: whether each module takes just what the one before it returned, and the last returns the logits.

    What is compared is the tensors themselves, so nothing that the model does between its modules goes unseen: it would make another tensor.

    Args:
        hidden: what the last layer hands on.
    """

    def __init__(self, hidden: Tensor) -> None:
        self._handed, self._unbroken = hidden, True
        self._names: list[str] = []

    def called(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        """A module beside the layers was called, and returned something."""
        follows = len(args) == 1 and not kwargs and args[0] is self._handed and isinstance(output, Tensor)
        self._unbroken = self._unbroken and follows
        if self._unbroken:
            self._names.append(name)
            self._handed = output

    def names(self, logits: Any) -> tuple[str, ...] | None:
        """The modules in their order, where they alone make the `logits` of the hidden state; None where they do not."""
        alone = self._unbroken and self._names and logits is self._handed and not torch.compiler.is_compiling()
        return tuple(self._names) if alone else None
