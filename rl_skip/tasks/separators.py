"""The cells of a table, whatever separates its columns."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rl_skip.core.errors import UserError

__all__ = ["Cells", "parsed"]

Cells = list[tuple[int, list[str]]]
"""Rows by their number from 1, as a spreadsheet counts them; each a list of cells."""
TAB = "\t"
SEPARATORS = {",": "commas", ";": "semicolons", TAB: "tabs", "|": "bars"}


def parsed(text: str, file: Path, fits: Callable[[list[str]], bool]) -> tuple[Cells, list[str]]:
    """The rows of a table. Quotes are literal in TSV, and enclose in all others.

    Args:
        text: the whole of the file; its lines may end as on Unix, Windows or old Macs.
        file: where it is from. Its suffix says what separates columns, unless the first row says otherwise.
        fits: whether a row of column names has those that are wanted.

    Returns:
        The rows, those without anything in them too; and a sentence where the separator is not the suffix's.

    Raises:
        UserError: if a quote is never closed, or is followed by text.
    """
    usual = TAB if ".tsv" in file.name.lower() else ","
    if "\n" not in text:
        text = text.replace("\r", "\n")
    separator = _separator(text.lstrip("\r\n").partition("\n")[0], usual, fits)
    remarks = [] if separator == usual else [f"{file.name}: its columns are separated by {SEPARATORS[separator]}, not by {SEPARATORS[usual]}"]
    if separator == TAB and usual == TAB:
        lines = text.removesuffix("\n").split("\n") if text else []
        return [(row, line.removesuffix("\r").split(TAB)) for row, line in enumerate(lines, start=1)], remarks
    return list(enumerate(_quoted(text, separator, file), start=1)), remarks


def _separator(line: str, usual: str, fits: Callable[[list[str]], bool]) -> str:
    """The separator whose columns are those that are wanted; else the usual one where there is any, else another that there is."""
    candidates = [usual, *(separator for separator in SEPARATORS if separator != usual)]
    columns = {separator: [name.strip() for name in next(csv.reader([line], delimiter=separator), [])] for separator in candidates}
    fitting = next((separator for separator in candidates if fits(columns[separator])), None)
    return fitting or next((separator for separator in candidates if len(columns[separator]) > 1), usual)


def _quoted(text: str, separator: str, file: Path) -> Iterator[list[str]]:
    limit = csv.field_size_limit(max(len(text), 1))
    row = 0
    try:
        rows: Iterable[list[str]] = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for row, cells in enumerate(rows, start=1):  # noqa: B007, the message below says it
            yield cells
    except csv.Error:
        what = f"row {row + 1} of {file} has a quote that is not closed, or text after a closed one"
        raise UserError(f'{what}; enclose a whole cell in quotes, and write those inside it twice: ""') from None
    finally:
        csv.field_size_limit(limit)
