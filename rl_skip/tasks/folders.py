"""Which file is of which class: a folder per class, perhaps below a folder per split, and what lies beside them."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rl_skip.core.errors import UserError
from rl_skip.core.task import Split
from rl_skip.tasks.reading import SPLIT_NAMES

__all__ = ["FileKind", "Notes", "Part", "check_names", "class_folders", "is_hidden", "passed_over", "walk"]

SPLIT_OF: dict[str, Split] = {name: split for split, names in SPLIT_NAMES.items() for name in names}
Parts = tuple[str, ...]
"""A name, cut at its slashes."""


@dataclass(frozen=True)
class FileKind:
    """Files of one kind, such as pictures."""

    noun: str
    """What they are called, in the plural."""
    suffixes: tuple[str, ...]
    """In small letters; files with them are read."""
    expected: str
    """What `--data` should be set to."""

    def reads(self, name: str) -> bool:
        """Whether a file of that name is read."""
        return not is_hidden(name) and name.lower().endswith(self.suffixes)


@dataclass(frozen=True)
class Part:
    """The files of one split, or of all."""

    name: str
    """Of its folder."""
    labels: dict[str, str | None]
    """Names of files → the folder of their class; None where no folder is of a class."""


class Notes:
    """What was done to single files when they were read: counted, and the first of them named."""

    def __init__(self) -> None:
        self.names: dict[str, dict[str, None]] = {}

    def add(self, what: str, name: str) -> None:
        """`what` continues a sentence that begins "3 of 10 pictures were"."""
        self.names.setdefault(what, {})[name] = None

    def sentences(self, total: int, noun: str) -> list[str]:
        """A sentence for each thing that was done."""
        return [
            f"{len(names)} of {total} {noun} {'was' if len(names) == 1 else 'were'} {what} (the first: {next(iter(names))})"
            for what, names in self.names.items()
        ]


def walk(folder: Path) -> Iterator[str]:
    """The names of all that lies below a folder, with slashes between and, after folders, behind. Links are followed.

    Raises:
        UserError: if a link leads to nothing, or to a folder that it lies in.
    """

    def below(place: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        found = os.stat(place)
        identity = found.st_dev, found.st_ino
        if identity in above:
            raise UserError(f"{place} is a link to a folder that it lies in; take it out, or set --data to another folder")
        with os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.is_dir():
                    yield f"{prefix}{entry.name}/"
                    if not is_hidden(entry.name):
                        yield from below(entry.path, f"{prefix}{entry.name}/", (*above, identity))
                elif entry.is_file() or is_hidden(entry.name):
                    yield prefix + entry.name
                else:
                    raise UserError(f"{entry.path} is a link to nothing, or no file; take it out, or set --data to another folder")

    yield from below(str(folder), "", ())


def check_names(names: Iterable[str], place: Path) -> None:
    """Raises a UserError for a name that is no UTF-8, such as an old archive leaves, since it cannot be written to a report."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"the name {ascii(name)} in {place} is not UTF-8; rename it, or set --data to another folder") from None


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder above it, was put there by a system for itself."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def passed_over(names: Iterable[str], kind: FileKind, place: Path) -> list[str]:
    """Says which files and hidden folders are not read, with their counts; their names as `walk` gives them."""
    left = [name for name in names if not kind.reads(name) and (is_hidden(name) or not name.endswith("/"))]
    hidden = [name for name in left if is_hidden(name)]
    others = [name for name in left if not is_hidden(name)]
    remarks = []
    if others:
        remarks.append(f"passed over in {place}: {_by_suffix(others)}, not read as {kind.noun} (the first: {others[0]})")
    if hidden:
        remarks.append(f"passed over in {place}: {len(hidden)} hidden (the first: {hidden[0]})")
    return remarks


def _by_suffix(names: Iterable[str]) -> str:
    counts = Counter(os.path.splitext(name)[1].lower() or "without a suffix" for name in names)
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def class_folders(names: Iterable[str], kind: FileKind, place: Path) -> tuple[dict[Split, Part], list[str]]:
    """The files of each split that has a folder of its own, else all as train, and what is to be said of them.

    A folder is a split's by its name (`train`, `val`, `dev`, `test`, in any case) where classes have folders inside it.
    Any other is a class's, with all that lies in it. One folder around everything is looked through.

    Args:
        names: as `walk` gives them.
        kind: which of them are read.
        place: where they are.

    Raises:
        UserError: if a class's folder gives nothing, or it is not plain which folders are the classes'.
    """
    visible = [tuple(name.split("/")) for name in names if not is_hidden(name)]  # a folder's name ends in an empty part
    folders = {name[:depth] for name in visible for depth in range(1, len(name))}
    files = sorted(name for name in visible if kind.reads("/".join(name)))
    if not files:
        raise UserError(f"{place} holds no {kind.noun}; set --data to {kind.expected}")
    direct = Counter(file[:-1] for file in files)
    root: Parts = ()
    while not direct[root] and len(inner := _children(root, folders)) == 1 and not direct[inner[0]] and inner[0][-1].lower() not in SPLIT_OF:
        root = inner[0]
    tops = _children(root, folders)
    named = [top for top in tops if top[-1].lower() in SPLIT_OF]
    if not named or (any(direct[top] for top in named) and len(named) < len(tops)):
        part, remarks = _part(root, files, visible, kind, place)
        _refuse_unnamed_splits(root, part, kind, place)
        return {"train": part}, remarks
    roots = {SPLIT_OF[top[-1].lower()]: top for top in named}
    if len(roots) < len(named) or "train" not in roots:
        listed = ", ".join(top[-1] for top in named)
        raise UserError(f"{place.joinpath(*root)} holds folders {listed}; set --data to a folder with one train, one validation and one test")
    remarks = []
    for top in tops:
        inside = [name for name in visible if name[: len(top)] == top and name[-1]]
        if top not in named:
            remarks.append(f"passed over in {place}: the folder {'/'.join(top)}, which is no split's, with {len(inside)} files")
    remarks += _loose(root, files, kind, place)
    parts: dict[Split, Part] = {}
    for split, top in roots.items():
        parts[split], said = _part(top, files, visible, kind, place)
        remarks += said
    return parts, remarks


def _children(folder: Parts, folders: set[Parts]) -> list[Parts]:
    return sorted(name for name in folders if len(name) == len(folder) + 1 and name[:-1] == folder)


def _part(root: Parts, files: list[Parts], visible: list[Parts], kind: FileKind, place: Path) -> tuple[Part, list[str]]:
    """The files below a folder by their classes; the loose ones among them are passed over where there are folders."""
    depth = len(root)
    inside = [file for file in files if file[:depth] == root]
    tops = sorted({name[: depth + 1] for name in visible if name[:depth] == root and len(name) > depth + 1})
    giving = {file[: depth + 1] for file in inside}
    empty = next((top for top in tops if top not in giving), None)
    if empty is not None:
        others = _by_suffix(name[-1] for name in visible if name[: depth + 1] == empty and name[-1])
        raise UserError(
            f"{place.joinpath(*empty)} gives no {kind.noun}, it holds {others or 'no files'}; take it out, or set --data to {kind.expected}"
        )
    where = str(place.joinpath(*root))
    if not inside:
        raise UserError(f"{where} holds no {kind.noun}; set --data to {kind.expected}")
    if not tops:
        return Part(where, {"/".join(file): None for file in inside}), []
    classed = [file for file in inside if len(file) > depth + 1]
    deeper = ["/".join(file) for file in classed if len(file) > depth + 2]
    if 2 * len(classed) < len(inside):
        loose = next("/".join(file) for file in inside if len(file) == depth + 1)
        raise UserError(f"{loose} in {place} is in no class's folder, others are; set --data to {kind.expected}")
    remarks = _loose(root, files, kind, place)
    if deeper:
        remarks.append(
            f"{len(deeper)} of {len(classed)} {kind.noun} in {where} lie deeper inside their class's folder, and are of that class "
            f"(the first: {deeper[0]})"
        )
    return Part(where, {"/".join(file): file[depth] for file in classed}), remarks


def _loose(root: Parts, files: list[Parts], kind: FileKind, place: Path) -> list[str]:
    loose = ["/".join(file) for file in files if file[:-1] == root]
    return [f"passed over in {place}: {len(loose)} {kind.noun} in no class's folder (the first: {loose[0]})"] if loose else []


def _refuse_unnamed_splits(root: Parts, part: Part, kind: FileKind, place: Path) -> None:
    """Refuses folders inside of which the same folders are found again: these may be the classes, and those splits."""
    inner: dict[str, set[str]] = {}
    for name in part.labels:
        below = name.split("/")[len(root) :]
        if len(below) <= 2:
            return
        inner.setdefault(below[1], set()).add(below[0])
    twice = next((name for name, outer in sorted(inner.items()) if len(outer) > 1), None)
    if twice is not None:
        first, second = sorted(inner[twice])[:2]
        raise UserError(
            f"{place} has a folder {twice} in {first} and in {second}; name the outer folders train, validation and test if the inner are the "
            f"classes, or set --data to {kind.expected}"
        )
