"""Recordings with classes, in a folder or a tar: a folder per class, or all in one with names that begin with the class."""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rl_skip.core.errors import UserError
from rl_skip.core.task import Split
from rl_skip.tasks.folders import FileKind, Part, check_names, class_folders, passed_over, walk
from rl_skip.tasks.reading import reading
from rl_skip.tasks.waves import Recording, read_wave

__all__ = ["NAME", "Recordings", "read_recordings"]

EXPECTED = "a folder or tar of WAV files, in a folder per label or named {label}_{speaker}_{take}.wav"
KIND = FileKind("recordings", (".wav", ".wave"), EXPECTED)
NAME = re.compile(r"(?P<label>[^_]+)_(?P<speaker>.+)_(?P<take>\d+)")


@dataclass(frozen=True)
class Recordings:
    """Those of one split, or all."""

    files: list[str]
    """Their names, sorted."""
    labels: list[str]
    recordings: list[Recording]


def read_recordings(path: Path) -> tuple[dict[Split, Recordings], list[str]]:
    """The recordings of each split that has a folder of its own, else all as train; and what is to be said of them.

    Raises:
        UserError: if a file cannot be read, or its label is not plain.
    """
    with reading(path, EXPECTED):
        found = dict(_files(path))
    check_names(found, path)
    remarks = passed_over(found, KIND, path)
    parts: dict[Split, Recordings] = {}
    for split, part in _parts(found, path, remarks).items():
        files = sorted(part.labels)
        recordings = []
        for name in files:
            content = found.pop(name) or b""
            with reading(f"{name} in {path}", EXPECTED):
                recordings.append(read_wave(content))
        parts[split] = Recordings(files, [part.labels[name] or _label_of(name, path) for name in files], recordings)
    return parts, remarks


def _parts(found: dict[str, bytes | None], path: Path, remarks: list[str]) -> dict[Split, Part]:
    """Where all lie in one folder with names that carry labels, what else is there does not matter."""
    files = [PurePosixPath(name) for name in found if KIND.reads(name)]
    if len({file.parent for file in files}) == 1 and all(NAME.fullmatch(file.stem) for file in files):
        return {"train": Part(str(path), {str(file): None for file in files})}
    parts, said = class_folders(found, KIND, path)
    remarks += said
    return parts


def _files(path: Path) -> Iterator[tuple[str, bytes | None]]:
    """Every name, as `walk` gives them, with the content of recordings."""
    if path.is_dir():
        for name in walk(path):
            yield name, (path / name).read_bytes() if KIND.reads(name) else None
        return
    with tarfile.open(path) as tar:
        for member in tar:
            name = str(PurePosixPath(member.name)).lstrip("/")
            if member.isdir():
                yield from [] if name == "." else [(f"{name}/", None)]
            else:  # links lead to what they name
                content = tar.extractfile(member) if KIND.reads(name) else None
                yield name, None if content is None else content.read()


def _label_of(name: str, path: Path) -> str:
    match = NAME.fullmatch(PurePosixPath(name).stem)
    if match is None:
        raise UserError(f"{name} in {path} is not named {{label}}_{{speaker}}_{{take}}.wav; name it so, or set --data to a folder per label")
    return match["label"]
