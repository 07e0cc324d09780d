"""The labels of tables as people write them: which of them are one class, and which cannot be a class at all."""

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from rl_skip.core.errors import UserError
from rl_skip.core.task import Split

__all__ = ["LabelColumn", "clean_labels"]

WHOLE = re.compile(r"(-?[0-9]+)\.0*")
"""A whole number with a decimal point, as a spreadsheet or pandas writes it where a column once had a gap."""
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")
GAPS = {"nan", "null", "na", "n/a", "#n/a", "none"}
"""What programs write where nothing was, in lower case."""
MOST_NUMBERS = 20
"""More different numbers, some of them with decimals, are measurements and not classes."""


class LabelColumn(NamedTuple):
    """The labels of one file, as they stand there."""

    file: Path
    """Where they are from."""
    rows: list[int]
    """The row of each in the file, of which the first names the columns."""
    labels: list[str]


def clean_labels(columns: Mapping[Split, LabelColumn]) -> tuple[dict[Split, list[str]], list[str]]:
    """Labels without spaces around them, and whole numbers without a decimal point: `1`, ` 1 ` and `1.0` are one class.

    Returns:
        The labels of each split, and what was changed or looks odd, a sentence each.

    Raises:
        UserError: if a label is empty, one number is spelled in two ways, a split has a class that training lacks, or the labels
            are no classes: measurements, or almost one for each row.
    """
    cleaned, remarks = {}, []
    for split, column in columns.items():
        cleaned[split], said = _stripped(column)
        remarks += said
    first = {label: (row, columns[split].file) for split in columns for row, label in _backwards(columns[split].rows, cleaned[split])}
    numbers = {label: float(label) for label in first if NUMBER.fullmatch(label)}
    shorter: dict[str, str] = {}
    if all(number.is_integer() for number in numbers.values()):
        shorter = {label: match[1] for label in numbers if (match := WHOLE.fullmatch(label))}
    if shorter:
        label = next(iter(shorter))
        remarks.append(f"labels such as {label!r} ({_place(first[label])}) are read as {shorter[label]!r}")
        cleaned = {split: [shorter.get(label, label) for label in labels] for split, labels in cleaned.items()}
    kept = {shorter.get(label, label): place for label, place in first.items()}
    _refuse_two_spellings(kept)
    _refuse_measurements(cleaned["train"], columns["train"])
    _refuse_unknown(cleaned, columns)
    return cleaned, remarks + _oddities(kept)


def _stripped(column: LabelColumn) -> tuple[list[str], list[str]]:
    labels = [label.strip() for label in column.labels]
    empty = [row for row, label in zip(column.rows, labels, strict=True) if not label]
    if empty:
        more = f", as have {len(empty) - 1} more of {len(labels)} rows" if len(empty) > 1 else ""
        raise UserError(f"row {empty[0]} of {column.file} has an empty label{more}; label what lacks one, or remove it")
    changed = [row for row, label, old in zip(column.rows, labels, column.labels, strict=True) if label != old]
    if not changed:
        return labels, []
    return labels, [f"{column.file.name}: spaces around {len(changed)} of {len(labels)} labels, the first in row {changed[0]}, are left out"]


def _backwards(rows: list[int], labels: list[str]) -> list[tuple[int, str]]:
    """From the last row to the first, so that a dictionary keeps the first row of each label."""
    return list(zip(reversed(rows), reversed(labels), strict=True))


def _place(place: tuple[int, Path]) -> str:
    return f"row {place[0]} of {place[1].name}"


def _refuse_two_spellings(places: Mapping[str, tuple[int, Path]]) -> None:
    """Refuses classes that are text to a computer and one number to a person, such as 1 and 01, or 1.5 and 1.50."""
    spelled: dict[float, str] = {}
    for label in sorted(places):
        if NUMBER.fullmatch(label) and (other := spelled.setdefault(float(label), label)) != label:
            both = f"{other!r} ({_place(places[other])}) and {label!r} ({_place(places[label])})"
            raise UserError(f"the labels {both} are one number in two spellings; write it in one of them")


def _refuse_measurements(train: list[str], column: LabelColumn) -> None:
    distinct = set(train)
    advice = f"classes are expected, see {train[0]!r} in row {column.rows[0]}; set --label-column to a column that holds them"
    numbers = [float(label) for label in distinct if NUMBER.fullmatch(label)]
    if len(distinct) > MOST_NUMBERS and len(numbers) == len(distinct) and not all(number.is_integer() for number in numbers):
        raise UserError(f"the labels of {column.file} are {len(distinct)} different numbers with decimals, as for a regression; {advice}")
    if len(distinct) > max(MOST_NUMBERS, len(train) / 2):
        raise UserError(f"the {len(train)} rows of {column.file} have {len(distinct)} different labels; {advice}")


def _refuse_unknown(cleaned: Mapping[Split, list[str]], columns: Mapping[Split, LabelColumn]) -> None:
    known = set(cleaned["train"])
    for split, labels in cleaned.items():
        unknown = [(row, label) for row, label in zip(columns[split].rows, labels, strict=True) if label not in known]
        if unknown:
            row, label = unknown[0]
            rows = f"in row {row}" if len(unknown) == 1 else f"in row {row}, and {len(unknown)} such rows"
            told = f"the {split} data in {columns[split].file} hold the class {label!r}, which the training data lack, {rows}"
            raise UserError(f"{told}; set --data to training data that have it")


def _oddities(places: Mapping[str, tuple[int, Path]]) -> list[str]:
    """Classes that a person may not have meant."""
    said = [f"the label {label!r} ({_place(places[label])}) is taken for a class" for label in sorted(places) if label.casefold() in GAPS]
    alike: dict[str, str] = {}
    for label in sorted(places):
        other = alike.setdefault(" ".join(unicodedata.normalize("NFKC", label).casefold().split()), label)
        if other != label:
            both = f"{other!r} ({_place(places[other])}) and {label!r} ({_place(places[label])})"
            said.append(f"the labels {both} are two classes that look alike")
    return said
