"""Recordings with classes, in a folder or a tar: a folder per class, or all in one with names that begin with the class."""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rl_skip.core.bounded import Packed, checked_file, read_bytes
from rl_skip.core.errors import UserError
from rl_skip.core.task import Split
from rl_skip.tasks.folders import FileKind, Part, check_names, class_folders, passed_over, walk
from rl_skip.tasks.reading import reading
from rl_skip.tasks.waves import Recording, read_wave

__all__ = ["NAME", "Recordings", "read_recordings"]

EXPECTED = "a folder or tar of WAV files, in a folder per label or named {label}_{speaker}_{take}.wav"
ADVICE = f"set --data to {EXPECTED}"
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
            yield name, read_bytes(path / name, ADVICE) if KIND.reads(name) else None
        return
    size = checked_file(path, ADVICE)
    with path.open("rb") as opened:
        packed = Packed(opened, size)
        with tarfile.open(fileobj=packed, mode="r:") as tar:
            for member in tar:
                yield from _member(tar, member, packed)
            _check_end(packed, tar.offset)


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo, packed: Packed) -> Iterator[tuple[str, bytes | None]]:
    """What one member of a tar is. Links lead to what they name in the tar, and never out of it."""
    name = str(PurePosixPath(member.name)).lstrip("/")
    if member.issparse():
        raise ValueError(f"{name} is stored with holes, which are not read; make the tar without --sparse")
    packed.refuse_beyond(member.offset_data + member.size)
    if member.isdir():
        yield from [] if name == "." else [(f"{name}/", None)]
        return
    content = tar.extractfile(member) if KIND.reads(name) else None
    yield name, None if content is None else content.read()


def _check_end(packed: Packed, end: int) -> None:
    """Refuses a tar that ends without the blocks of zeros that end a whole one, or after them with more members: what follows was not read."""
    packed.seek(end)
    rest = 0
    for piece in packed.chunks():
        if piece.count(0) < len(piece):
            raise ValueError(f"what follows its member at byte {end:,} is damaged, or another tar")
        rest += len(piece)
    if rest < tarfile.BLOCKSIZE:
        raise ValueError("it is cut short: the blocks that end a tar are missing")


def _label_of(name: str, path: Path) -> str:
    match = NAME.fullmatch(PurePosixPath(name).stem)
    if match is None:
        raise UserError(f"{name} in {path} is not named {{label}}_{{speaker}}_{{take}}.wav; name it so, or set --data to a folder per label")
    return match["label"]
