"""Tables of texts with labels: TSV and CSV files, plain or gzip, one for each split or one for all."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from rl_skip.core.bounded import read_bytes, unpacked
from rl_skip.core.errors import UserError
from rl_skip.core.task import Split, stratified_split
from rl_skip.tasks.decoding import decoded
from rl_skip.tasks.labels import LabelColumn, clean_labels
from rl_skip.tasks.options import TaskOptions
from rl_skip.tasks.reading import HELD_OUT, class_indices, class_names, reading, split_rows
from rl_skip.tasks.separators import Cells, parsed
from rl_skip.tasks.table_files import SPLITS, find_table_files, is_table

__all__ = ["LabelledTexts", "Tables", "read_tables"]

EXPECTED = "a .tsv or .csv file, plain or .gz, or a folder of them"
TEXT_COLUMNS, LABEL_COLUMNS = ("sentence", "text"), ("label", "category")
LOST = "\ufffd"
"""What programs write for a letter that they could not read."""
LONGEST_NAME = 40


@dataclass(frozen=True)
class LabelledTexts:
    """The texts of one split, or its pairs of texts, and the class of each by its number."""

    texts: list[str]
    labels: torch.Tensor
    """(N,) long."""
    second_texts: list[str] | None = None
    """The other text of each pair; None where rows have one text."""

    def take(self, rows: torch.Tensor) -> "LabelledTexts":
        """The named rows."""
        texts, second = (None if column is None else [column[row] for row in rows.tolist()] for column in (self.texts, self.second_texts))
        assert texts is not None
        return LabelledTexts(texts, self.labels[rows], second)

    def rows(self) -> Iterator[tuple[tuple[str, str | None], int]]:
        """Text, second text, and the class of each row."""
        second: Sequence[str | None] = self.second_texts or [None] * len(self.texts)
        return zip(zip(self.texts, second, strict=True), self.labels.tolist(), strict=True)


class Tables(NamedTuple):
    """What `read_tables` reads."""

    classes: tuple[str, ...]
    splits: dict[Split, LabelledTexts]
    remarks: tuple[str, ...]
    """What was passed over, changed, or looks odd, a sentence each."""


def read_tables(path: Path, options: TaskOptions) -> Tables:
    """The classes, and the three splits.

    A folder has a file for training, and for validation and test where it has them: what has no file is a sixth of each
    class of the training rows. A single file, or a folder with a training file alone, is split 60 : 20 : 20.

    Args:
        path: a file or a folder.
        options: which columns, and which files where they have names of their own.

    Raises:
        UserError: if a file or a column is missing or there twice, a row is cut short or has no label, or a split lacks rows
            or has classes of its own.
    """
    files, beside = find_table_files(path, options)
    read = {split: _read(file, options) for split, file in files.items()}
    columns = {split: LabelColumn(files[split], table.rows, table.labels) for split, table in read.items()}
    labels, of_labels = clean_labels(columns)
    classes = class_names(labels["train"], files["train"])
    splits = {
        split: LabelledTexts(table.texts, class_indices(labels[split], classes, files[split]), table.second_texts) for split, table in read.items()
    }
    remarks = [*beside, *(remark for table in read.values() for remark in table.remarks), *of_labels]
    if len(splits) == 1:
        rows = split_rows(splits["train"].labels, files["train"])
        remarks.append(f"{files['train'].name} alone is there: of each class 60% are train, 20% validation, 20% test")
        parts = {split: splits["train"].take(chosen) for split, chosen in rows.items()}
        return Tables(classes, parts, (*remarks, *_repeated(parts)))
    for split in SPLITS:
        if split not in splits:
            kept = stratified_split(splits["train"].labels, (1 - HELD_OUT, 0.0, HELD_OUT))
            if not len(kept["test"]):
                raise UserError(f"{files['train']} has too few rows to hold some out for {split}; name a file with --{split}-file")
            splits[split], splits["train"] = splits["train"].take(kept["test"]), splits["train"].take(kept["train"])
            remarks.append(f"{split} has no file: a sixth of each class of {files['train'].name} is held out for it")
    return Tables(classes, splits, (*remarks, *_repeated(splits)))


def _repeated(splits: Mapping[Split, LabelledTexts]) -> Iterator[str]:
    """Says which rows occur more than once, so that a network could know them by heart, and which contradict each other."""
    train: dict[tuple[str, str | None], Counter[int]] = {}
    for text, label in splits["train"].rows():
        train.setdefault(text, Counter())[label] += 1
    again = sum(found.total() - 1 for found in train.values())
    if again:
        contradicting = sum(found.total() for found in train.values() if len(found) > 1)
        total = len(splits["train"].texts)
        yield f"{again} of {total} train rows repeat the text of an earlier one; {contradicting} share a text with a row of another class"
    for split in ("validation", "test"):
        known = [(train[text], label) for text, label in splits[split].rows() if text in train]
        if known:
            other = sum(label not in found for found, label in known)
            total = len(splits[split].texts)
            yield f"{len(known)} of {total} {split} rows have a text that the training data have too, {other} of them with another class"


class _Table(NamedTuple):
    """What is read of a file, as it stands there."""

    texts: list[str]
    labels: list[str]
    second_texts: list[str] | None
    rows: list[int]
    """The row of each in the file, from 2."""
    remarks: list[str]


def _read(file: Path, options: TaskOptions) -> _Table:
    names = _NamedColumns(options)
    cells, remarks = _cells(file, names)
    if not cells:
        raise UserError(f"{file} is empty; set --data to {EXPECTED} with a line of column names first")
    (first, header), *filled = cells
    named = names.find(header, file)
    for row, values in filled:
        if len(values) != len(header):
            raise UserError(f"{file} has {len(values)} columns in row {row}, its first row names {len(header)}; set --data to a whole table")
    if not filled:
        raise UserError(f"{file} holds no rows below its column names; set --data to {EXPECTED}")
    places = [header.index(name) for name in named.values()]
    texts, labels, *second = ([values[place] for _, values in filled] for place in places)
    for place, name in zip(places, named.values(), strict=True):
        if name != named["--label-column"]:
            remarks += _odd_texts([(row, values[place]) for row, values in filled], f"{file.name}, column {name}")
    return _Table(texts, labels, second[0] if second else None, [row for row, _ in filled], remarks)


def _cells(file: Path, names: "_NamedColumns") -> tuple[Cells, list[str]]:
    """The rows that hold anything, with their numbers from 1; and what was passed over."""
    if not is_table(file.name):
        raise UserError(f"{file} is not what the task 'text' reads; set --data to {EXPECTED}")
    with reading(file, EXPECTED):
        content = read_bytes(file, f"set --data to {EXPECTED}")
        text = decoded(unpacked(content) if file.suffix.lower() == ".gz" else content, file, EXPECTED)
        cells, remarks = parsed(text, file, names.are_in)
    filled = [(row, values) for row, values in cells if any(value.strip() for value in values)]
    if filled:
        filled[0] = filled[0][0], [name.strip() for name in filled[0][1]]
    if len(filled) < len(cells):
        first = next(row for row, values in cells if not any(value.strip() for value in values))
        remarks.append(f"{file.name}: {len(cells) - len(filled)} of {len(cells)} rows, the first of them row {first}, are empty and passed over")
    return filled, remarks


def _odd_texts(texts: list[tuple[int, str]], where: str) -> Iterator[str]:
    for what, rows in (
        ("are empty", [row for row, text in texts if not text.strip()]),
        (f"hold the sign {LOST}, for letters that were lost before", [row for row, text in texts if LOST in text]),
    ):
        if rows:
            yield f"{where}: {len(rows)} of {len(texts)} texts, the first in row {rows[0]}, {what}"


class _NamedColumns:
    """The columns that the options name, or else the first of the usual ones that is there."""

    def __init__(self, options: TaskOptions) -> None:
        self.options = options

    def find(self, header: list[str], file: Path) -> dict[str, str]:
        """The name of the column for each flag; the text first.

        Raises:
            UserError: if one is missing, two flags name the same, or two columns of the table are called the same.
        """
        twice = next((name for name, count in Counter(filter(None, header)).items() if count > 1), None)
        if twice is not None:
            places = " and ".join(str(place) for place, name in enumerate(header, start=1) if name == twice)
            raise UserError(f"{file} has the column {twice!r} more than once, at places {places}; give each a name of its own")
        named = self._named(header)
        pair = named.get("--pair-column")
        for flag, name in named.items():
            if name == pair and flag != "--pair-column":
                raise UserError(f"{flag} and --pair-column both name {name!r}; set --pair-column to the column of the second texts")
        for flag, name in named.items():
            if name not in header:
                there = ", ".join(column if len(column) <= LONGEST_NAME else f"{column[:LONGEST_NAME]}…" for column in header)
                raise UserError(f"{file} has no column {name!r}, its columns are {there}; set {flag}, or name the columns in its first row")
        return named

    def are_in(self, header: list[str]) -> bool:
        """Whether all of them are."""
        return all(name in header for name in self._named(header).values())

    def _named(self, header: list[str]) -> dict[str, str]:
        options = self.options
        text, label = _usual(options.text_column, TEXT_COLUMNS, header), _usual(options.label_column, LABEL_COLUMNS, header)
        named = {"--text-column": text, "--label-column": label}
        return named if options.pair_column is None else {**named, "--pair-column": options.pair_column}


def _usual(given: str | None, usual: tuple[str, ...], header: list[str]) -> str:
    """The column that is given, or else the first of the usual ones that is there; the usual one where none is."""
    return next((name for name in usual if name in header), usual[0]) if given is None else given
