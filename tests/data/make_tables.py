"""Writes `tables/` and `texts/` beside this file: small files as people have them, one for each thing that can be odd about a table or a text.

`python tests/data/make_tables.py` makes the same bytes again.
"""

import gzip
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
Row = tuple[str, str]
ROWS: list[Row] = [(f"{'good' if n % 2 else 'dull'} café number {n}", str(n % 2)) for n in range(20)]


def lines(rows: Iterable[tuple[str, ...]] = ROWS, header: tuple[str, ...] = ("text", "label"), separator: str = ",") -> str:
    return "".join(separator.join(row) + "\n" for row in (header, *rows))


def with_labels(*labels: str) -> list[Row]:
    """The rows, the first of them with other labels."""
    return [(text, new) for (text, _), new in zip(ROWS, labels, strict=False)] + ROWS[len(labels) :]


TABLES: dict[str, str | bytes] = {
    # what is read, with a sentence
    "labels_in_three_spellings.csv": lines(with_labels("0", "1.0", " 0 ", "1", "0.0")),
    "rows_without_anything.csv": lines([*ROWS[:3], ("", " "), ("", ""), *ROWS[3:]]) + "\n",
    "semicolons.csv": lines(separator=";"),
    "tabs.csv": lines(separator="\t"),
    "commas.tsv": lines(),
    "byte_order_mark.csv": lines().encode("utf-8-sig"),
    "mac_lines.csv": lines().replace("\n", "\r"),
    "mac_lines.tsv": lines(separator="\t").replace("\n", "\r"),
    "windows_lines.tsv": lines(separator="\t").replace("\n", "\r\n"),
    "empty_texts.csv": lines([*ROWS[:-2], ("", "0"), (" ", "1")]),
    "lost_letters.csv": lines([*ROWS[:-1], ("the caf\ufffd", "1")]),
    "classes_that_look_alike.csv": lines([(text, ("Yes", "no", "yes")[n % 3]) for n, (text, _) in enumerate(ROWS)]),
    "gaps_as_nan.csv": lines([(text, "nan" if n % 5 == 0 else label) for n, (text, label) in enumerate(ROWS)]),
    "class_of_one_row.csv": lines(with_labels("2")),
    "upper_case/TRAIN.CSV": lines(),
    "upper_case/test.TSV": lines(ROWS[:4], separator="\t"),
    "known_by_heart/train.csv": lines([*ROWS, ROWS[0], (ROWS[1][0], "0")]),
    "known_by_heart/dev.csv": lines([("a new one", "1"), *ROWS[:3]]),
    "known_by_heart/test.csv": lines([(ROWS[2][0], "1"), *ROWS[3:6], ("another new one", "0")]),
    "beside/train.csv": lines(),
    "beside/more.json": "[]\n",
    "beside/LICENSE": "MIT\n",
    # what is refused
    "labels_01_and_1.csv": lines(with_labels("0", "01")),
    "empty_label.csv": lines(with_labels("0", " ")),
    "labels_missing.csv": lines([(text, "" if n in (4, 11) else label) for n, (text, label) in enumerate(ROWS)]),
    "equal_columns.csv": lines([(text, label, "x") for text, label in ROWS], ("text", "label", "text")),
    "two_trains/train.csv": lines(),
    "two_trains/train.tsv": lines(separator="\t"),
    "two_validations/train.csv": lines(),
    "two_validations/dev.csv": lines(),
    "two_validations/valid.csv": lines(),
    "dev_txt/train.csv": lines(),
    "dev_txt/dev.txt": lines(),
    "test_as_a_folder/train.csv": lines(),
    "test_as_a_folder/test/part.csv": lines(),
    "class_in_dev_alone/train.csv": lines(),
    "class_in_dev_alone/dev.csv": lines(with_labels("0", "1", "2")),
    "utf16.csv": lines().encode("utf-16"),
    "utf16_without_mark.csv": lines().encode("utf-16-le"),
    "cp1252.csv": lines().encode("cp1252"),
    "mac_roman.csv": lines([*ROWS, ("Ångström", "1")]).encode("mac_roman"),
    "workbook.csv": b"PK\x03\x04\x14\x00\x06\x00 the rest of a workbook",
    "packed.csv": gzip.compress(lines().encode(), mtime=0),
    "cut_short.csv.gz": gzip.compress(lines().encode(), mtime=0)[:-30],
    "zero_byte.csv": lines([*ROWS, ("a \0 byte", "1")]),
    "open_quote.csv": lines([*ROWS[:4], ('"an open quote', "0"), *ROWS[4:9], ('"a closed one"', "0"), *ROWS[9:]]),
    "long_row.csv": lines([*ROWS[:5], ("a text, with a comma", "1"), *ROWS[5:]]),
    "no_header.csv": lines(ROWS[1:], ROWS[0]),
    "measurements.csv": lines([(text, f"{n / 7:.3f}") for n, (text, _) in enumerate(ROWS * 3)]),
    "label_of_its_own_for_each_row.csv": lines([(text, f"id{n}") for n, (text, _) in enumerate(ROWS * 2)]),
    "empty.csv": b"",
}
PROSE = "\n".join(f"Le café numéro {n} était fermé." for n in range(30)) + "\n"
TEXTS: dict[str, str | bytes] = {
    "plain.txt": PROSE + "ß" + "\n",
    "empty.txt": b"\xef\xbb\xbf \n\n",
    "utf16.txt": PROSE.encode("utf-16"),
    "cp1252.txt": PROSE.encode("cp1252"),
    "zero_byte.txt": PROSE + "\0",
    "packed.txt": gzip.compress(PROSE.encode(), mtime=0),
}


def main() -> None:
    """Writes every file."""
    for folder, files in (("tables", TABLES), ("texts", TEXTS)):
        for name, content in files.items():
            file = HERE / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)


if __name__ == "__main__":
    main()
