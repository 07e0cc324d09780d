"""Tables of texts with labels: TSV and CSV files, plain or gzip, one for each split or one for all."""

import csv
import gzip
import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from rl_skip.core.errors import UserError
from rl_skip.core.task import Split, stratified_split
from rl_skip.tasks.options import TaskOptions
from rl_skip.tasks.reading import class_indices, class_names, reading, split_rows

__all__ = ["LabelledTexts", "read_tables"]

EXPECTED = "a .tsv or .csv file, plain or .gz, or a folder of them"
SUFFIXES = (".tsv", ".csv", ".tsv.gz", ".csv.gz")
NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
TEXT_COLUMNS, LABEL_COLUMNS = ("sentence", "text"), ("label", "category")
HELD_OUT = 1 / 6
"""The share of the training rows of each class that becomes a split which has no file."""


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


def read_tables(path: Path, options: TaskOptions) -> tuple[tuple[str, ...], dict[Split, LabelledTexts]]:
    """The classes, and the three splits.

    A folder has a file for training, and for validation and test where it has them: what has no file is a sixth of each
    class of the training rows. A single file, or a folder with a training file alone, is split 60 : 20 : 20.

    Args:
        path: a file or a folder.
        options: which columns, and which files where they have names of their own.

    Raises:
        UserError: if a file or a column is missing, a row is cut short, or a split lacks rows or has classes of its own.
    """
    files = _files(path, options)
    read = {split: _read(file, options) for split, file in files.items()}
    classes = class_names(read["train"].labels, files["train"])
    splits = {
        split: LabelledTexts(columns.texts, class_indices(columns.labels, classes, files[split]), columns.second_texts)
        for split, columns in read.items()
    }
    if len(splits) == 1:
        rows = split_rows(splits["train"].labels, files["train"])
        return classes, {split: splits["train"].take(chosen) for split, chosen in rows.items()}
    for split in NAMES:
        if split not in splits:
            kept = stratified_split(splits["train"].labels, (1 - HELD_OUT, 0.0, HELD_OUT))
            if not len(kept["test"]):
                raise UserError(f"{files['train']} has too few rows to hold some out for {split}; name a file with --{split}-file")
            splits[split], splits["train"] = splits["train"].take(kept["test"]), splits["train"].take(kept["train"])
    return classes, splits


def _files(path: Path, options: TaskOptions) -> dict[Split, Path]:
    given: dict[Split, str | None] = {"train": options.train_file, "validation": options.validation_file, "test": options.test_file}
    folder = path if path.is_dir() else path.parent
    files: dict[Split, Path] = {}
    for split, names in NAMES.items():
        name = given[split]
        if name is not None:
            files[split] = folder / name
            if not files[split].is_file():
                raise UserError(f"there is no file {files[split]}; set --{split}-file to one in {folder}")
        elif path.is_dir():
            there = [folder / f"{stem}{suffix}" for stem in names for suffix in SUFFIXES if (folder / f"{stem}{suffix}").is_file()]
            files |= {split: there[0]} if there else {}
    if not path.is_dir() and "train" not in files:
        files["train"] = path
    if "train" not in files:
        raise UserError(f"{path} has no file train.tsv or train.csv, plain or .gz; name it with --train-file")
    return files


class _Columns(NamedTuple):
    """What is read of a file, as it stands there."""

    texts: list[str]
    labels: list[str]
    second_texts: list[str] | None


def _read(file: Path, options: TaskOptions) -> _Columns:
    rows = _rows(file)
    if not rows:
        raise UserError(f"{file} is empty; set --data to {EXPECTED} with a line of column names first")
    header = rows[0]
    text, label = _column(options.text_column, TEXT_COLUMNS, header), _column(options.label_column, LABEL_COLUMNS, header)
    named = {"--text-column": text, "--label-column": label}
    if options.pair_column is not None:
        for flag, name in named.items():
            if name == options.pair_column:
                raise UserError(f"{flag} and --pair-column both name {name!r}; set --pair-column to the column of the second texts")
        named["--pair-column"] = options.pair_column
    for flag, name in named.items():
        if name not in header:
            raise UserError(f"{file} has no column {name!r}, its columns are {', '.join(header)}; set {flag}")
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(header):
            raise UserError(f"{file} has {len(row)} columns in row {line}, its first row names {len(header)}; set --data to a whole table")
    if len(rows) == 1:
        raise UserError(f"{file} holds no rows below its column names; set --data to {EXPECTED}")
    texts, labels, *second = ([row[place] for row in rows[1:]] for place in map(header.index, named.values()))
    return _Columns(texts, labels, second[0] if second else None)


def _column(given: str | None, usual: tuple[str, ...], header: list[str]) -> str:
    """The column that is given, or else the first of the usual ones that is there; the usual one where none is."""
    return next((name for name in usual if name in header), usual[0]) if given is None else given


def _rows(file: Path) -> list[list[str]]:
    """All rows; quotes are literal in TSV, and enclose in CSV."""
    if not file.name.endswith(SUFFIXES):
        raise UserError(f"{file} is not what the task 'text' reads; set --data to {EXPECTED}")
    with reading(file, EXPECTED):
        content = file.read_bytes()
        text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8-sig")
        if ".tsv" in file.suffixes:
            return [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip("\r")]
        limit = csv.field_size_limit(max(len(text), 1))
        try:
            return [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        except csv.Error as error:
            raise ValueError(str(error)) from None
        finally:
            csv.field_size_limit(limit)
