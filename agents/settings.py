"""Options read back from a run's config.json, each checked against its dataclass."""

from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from rl_skip.errors import UserError
from rl_skip.fields import Fields

__all__ = ["flat", "read_settings"]

T = TypeVar("T")
EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def read_settings(kind: type[T], values: Fields, given: Mapping[str, Any] | None = None) -> T:
    """An instance of the dataclass `kind`; the fields in `given` are taken from there.

    Raises:
        UserError: names the field that is missing, unknown, of the wrong type, or refused by the dataclass.
    """
    hints, given = get_type_hints(kind), given or {}
    if unknown := [name for name in values.values if name not in hints]:
        raise UserError(f"{values.source}: {values.prefix}{unknown[0]} is no option of this version; remove it")
    options = {field.name: given[field.name] if field.name in given else _read(values, field.name, hints[field.name]) for field in fields_of(kind)}  # type: ignore[arg-type]
    try:
        return kind(**options)
    except UserError as error:
        raise UserError(f"{values.source}: {error}") from None


def _read(values: Fields, name: str, kind: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return read_settings(kind, values.object(name))  # type: ignore[arg-type]
    if origin is UnionType:  # X | None
        return None if values.get(name) is None else _read(values, name, inner[0])
    if origin is Literal:
        return values.text(name, inner)
    if origin is tuple:
        return values.numbers(name, len(inner))
    value = values.get(name)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise values.wrong(name, EXPECTED[kind])
    return value


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one dictionary, its keys paths with slashes."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return found
