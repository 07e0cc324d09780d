"""The call of one layer of an attached model: its arguments, those of some rows alone, and what it returns."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rl_skip.core.errors import UserError

__all__ = ["HIDDEN", "RETURNS", "LayerCall", "RowsOfCache", "is_cache", "parameter_names", "put_rows", "real_tokens", "rows_of", "split_returned"]

HIDDEN = "hidden"
RETURNS: dict[str, tuple[str | None, ...]] = {
    "DebertaLayer": (HIDDEN, None),
    "DebertaV2Layer": (HIDDEN, None),
    "GPTJBlock": (HIDDEN, None),
    "GPTNeoBlock": (HIDDEN, None),
    "SwinLayer": (HIDDEN, None),
    "T5Block": (HIDDEN, "position_bias", "encoder_decoder_position_bias"),
    "MT5Block": (HIDDEN, "position_bias", "encoder_decoder_position_bias"),
}
"""Layers that return a tuple: where the hidden state is, and which argument of the layers after it another part becomes."""
NO_ROWS_IN_TWO_DIMENSIONS = {
    "attn_mask",
    "cos",
    "freqs",
    "freqs_cis",
    "memory_mask",
    "position_embeddings",
    "rel_embeddings",
    "rotary_pos_emb",
    "sin",
    "src_mask",
    "tgt_mask",
}
"""Arguments that, with two dimensions, are the same for all rows, even where the first is as long as the batch."""
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

    def run(self, forward: Callable[..., Any], hidden: Tensor, given: dict[str, Any]) -> Any:
        """Calls `forward` with a hidden state, and with the arguments `given` in place of those of the same names."""
        args, kwargs = self.as_given(hidden, given)
        return forward(*args, **kwargs)

    def as_given(self, hidden: Tensor, given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments by position and by name with which `run` calls."""
        values = [given.get(name, value) for name, value in self.arguments.items()]
        named = zip(list(self.arguments)[self.positional :], values[self.positional :], strict=True)
        return (hidden, *values[: self.positional], *self.extra), dict(named)

    def take(self, rows: Tensor) -> "LayerCall":
        """The call for the named rows alone."""
        arguments = {name: rows_of(value, rows, self.row_count, name) for name, value in self.arguments.items()}
        extra = tuple(rows_of(value, rows, self.row_count, "") for value in self.extra)
        return replace(self, arguments=arguments, extra=extra, row_count=rows.shape[0])

    def put(self, rows: Tensor, other: "LayerCall", causal: bool) -> "LayerCall":
        """The call with the named rows of this one overwritten by those of `other`, which has exactly these rows."""
        B, R = self.row_count, other.row_count
        pairs = {name: _alike(value, other.arguments[name], B, R, causal) for name, value in self.arguments.items()}
        return replace(self, arguments={name: put_rows(old, new, rows, B, name) for name, (old, new) in pairs.items()})

    def without_caches(self) -> "LayerCall":
        """The call as it is where nothing is kept."""
        return replace(self, arguments={name: None if is_cache(value) else value for name, value in self.arguments.items()})

    def check(self) -> None:
        """Refuses what cannot be given for some rows alone.

        Raises:
            UserError: for the masks of flex attention and for batches packed into one row.
        """
        for name, value in self.arguments.items():
            if type(value).__name__ == "BlockMask":
                raise UserError('the mask of flex attention has no rows to take: load the model with attn_implementation="sdpa" or "eager"')
            if name.startswith("cu_seq_lens") and value is not None:
                raise UserError(f"{name} says that many texts are packed into one row, which has one route: pad them, one text to a row")


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


def split_returned(layer: object, returned: Any) -> tuple[Tensor, dict[str, Any] | None]:
    """The hidden state that a layer returned, and the other parts of a tuple by the argument each becomes.

    Raises:
        UserError: for a tuple whose parts are not known.
    """
    if isinstance(returned, Tensor):
        return returned, None
    names = RETURNS.get(type(layer).__name__)
    if names is None or not isinstance(returned, tuple):
        raise UserError(
            f"{type(layer).__name__} returns a {_kind(returned)} whose parts are not known: attach to layers that return the hidden state alone"
        )
    parts = dict(zip(names, returned, strict=False))
    return parts.pop(HIDDEN), {name: value for name, value in parts.items() if name is not None}


class RowsOfCache:
    """A key-value cache as a layer sees it that runs on some rows alone: it writes and reads just these.

    The other rows get zeros, which are never read: a row keeps its route for as long as the cache lives.
    """

    def __init__(self, cache: Any, rows: Tensor, row_count: int) -> None:
        self._cache, self._rows, self._row_count = cache, rows, row_count

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the states (R, …) of the rows and returns all of theirs, as `Cache.update` does for all rows."""
        padded = (states.new_zeros(self._row_count, *states.shape[1:]).index_copy(0, self._rows, states) for states in (key_states, value_states))
        keys, values = self._cache.update(*padded, layer_idx, *args, **kwargs)
        return keys.index_select(0, self._rows), values.index_select(0, self._rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


def is_cache(value: object) -> bool:
    """Whether a value is a key-value cache of transformers."""
    return any(kind.__name__ == "Cache" for kind in type(value).__mro__)


def parameter_names(forward: Callable[..., Any]) -> list[str]:
    """What a layer calls its arguments, the hidden state first."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in inspect.signature(forward).parameters.items() if parameter.kind in kinds]


def rows_of(value: Any, rows: Tensor, B: int, name: str) -> Any:
    """An argument, or part of one, of a call with B rows, for the named rows alone; what has no rows stays as it is."""
    if isinstance(value, Tensor):
        return value.index_select(0, rows) if _has_rows(value, B, name) else value
    if type(value) in (tuple, list):
        return type(value)(rows_of(item, rows, B, name) for item in value)
    if type(value) is dict:
        return {key: rows_of(item, rows, B, key) for key, item in value.items()}
    return RowsOfCache(value, rows, B) if is_cache(value) else value


def put_rows(old: Any, new: Any, rows: Tensor, B: int, name: str) -> Any:
    """An argument, or part of one, of a call with B rows, with the named rows overwritten by those of `new`."""
    if isinstance(old, Tensor):
        return old.index_copy(0, rows, new) if _has_rows(old, B, name) else old
    if type(old) in (tuple, list):
        return type(old)(put_rows(*pair, rows, B, name) for pair in zip(old, new, strict=True))
    return old


def _has_rows(value: Tensor, B: int, name: str) -> bool:
    return value.dim() >= 2 and value.shape[0] == B and not (value.dim() == 2 and name in NO_ROWS_IN_TWO_DIMENSIONS)


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
