"""Key-value caches: a row keeps the route that its prompt was read on for as long as its cache lives, so no layer's cache has holes."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from torch import Tensor

from rl_skip.attached.calls import LayerCall
from rl_skip.attached.rows import is_cache
from rl_skip.core.errors import UserError

__all__ = ["check_forced", "check_off", "fill_caches", "keep_route", "kept_route", "routable"]

LEFT_EMPTY = ("DynamicCache", "EncoderDecoderCache")
"""Caches that a model makes by itself for every call, wanted or not, and that it does without where they stay empty."""
MARK = "left_empty_by_rl_skip"
"""An attribute of a cache that stayed empty: it goes with the cache into copies and pickles."""


class RoutedRows:
    """Goes before a cache's own class: its rows keep their routes when beam search or a caller reorders them."""

    route: Tensor
    """(B, L) bool."""
    get_seq_length: Callable[[], int]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._whole.reorder_cache(beam_idx)
        self.route = self.route[beam_idx.to(self.route.device)]

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._whole.batch_repeat_interleave(repeats)
        self.route = self.route.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._whole.batch_select_indices(indices)
        self.route = self.route[indices.to(self.route.device)]

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty_cache, (type(self).__mro__[2],), vars(self)

    @property
    def _whole(self) -> Any:
        """The cache as its own class has it, which is not known here."""
        return super()


@cache
def _routed_class(kind: Any) -> Any:
    """The class of a cache of that class whose rows keep their routes; always the same one, for which `torch.compile` compiled once."""
    return type("RoutedCache", (RoutedRows, kind), {})


def _empty_cache(kind: Any) -> Any:
    """What a pickle makes a cache of before it fills it: a pickle finds no class that was made on the way."""
    routed = _routed_class(kind)
    return routed.__new__(routed)


def routable(call: LayerCall, begins: bool) -> LayerCall:
    """The call without caches of which some layers cannot leave rows out. They stay empty, and a call that would go on from them is refused.

    Args:
        call: the call of a layer.
        begins: whether it is the first layer of a call of the model.

    Raises:
        UserError: for such a cache that holds something, was to hold something, or has the size of what it will hold.
    """
    for held in _caches(call):
        why = _unroutable(held)
        if why is None:
            continue
        if type(held).__name__ not in LEFT_EMPTY or begins and (hasattr(held, MARK) or _is_filled(held)):
            raise UserError(why)
        setattr(held, MARK, True)
    return call.without_caches(_unroutable)


def _unroutable(held: Any) -> str | None:
    """Why some layers cannot leave rows out of a cache; None where they can."""
    if not isinstance(held, RoutedRows) and type(held).__name__ != "DynamicCache":
        advice = "use_cache=False" if type(held).__name__ == "EncoderDecoderCache" else 'a DynamicCache, cache_implementation="dynamic"'
        return f"a {type(held).__name__} has no rows that some layers may leave out: use {advice}"
    for layer in held.layers:
        if not hasattr(layer, "update"):  # the state of another kind of attention is one for all tokens
            return f"a cache with a {type(layer).__name__} has no rows that some layers may leave out: use use_cache=False"
    return None


def _is_filled(held: Any) -> bool:
    parts = [held.self_attention_cache, held.cross_attention_cache] if hasattr(held, "self_attention_cache") else [held]
    return any(getattr(layer, "is_initialized", False) for part in parts for layer in part.layers)


def kept_route(call: LayerCall, cause: str) -> Tensor | None:
    """(B, L) bool, the route on which the caches of a call were filled so far; None where they are empty, or there are none.

    Args:
        call: the call of a layer.
        cause: how a cache was filled that has no route.

    Raises:
        UserError: for a cache that was filled while no policy was attached.
    """
    for held in _caches(call):
        if held.get_seq_length() == 0:
            continue
        if not isinstance(held, RoutedRows):
            raise UserError(cause)
        return held.route
    return None


def check_forced(forced: Tensor, kept: Tensor | None) -> None:
    """Refuses a forced route that the rows of a filled cache are not on.

    Raises:
        UserError: if a row was begun on a route, of `kept` (B, L), that is not among those `forced`, (L,) or (B, L).
    """
    if kept is None:
        return
    among = (kept.unsqueeze(1) == forced.to(kept.device).view(1, -1, kept.shape[1])).all(dim=2).any(dim=1)  # (B,)
    if not among.all():
        raise UserError("the cache was filled on another route than the one that is forced: begin with an empty cache")


def check_off(arguments: Iterable[Any]) -> None:
    """Refuses a call of a layer without the policy whose cache was filled with it.

    Raises:
        UserError: if some row of a cache has no states of some layer.
    """
    for value in arguments:
        if hasattr(value, MARK):
            raise UserError(f"a {type(value).__name__} stayed empty while a policy was attached, and nothing can go on from it: begin with another")
        if isinstance(value, RoutedRows) and value.get_seq_length() > 0 and not value.route.all():
            raise UserError("the cache was filled while rows skipped layers, which the model alone cannot go on from: begin with an empty cache")


def keep_route(call: LayerCall, route: Tensor) -> None:
    """Ties the caches of a call to the route (B, L) of their rows."""
    for held in _caches(call):
        if not isinstance(held, RoutedRows):
            kind: Any = type(held)
            held.__class__ = _routed_class(kind)
        held.route = route


def fill_caches(i: int, hidden: Tensor, call: LayerCall) -> None:
    """Makes the cache of a layer that no row runs as long as the others': masks and positions may be read from its length."""
    for held in _caches(call):
        empty = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
        held.update(empty, empty, i)


def _caches(call: LayerCall) -> Iterator[Any]:
    return (value for value in call.arguments.values() if is_cache(value))
