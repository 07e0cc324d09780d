"""The call of one layer of an attached model: its arguments, and those of some rows alone."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.rows import Places, is_cache, put_rows, rows_of
from rl_skip.core.errors import UserError

__all__ = ["Given", "LayerCall", "alike", "parameter_names", "real_tokens"]

Given = tuple[Sequence[str], tuple[Any, ...], dict[str, Any]]
"""What a layer calls its parameters, and what it is given by position and by name."""
EXTRA = "*"
"""The name of what a layer was given by position and does not name."""
PADDING_MASKS = ("src_key_padding_mask", "key_padding_mask")
"""Arguments that are true, or far below zero, where a token is padding."""


@dataclass
class LayerCall:
    """What a layer was called with, besides the hidden state."""

    arguments: dict[str, Any]
    """The arguments by their names; those given by position first, in order."""
    positional: int
    """How many of them were given by position."""
    row_count: int
    """B."""
    extra: tuple[Any, ...] = ()
    """Arguments by position beyond those that the layer names."""
    places: Places = field(default_factory=dict)
    """Where the rows are in the arguments."""

    @classmethod
    def of(cls, names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> "tuple[Tensor, LayerCall]":
        """The hidden state of the call `layer(*args, **kwargs)` of a layer whose parameters are called `names`, and the rest of the call."""
        if not args:
            args, kwargs = (kwargs.get(names[0]),), {name: value for name, value in kwargs.items() if name != names[0]}
        hidden = args[0]
        if not isinstance(hidden, Tensor) or hidden.is_nested:
            expected = "a tensor with the rows first"
            if isinstance(hidden, Tensor):
                expected += "; build nn.TransformerEncoder with enable_nested_tensor=False"
            raise UserError(f"a layer was called with a {_kind(hidden)} for its hidden state {names[0]!r}, expected {expected}")
        positional = dict(zip(names[1:], args[1:], strict=False))
        return hidden, cls({**positional, **kwargs}, len(positional), hidden.shape[0], args[1 + len(positional) :])

    def run(self, forward: Callable[..., Any], hidden: Tensor) -> Any:
        """Calls `forward` with a hidden state."""
        args, kwargs = self.as_given(hidden)
        return forward(*args, **kwargs)

    def as_given(self, hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments by position and by name with which `run` calls."""
        values = list(self.arguments.values())
        named = zip(list(self.arguments)[self.positional :], values[self.positional :], strict=True)
        return (hidden, *values[: self.positional], *self.extra), dict(named)

    def given(self, passed: dict[str, Any]) -> "LayerCall":
        """The call with what earlier layers returned for it in place of the arguments of the same names."""
        return replace(self, arguments={name: passed.get(name, value) for name, value in self.arguments.items()}) if passed else self

    def parts(self) -> dict[str, Any]:
        """All arguments by name, those that the layer does not name too."""
        return {**self.arguments, EXTRA: self.extra}

    def take(self, rows: Tensor) -> "LayerCall":
        """The call for the named rows alone."""
        taken = {name: rows_of(value, rows, self.row_count, name, self.places) for name, value in self.parts().items()}
        return replace(self, extra=taken.pop(EXTRA), arguments=taken, row_count=rows.shape[0])

    def put(self, rows: Tensor, other: "LayerCall", causal: bool) -> "LayerCall":
        """The call with the named rows of this one overwritten by those of `other`, which has exactly these rows."""
        B, R = self.row_count, other.row_count
        pairs = {name: _alike(value, other.arguments[name], B, R, causal) for name, value in self.arguments.items()}
        return replace(self, arguments={name: put_rows(old, new, rows, B, name, self.places) for name, (old, new) in pairs.items()})

    def without_caches(self, unwanted: Callable[[Any], object] = is_cache) -> "LayerCall":
        """The call as it is where nothing is kept, or nothing in caches that are `unwanted`."""
        return replace(self, arguments={name: None if is_cache(value) and unwanted(value) else value for name, value in self.arguments.items()})

    def check(self) -> None:
        """Refuses what cannot be given for some rows alone.

        Raises:
            UserError: for the masks of flex attention and for batches packed into one row.
        """
        for name, value in self.arguments.items():
            if type(value).__name__ == "BlockMask":
                raise UserError('the mask of flex attention has no rows to take: load the model with attn_implementation="sdpa" or "eager"')
            if name.startswith(("cu_seq_lens", "cu_seqlens")) and value is not None:
                raise UserError(f"{name} says that many texts are packed into one row, which has one route: pad them, one text to a row")


def alike(call: Given, other: Given) -> bool:
    """Whether two layers, which name their arguments alike, are called with the very same ones, but for the hidden state, given first."""
    (names, args, kwargs), (other_names, other_args, other_kwargs) = call, other
    return (
        names == other_names
        and 0 < len(args) == len(other_args)
        and kwargs.keys() == other_kwargs.keys()
        and all(map(is_, args[1:], other_args[1:]))
        and all(value is other_kwargs[name] for name, value in kwargs.items())
    )


def real_tokens(call: LayerCall, tokens: int) -> Tensor | None:
    """(B, T) bool, true where one of the T `tokens` is real, as the layer's attention mask says; None without one."""
    for name in PADDING_MASKS:
        mask = call.arguments.get(name)
        if isinstance(mask, Tensor):
            return ~mask if mask.dtype is torch.bool else mask == 0
    mask = call.arguments.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() < 2:
        return None
    # Additive masks are 0 where attention may look and far below 0 elsewhere; 2-D masks and boolean ones are true there.
    visible = mask > torch.finfo(mask.dtype).min / 2 if mask.is_floating_point() and mask.dim() > 2 else mask.bool()
    if visible.dim() > 2:  # (B, H or 1, T, T): a key is real if any query may look at it
        visible = visible.flatten(1, -2).any(dim=1)
    return visible[:, -tokens:].expand(call.row_count, tokens)


def parameter_names(layer: nn.Module) -> list[str]:
    """What a layer calls its arguments, the hidden state first."""
    return _names(layer.forward) or _names(type(layer).forward)[1:]  # somebody may have put a function of any arguments in its place


def _names(forward: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in inspect.signature(forward).parameters.items() if parameter.kind in kinds]


def _alike(old: Any, new: Any, B: int, R: int, causal: bool) -> tuple[Any, Any]:
    """Both with a mask where one has one: without padding, transformers leaves it out."""
    if isinstance(old, Tensor) and new is None:
        return old, _open_mask(old, R, causal)
    if old is None and isinstance(new, Tensor):
        return _open_mask(new, B, causal), new
    return old, new


def _open_mask(like: Tensor, rows: int, causal: bool) -> Tensor:
    """The mask that hides no token but, if `causal`, the later ones."""
    shape = (rows, *like.shape[1:])
    open_to = torch.ones(shape, dtype=torch.bool, device=like.device)
    if causal and like.dim() > 2:
        open_to = open_to.tril()
    if not like.is_floating_point():
        return open_to.to(like.dtype)
    return torch.zeros(shape, dtype=like.dtype, device=like.device).masked_fill(~open_to, torch.finfo(like.dtype).min)


def _kind(value: object) -> str:
    return "nested tensor" if isinstance(value, Tensor) else type(value).__name__
