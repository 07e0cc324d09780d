"""Which dimension of an argument holds the rows of a batch: known by name, or found by calling with another number of rows."""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from rl_skip.core.errors import UserError

__all__ = ["Places", "RowPlaces", "few_rows", "having_rows", "is_cache", "leaves", "places_by_shape", "put_rows", "rows_of"]

Key = tuple[str, int]
"""An argument, or a part of one such as "position_embeddings.0", and how many dimensions it has."""
Places = Mapping[Key, int | None]
"""The dimension in which the rows are, each a block of equal length; None where an argument is the same for all rows."""
ROWS_FIRST: dict[str, tuple[int, ...]] = {
    "attention_mask": (2, 3, 4),
    "encoder_attention_mask": (2, 3, 4),
    "encoder_hidden_states": (3,),
    "position_ids": (2,),
}
"""Arguments in which every layer of transformers has the rows first, where they are as many as the batch's, by their numbers of dimensions."""


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


class RowPlaces:
    """Where the rows are in the arguments of a module, found once for each of them.

    A size tells nothing: a bias (T, T) or rotary angles (T, D) may be as long as the batch. So the module is called on a few rows, with
    each argument as a whole or in rows: most ways do not fit together, and what does must answer as the whole batch is answered.

    Args:
        named: whether arguments are called as layers of transformers call them.
    """

    def __init__(self, named: bool = False) -> None:
        self.named = named
        self.found: dict[Key, int | None] = {}
        self.complete = False
        """Whether all that have rows were found, so that the module is not called to find more."""

    def settle(self, arguments: Mapping[str, Any], row_count: int, call: Callable[[Tensor | None, Places], Tensor], module: str) -> Places:
        """The places in all `arguments` of a call with `row_count` rows.

        Args:
            arguments: by name.
            row_count: B.
            call: calls the module on the named rows alone (None: on all), taken where the places say, and returns its output, rows first.
            module: what messages call it.

        Raises:
            UserError: if no way of taking rows answers as the whole batch is answered.
        """
        groups = self._unknown(arguments, row_count)
        if not groups or self.complete:
            return self.found
        rows = few_rows(row_count, {size for name, value in arguments.items() for _, tensor in leaves(name, value) for size in tensor.shape})
        whole: Tensor | None = None
        fitting: list[dict[Key, int | None]] = []
        for choice in itertools.product(*(options for _, options in groups)):
            places = {key: place for (keys, _), place in zip(groups, choice, strict=True) for key in keys}
            try:
                answered = call(rows, {**self.found, **places})
                if answered.shape[0] != rows.shape[0]:
                    continue
            except UserError:
                raise
            except Exception:  # the module's own, for tensors that do not fit together
                continue
            whole = call(None, {}) if whole is None else whole
            if _alike(answered, whole.index_select(0, rows.to(whole.device))):
                self.found.update(places)
                return self.found
            fitting.append(places)
        if len(fitting) == 1:  # rows of this module are not quite independent, such as those of experts with a capacity
            self.found.update(fitting[0])
            return self.found
        names = ", ".join(dict.fromkeys(key[0].partition(".")[0] for keys, _ in groups for key in keys))
        raise UserError(
            f"which dimension of {names} holds the rows of the batch cannot be told: {module} does not run on some of its {row_count} rows; "
            "call it with one row at a time, or with all layers (handle.disabled())"
        )

    def _unknown(self, arguments: Mapping[str, Any], B: int) -> list[tuple[list[Key], tuple[int | None, ...]]]:
        """The parts of arguments whose place is still to be found, those of one argument and shape together, and which places may be theirs."""
        groups: dict[tuple[str, torch.Size], list[Key]] = {}
        for name, value in arguments.items():
            for path, tensor in leaves(name, value):
                key = (path, tensor.dim())
                if key in self.found or len(_options(tensor, B)) == 1:
                    continue
                if self.named and tensor.dim() in ROWS_FIRST.get(name, ()) and tensor.shape[0] == B:
                    self.found[key] = 0
                else:
                    groups.setdefault((name, tensor.shape), []).append(key)
        return [(keys, _options(torch.empty(shape, device="meta"), B)) for (_, shape), keys in groups.items()]


def leaves(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an argument, by their paths in it."""
    if isinstance(value, Tensor):
        yield name, value
    elif type(value) in (tuple, list):
        for n, item in enumerate(value):
            yield from leaves(f"{name}.{n}", item)
    elif type(value) is dict:
        for key, item in value.items():
            yield from leaves(f"{name}.{key}", item)


def few_rows(row_count: int, others: Collection[int] = (), device: torch.device | None = None) -> Tensor:
    """Some rows of a batch, last first: as few as are neither one, nor as many as there are, nor as long as one of the `others`."""
    count = next(count for count in itertools.count(2) if count != row_count and count not in others)
    return torch.arange(row_count - 1, row_count - 1 - count, -1, device=device) % row_count


def having_rows(inputs: Mapping[str, Any], row_count: int) -> frozenset[str]:
    """Which arguments have rows, as their sizes say: of positions (1, T) and (B, T) a module makes values with rows in other places."""
    return frozenset(name for name, value in inputs.items() if isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == row_count)


def places_by_shape(whole: Mapping[str, Any], few: Mapping[str, Any], row_count: int, few_count: int) -> dict[Key, int | None]:
    """Where the rows are in values of `row_count` rows, by the same values of `few_count` rows: in the dimension whose size differs so."""
    places: dict[Key, int | None] = {}
    shapes = {path: tensor.shape for name, value in few.items() for path, tensor in leaves(name, value)}
    for name, value in whole.items():
        for path, tensor in leaves(name, value):
            sizes = enumerate(zip(tensor.shape, shapes.get(path, ()), strict=False))
            scaled = [dim for dim, (size, other) in sizes if size != other and size * few_count == other * row_count]
            places[path, tensor.dim()] = scaled[0] if scaled else None
    return places


def rows_of(value: Any, rows: Tensor, B: int, name: str, places: Places) -> Any:
    """An argument, or part of one, of a call with B rows, for the named rows alone; what has no rows stays as it is."""
    if isinstance(value, Tensor):
        return _taken(value, rows, B, _place(value, B, name, places))
    if type(value) in (tuple, list):
        return type(value)(rows_of(item, rows, B, f"{name}.{n}", places) for n, item in enumerate(value))
    if type(value) is dict:
        return {key: rows_of(item, rows, B, f"{name}.{key}", places) for key, item in value.items()}
    return RowsOfCache(value, rows, B) if is_cache(value) else value


def put_rows(old: Any, new: Any, rows: Tensor, B: int, name: str, places: Places) -> Any:
    """An argument, or part of one, of a call with B rows, with the named rows overwritten by those of `new`."""
    if B == 1:
        return new if isinstance(old, Tensor | tuple | list) else old
    if isinstance(old, Tensor):
        dim = _place(old, B, name, places)
        if dim is None:
            return old
        blocks = (tensor.unflatten(dim, (count, tensor.shape[dim] // count)) for tensor, count in ((old, B), (new, rows.shape[0])))
        return next(blocks).index_copy(dim, rows.to(old.device), next(blocks)).flatten(dim, dim + 1)
    if type(old) in (tuple, list):
        return type(old)(put_rows(*pair, rows, B, f"{name}.{n}", places) for n, pair in enumerate(zip(old, new, strict=True)))
    return old


def _taken(tensor: Tensor, rows: Tensor, B: int, dim: int | None) -> Tensor:
    """The named rows of a tensor in whose dimension `dim` the B rows are, in blocks; None: it has none, and stays as it is."""
    if dim is None:
        return tensor
    rows = rows.to(tensor.device)
    if tensor.shape[dim] == B:
        return tensor.index_select(dim, rows)
    return tensor.unflatten(dim, (B, tensor.shape[dim] // B)).index_select(dim, rows).flatten(dim, dim + 1)


def _place(tensor: Tensor, B: int, name: str, places: Places) -> int | None:
    dim = places.get((name, tensor.dim()))
    return dim if dim in _options(tensor, B) else None  # of a call with (1, T, D) where others have (B, T, D)


def _options(tensor: Tensor, B: int) -> tuple[int | None, ...]:
    """The dimensions in which the rows may be, none first: a table that was cut could be read past its end, and fail where it is read."""
    if B == 1:
        return (None,)
    first = tensor.dim() >= 1 and tensor.shape[0] > 0 and tensor.shape[0] % B == 0
    second = tensor.dim() >= 2 and tensor.shape[1] == B
    return (None, *([0] if first else []), *([1] if second else []))


def _alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    tolerance = torch.finfo(one.dtype).eps ** 0.5 if one.is_floating_point() else 0.0
    return bool(torch.allclose(one, other, atol=tolerance * (1.0 + other.abs().amax().item()), rtol=tolerance))
