"""Bytes of a text file as text: UTF-8 and nothing else, and what is something else is told as what it is."""

from pathlib import Path

from rl_skip.core.errors import UserError

__all__ = ["decoded"]

MAGIC = {
    b"PK\x03\x04": "a zip archive, as Excel's workbooks are",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
    b"\x1f\x8b": "packed with gzip",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ": "packed with xz",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
    b"\xff\xfe\x00\x00": "in UTF-32",
    b"\x00\x00\xfe\xff": "in UTF-32",
    b"\xff\xfe": "in UTF-16",
    b"\xfe\xff": "in UTF-16",
}
"""How files begin that are no UTF-8; the first that fits."""
WINDOWS = "cp1252 (Windows, Western European)"
UNMARKED = 0.2
"""A share of zero bytes above which a file is taken for UTF-16 without a byte order mark: half of plain English in it is zeros."""


def decoded(content: bytes, file: Path | str, expected: str) -> str:
    """The text, without a byte order mark.

    Args:
        file: where it is from, and
        expected: what it should be, for messages.

    Raises:
        UserError: in one line, if it is not UTF-8: what it is instead, where that can be told, and the row where it shows.
    """
    kind = next((kind for start, kind in MAGIC.items() if content.startswith(start)), None)
    if kind is None and content.count(0) > UNMARKED * len(content):
        kind = "in UTF-16, without a byte order mark"
    if kind is not None:
        mend = "unpack it" if kind.startswith("packed") else "save it as text in UTF-8"
        raise UserError(f"{file} is {kind}; {mend}, or set --data to {expected}")
    if b"\0" in content:
        raise UserError(f"{file} holds a zero byte in line {_line(content, content.index(0))}, so it is no text; set --data to {expected}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = error.start
    where = f"the byte 0x{content[place]:02x} in line {_line(content, place)}"
    try:
        content.decode("cp1252")
    except UnicodeDecodeError:
        raise UserError(f"{file} is in neither UTF-8 nor {WINDOWS}, see {where}; write it anew in UTF-8") from None
    letter = content[place : place + 1].decode("cp1252")
    raise UserError(f"{file} is not in UTF-8 but, it seems, in {WINDOWS}, where {where} is {letter!r}; write it anew in UTF-8")


def _line(content: bytes, place: int) -> int:
    """The line, from 1, in which a byte is; lines may end as on old Macs."""
    end = b"\n" if b"\n" in content else b"\r"
    return content.count(end, 0, place) + 1
