"""Key-value caches: a row keeps the route that its prompt was read on for as long as its cache lives, so no layer's cache has holes."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from rl_skip.attached.calls import LayerCall, is_cache
from rl_skip.errors import UserError

__all__ = ["fill_caches", "kept_route", "keep_route"]


def kept_route(call: LayerCall) -> Tensor | None:
    """(B, L) bool, the route on which the caches of a call were filled so far; None where they are empty, or there are none.

    Raises:
        UserError: for a cache that is not of rows that grow, or that was filled while no policy was attached.
    """
    for cache in _caches(call):
        kind = type(cache).__name__
        if kind not in ("DynamicCache", "RoutedCache"):
            raise UserError(f'a {kind} has no rows that some layers may leave out: use a DynamicCache, cache_implementation="dynamic"')
        if cache.get_seq_length() == 0:
            continue
        if kind == "DynamicCache":
            raise UserError("the cache was filled while no policy was attached, so its rows have no route: begin with an empty cache")
        return cache.route
    return None


def keep_route(call: LayerCall, route: Tensor) -> None:
    """Ties the caches of a call to the route (B, L) of their rows."""
    for cache in _caches(call):
        from rl_skip.attached.routed_cache import RoutedCache

        cache.__class__ = RoutedCache
        cache.route = route


def fill_caches(i: int, hidden: Tensor, call: LayerCall) -> None:
    """Makes the cache of a layer that no row runs as long as the others': masks and positions may be read from its length."""
    for cache in _caches(call):
        empty = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
        cache.update(empty, empty, i)


def _caches(call: LayerCall) -> Iterator[Any]:
    return (value for value in call.arguments.values() if is_cache(value))
