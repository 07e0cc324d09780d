"""A folder's seal: `SHA256SUMS`, a digest of every file, as `sha256sum` writes and checks it. A file of which one bit changed is refused."""

import hashlib
import re
import shlex
from collections.abc import Collection
from pathlib import Path

from rl_skip.core.bounded import checked_file, read_bytes
from rl_skip.core.errors import UserError

__all__ = ["SEAL", "check_sealed", "is_sealed", "require_seal", "seal"]

SEAL = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  ([^\n\\]+)\n")
LARGEST = 2**20
"""Bytes that a seal may have."""
LARGEST_BESIDE = 2**30
"""Of a file that is compared and holds no weights: cards, descriptions, tokenizers."""
RESTORE = "restore the folder, or write it anew"


def seal(folder: Path, names: Collection[str] | None = None) -> None:
    """Writes the digests of the files in a folder, and of those in its own folders; of `names` alone where they are given."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != SEAL) if names is None else [folder / name for name in names]
    lines = [f"{_digest(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    (folder / SEAL).write_text("".join(lines), encoding="utf-8", newline="\n")


def is_sealed(folder: Path) -> bool:
    """Whether the folder has a seal."""
    return (folder / SEAL).is_file()


def require_seal(folder: Path) -> None:
    """Raises `UserError`, which says how to trust the folder as it is, if it has no seal."""
    if not is_sealed(folder):
        trusted = f"cd {shlex.quote(str(folder))} && find * -type f -exec sha256sum {{}} + > {SEAL}"
        raise UserError(f"{folder} has no {SEAL}, as those of earlier versions, so a change would not be noticed; to trust it as it is: {trusted}")


def check_sealed(folder: Path, *names: str, whole: bool = False) -> None:
    """Refuses a folder of which a file is not as it was when the folder was sealed.

    Args:
        names: the files that are compared; those of them that are there must be in the seal.
        whole: whether all that the seal names is compared too.

    Raises:
        UserError: naming the file that differs, is missing, or was added; or if there is no seal.
    """
    require_seal(folder)
    sealed = _read(folder / SEAL)
    for name in dict.fromkeys((*names, *sealed) if whole else names):
        file = folder / name
        if name not in sealed and file.exists():
            raise UserError(f"{file} was added after {folder / SEAL} was written, so it is not read; {RESTORE}")
        if name in sealed and not file.is_file():
            raise UserError(f"{file} is missing, and {folder / SEAL} names it; {RESTORE}")
        if name not in sealed:
            continue
        if file.suffix != ".safetensors":
            checked_file(file, RESTORE, LARGEST_BESIDE)
        if _digest(file) != sealed[name]:
            raise UserError(f"{file} is not as it was written, its digest differs from the one in {SEAL}; {RESTORE}")


def _read(file: Path) -> dict[str, str]:
    """Digests by names; only what is exactly as it is written is read, so that no bit of it may change either."""
    text = read_bytes(file, RESTORE, LARGEST).decode("utf-8", errors="replace")
    lines = [match.groups() for match in LINE.finditer(text)]
    sealed = {name: digest for digest, name in lines}
    inside = all(not Path(name).is_absolute() and ".." not in Path(name).parts for name in sealed)
    if not sealed or len(sealed) != len(lines) or not inside or "".join(f"{digest}  {name}\n" for digest, name in lines) != text:
        raise UserError(f"{file} is not as it was written: it is no list of digests and files; {RESTORE}")
    return sealed


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
