"""Which files of a folder are the tables of a task, one for each split, and which would be passed over."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from rl_skip.core.errors import UserError
from rl_skip.core.task import Split
from rl_skip.tasks.options import TaskOptions
from rl_skip.tasks.reading import SPLIT_NAMES

__all__ = ["SPLITS", "TableFiles", "find_table_files", "is_table"]

SUFFIXES = (".tsv", ".csv", ".tsv.gz", ".csv.gz")
SPLITS = tuple(SPLIT_NAMES)
ROWS_MAY_BE_IN = (*SUFFIXES, ".txt", ".json", ".jsonl", ".parquet", ".arrow", ".xls", ".xlsx", ".ods", ".zip", ".gz", ".bz2", ".xz")
"""Suffixes of files that a person may take for data: if they are passed over, the report says so."""
MOST_NAMED = 5


class TableFiles(NamedTuple):
    """The files that are read."""

    files: dict[Split, Path]
    """Of training at the least."""
    remarks: tuple[str, ...]
    """What lies beside them and is not read."""


def is_table(name: str) -> bool:
    """Whether a file of that name is read: .tsv or .csv, plain or .gz, in any case."""
    return name.lower().endswith(SUFFIXES)


def find_table_files(path: Path, options: TaskOptions) -> TableFiles:
    """The file of each split that has one.

    Args:
        path: a file, or a folder with files that are named after their splits, such as train.tsv and dev.csv.
        options: names the files that have names of their own.

    Raises:
        UserError: if there is no file to train on, a file that is named is not there, two files could be a split's, or a file
            bears a split's name and cannot be read, so that it would be ignored.
    """
    given: dict[Split, str | None] = {"train": options.train_file, "validation": options.validation_file, "test": options.test_file}
    folder = path if path.is_dir() else path.parent
    files: dict[Split, Path] = {}
    for split, name in given.items():
        if name is not None:
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise UserError(f"the file {name} leads out of {folder}; set --{split}-file to one in it, and --data to the folder of all")
            files[split] = folder / name
            if not files[split].is_file():
                raise UserError(f"there is no file {files[split]}; set --{split}-file to one in {folder}")
        elif path.is_dir() and (found := _file_of(split, folder)) is not None:
            files[split] = found
    if not path.is_dir():
        files.setdefault("train", path)
    if "train" not in files:
        there = _some_of(entry.name for entry in _entries(folder)) or "nothing"
        raise UserError(f"{path} has no file train.tsv or train.csv, plain or .gz, it holds {there}; name it with --train-file")
    beside = [entry.name for entry in _entries(folder) if entry not in files.values() and entry.name.lower().endswith(ROWS_MAY_BE_IN)]
    if not path.is_dir():
        beside = [name for name in beside if _stem(name) in sum(SPLIT_NAMES.values(), ())]
    return TableFiles(files, (f"not read: {_some_of(beside)} in {folder}",) if beside else ())


def _file_of(split: Split, folder: Path) -> Path | None:
    """The one table that is named after the split, if there is one."""
    named = [entry for entry in _entries(folder) if _stem(entry.name) in SPLIT_NAMES[split]]
    tables = [entry for entry in named if entry.is_file() and entry.name.lower().removeprefix(_stem(entry.name)) in SUFFIXES]
    advice = f"remove it, or name the file to read with --{split}-file"
    bears = f"bears the name of the {split} data but is no .tsv or .csv file, so it would be ignored"
    if ignored := [entry for entry in named if entry not in tables]:
        raise UserError(f"{ignored[0]} {bears}; call it .tsv or .csv if it is one, {advice}")
    if len(tables) > 1:
        raise UserError(f"{folder} holds {tables[0].name} and {tables[1].name}, of which one would be ignored for {split}; {advice}")
    return tables[0] if tables else None


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden, by name."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _stem(name: str) -> str:
    return name.lower().partition(".")[0]


def _some_of(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - MOST_NAMED} more" if len(listed) > MOST_NAMED else ""
    return ", ".join(listed[:MOST_NAMED]) + more
