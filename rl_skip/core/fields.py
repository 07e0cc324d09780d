"""Reading JSON files that may be damaged or edited: what is missing or wrong is refused in one line that names the field and the file."""

import math
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from rl_skip.core.bounded import read_json
from rl_skip.core.errors import UserError

__all__ = ["Fields", "flat", "is_ours", "read_dataclass"]

T = TypeVar("T")
EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


class Fields:
    """The fields of one JSON object. Every getter raises `UserError` for a field that is missing or of the wrong type.

    Args:
        values: the object.
        source: the file that it is from, or another origin, for messages.
        prefix: where in the file it is, such as "network.".
    """

    def __init__(self, values: dict[str, Any], source: Path | str, prefix: str = "") -> None:
        self.values, self.source, self.prefix = values, source, prefix

    @classmethod
    def read(cls, file: Path, newest: int, oldest: int = 1, anew: str = "write it anew") -> "Fields":
        """The object in `file`, whose `format_version` may lie in `oldest`..`newest`; `anew` is the advice for an older one."""
        values = read_json(file, "write it anew, or name a folder that rl_skip wrote")
        if not isinstance(values, dict):
            raise UserError(f"{file} must hold one JSON object, got {reprlib.repr(values)}; write it anew")
        fields = cls(values, file)
        version = fields.integer("format_version")
        if version > newest:
            raise UserError(f"{file}: format_version is {version}, this rl_skip reads up to {newest}; upgrade rl_skip")
        if version < oldest:
            raise UserError(f"{file}: format_version is {version}, of an earlier rl_skip, and this one reads {oldest} and up; {anew}")
        return fields

    def wrong(self, name: str, expected: str) -> UserError:
        """The error that says what the field was expected to be."""
        return UserError(f"{self.source}: {self.prefix}{name} must be {expected}, got {reprlib.repr(self.values[name])}; write the file anew")

    def get(self, name: str) -> Any:
        """The field, of any type."""
        if name not in self.values:
            raise UserError(f"{self.source}: {self.prefix}{name} is missing; write the file anew")
        return self.values[name]

    def integer(self, name: str, low: int = 1, high: int | None = None) -> int:
        """A whole number in low..high."""
        value = self.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
            raise self.wrong(name, f"a whole number of at least {low}" if high is None else f"a whole number in {low}..{high}")
        return value

    def same(self, name: str, expected: int) -> None:
        """Refuses a whole number that is not the expected one."""
        if self.integer(name) != expected:
            raise self.wrong(name, f"{expected}, as the policy's own")

    def number(self, name: str, low: float = 0.0, high: float = math.inf) -> float:
        """A finite number in [low, high]."""
        value = self.get(name)
        if not _is_number(value) or not low <= value <= high:
            raise self.wrong(name, f"a finite number of at least {low:g}" if high == math.inf else f"a number in [{low:g}, {high:g}]")
        return float(value)

    def numbers(self, name: str, length: int, low: float = 0.0) -> tuple[float, ...]:
        """A list of `length` finite numbers of at least `low`."""
        value = self.get(name)
        if not isinstance(value, list | tuple) or len(value) != length:
            raise self.wrong(name, f"a list of {length} numbers")
        inner = Fields({f"[{n}]": number for n, number in enumerate(value)}, self.source, f"{self.prefix}{name}")
        return tuple(inner.number(key, low) for key in inner.values)

    def flag(self, name: str) -> bool:
        """true or false."""
        value = self.get(name)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str, among: Sequence[str] | None = None) -> str:
        """A string, one of `among` if given."""
        value = self.get(name)
        if not isinstance(value, str) or (among is not None and value not in among):
            raise self.wrong(name, "a string" if among is None else f"one of {', '.join(among)}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self.get(name)
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
            raise self.wrong(name, "a list of strings")
        return tuple(value)

    def text_or_none(self, name: str) -> str | None:
        """A string or null."""
        return None if self.get(name) is None else self.text(name)

    def object(self, name: str) -> "Fields":
        """An object inside this one."""
        value = self.get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return Fields(value, self.source, f"{self.prefix}{name}.")

    def objects(self, name: str) -> "list[Fields]":
        """A list of objects."""
        value = self.get(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong(name, "a list of objects")
        return [Fields(item, self.source, f"{self.prefix}{name}[{n}].") for n, item in enumerate(value)]


def is_ours(file: Path, *names: str) -> bool:
    """Whether a file is a JSON object of any `format_version` that has fields of these names, and so most likely was written by rl_skip."""
    try:
        values = read_json(file, "write it anew")
    except UserError:
        return False
    return isinstance(values, dict) and type(values.get("format_version")) is int and all(name in values for name in names)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the largest float
        return False


def read_dataclass(kind: type[T], fields: Fields, given: Mapping[str, Any] | None = None, *, may_lack: Collection[str] = ()) -> T:
    """An instance of the dataclass `kind`, each of its fields checked against its type.

    Args:
        fields: the object in JSON.
        given: fields that are taken from here instead.
        may_lack: fields that older files do not know, and that have a default.

    Raises:
        UserError: names the field that is missing, unknown, of the wrong type, or refused by the dataclass.
    """
    hints, given = get_type_hints(kind), given or {}
    names = [field.name for field in fields_of(kind)]  # type: ignore[arg-type]
    values = {
        name: given[name] if name in given else _read(fields, name, hints[name]) for name in names if name not in may_lack or name in fields.values
    }
    if unknown := [name for name in fields.values if name not in hints]:
        raise UserError(f"{fields.source}: {fields.prefix}{unknown[0]} is no option of this version; remove it")
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{fields.source}: {error}") from None


def _read(fields: Fields, name: str, kind: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return read_dataclass(kind, fields.object(name))  # type: ignore[arg-type]
    if origin is UnionType:  # X | None
        return None if fields.get(name) is None else _read(fields, name, inner[0])
    if origin is Literal:
        return fields.text(name, inner)
    if origin is tuple:
        return fields.texts(name) if inner[0] is str else fields.numbers(name, len(inner))
    value = fields.get(name)
    if kind is float and type(value) is int and _is_number(value):
        return float(value)
    if type(value) is not kind:
        raise fields.wrong(name, EXPECTED[kind])
    return value


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one dictionary, its keys paths with slashes."""
    flattened: dict[str, Any] = {}
    for name, value in values.items():
        flattened |= flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: value}
    return flattened
