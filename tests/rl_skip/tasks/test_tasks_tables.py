"""Tables and texts as people have them, one file of `tests/data` for each thing that can be odd: read as meant and told, or refused in one line."""

import gzip
import re
from pathlib import Path

import pytest

from rl_skip import UserError
from rl_skip.core.task import Task
from rl_skip.tasks import load_task, tables
from rl_skip.tasks.data_report import DataReport
from rl_skip.tasks.options import TaskOptions
from rl_skip.tasks.tables import Tables, read_tables
from tests.data.make_tables import HERE, ROWS, TABLES, TEXTS

TABLES_AT, TEXTS_AT = HERE / "tables", HERE / "texts"


def read(name: str, **options: str) -> Tables:
    return read_tables(TABLES_AT / name, TaskOptions(**options))  # type: ignore[arg-type]


def rows_of(tables: Tables) -> list[tuple[str, str]]:
    """Text and class of every row, whatever its split."""
    return sorted((text, tables.classes[label]) for table in tables.splits.values() for (text, _), label in table.rows())


def reported(task: Task) -> str:
    """The report once everything is loaded."""
    report = DataReport(task)
    for split in ("train", "validation", "test"):
        report.task.load(split)  # type: ignore[arg-type]
    return "\n".join(report.lines())


def test_the_files_are_those_that_the_program_beside_them_makes() -> None:
    for folder, files in ((TABLES_AT, TABLES), (TEXTS_AT, TEXTS)):
        assert {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} == set(files)
        for name, content in files.items():
            made = content.encode() if isinstance(content, str) else content
            if made[:2] != b"\x1f\x8b":  # which zlib may pack otherwise
                assert (folder / name).read_bytes() == made, name


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("labels_in_three_spellings.csv", ("spaces around 1 of 20 labels, the first in row 4,", "labels such as '0.0' (row 6 of")),
        ("rows_without_anything.csv", ("3 of 24 rows, the first of them row 5, are empty and passed over",)),
        ("semicolons.csv", ("semicolons.csv: its columns are separated by semicolons, not by commas",)),
        ("tabs.csv", ("tabs.csv: its columns are separated by tabs, not by commas",)),
        ("commas.tsv", ("commas.tsv: its columns are separated by commas, not by tabs",)),
        ("byte_order_mark.csv", ()),
        ("mac_lines.csv", ()),
        ("mac_lines.tsv", ()),
        ("windows_lines.tsv", ()),
        ("beside", ("not read: more.json in",)),
        ("beside/train.csv", ()),
    ],
)
def test_what_can_be_read_is_read_whole_and_told(name: str, told: tuple[str, ...]) -> None:
    tables = read(name)
    assert rows_of(tables) == sorted(ROWS)
    assert tables.classes == ("0", "1")
    assert len(tables.remarks) == len(told) + 1, tables.remarks
    for remark, said in zip(tables.remarks, (*told, "alone is there: of each class 60% are train, 20% validation, 20% test"), strict=True):
        assert said in remark


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("empty_texts.csv", "empty_texts.csv, column text: 2 of 20 texts, the first in row 20, are empty"),
        ("lost_letters.csv", "column text: 1 of 20 texts, the first in row 21, hold the sign \ufffd"),
        ("classes_that_look_alike.csv", "the labels 'Yes' (row 2 of classes_that_look_alike.csv) and 'yes' (row 4 of"),
        ("gaps_as_nan.csv", "the label 'nan' (row 2 of gaps_as_nan.csv) is taken for a class"),
        ("known_by_heart", "2 of 22 train rows repeat the text of an earlier one; 2 share a text with a row of another class"),
        ("known_by_heart", "3 of 4 validation rows have a text that the training data have too, 0 of them with another class"),
        ("known_by_heart", "4 of 5 test rows have a text that the training data have too, 1 of them with another class"),
        ("upper_case", "validation has no file: a sixth of each class of TRAIN.CSV is held out for it"),
    ],
)
def test_what_looks_odd_is_told(name: str, told: str) -> None:
    assert any(told in remark for remark in read(name).remarks), read(name).remarks


def test_suffixes_may_be_in_any_case() -> None:
    tables = read("upper_case")
    assert [text for text, _ in ROWS[:4]] == tables.splits["test"].texts
    assert len(tables.splits["train"].texts) + len(tables.splits["validation"].texts) == len(ROWS)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("labels_01_and_1.csv", "the labels '01' (row 3 of labels_01_and_1.csv) and '1' (row 5 of .*) are one number in two spellings"),
        ("empty_label.csv", "row 3 of .*empty_label.csv has an empty label; label what lacks one"),
        ("labels_missing.csv", "row 6 of .*labels_missing.csv has an empty label, as have 1 more of 20 rows"),
        ("equal_columns.csv", "has the column 'text' more than once, at places 1 and 3"),
        ("two_trains", "two_trains holds train.csv and train.tsv, of which one would be ignored for train; .*--train-file"),
        ("two_validations", "holds dev.csv and valid.csv, of which one would be ignored for validation; .*--validation-file"),
        ("dev_txt", "dev.txt bears the name of the validation data but is no .tsv or .csv file, so it would be ignored"),
        ("test_as_a_folder", "test bears the name of the test data but is no .tsv or .csv file"),
        ("class_in_dev_alone", "validation data in .*dev.csv hold the class '2', which the training data lack, in row 4"),
        ("utf16.csv", "utf16.csv is in UTF-16; save it as text in UTF-8"),
        ("utf16_without_mark.csv", "is in UTF-16, without a byte order mark"),
        ("cp1252.csv", "not in UTF-8 but, it seems, in cp1252 .*, where the byte 0xe9 in line 2 is 'é'"),
        ("mac_roman.csv", "is in neither UTF-8 nor cp1252 .*, see the byte 0x8e in line 2"),
        ("workbook.csv", "is a zip archive, as Excel's workbooks are"),
        ("packed.csv", "is packed with gzip; unpack it"),
        ("cut_short.csv.gz", "cut_short.csv.gz cannot be read (Compressed file ended"),
        ("zero_byte.csv", "holds a zero byte in line 22, so it is no text"),
        ("open_quote.csv", "row 6 of .*open_quote.csv has a quote that is not closed, or text after a closed one"),
        ("long_row.csv", "long_row.csv has 3 columns in row 7, its first row names 2"),
        ("no_header.csv", "its columns are dull café number 0, 0; set --text-column, or name the columns in its first row"),
        ("measurements.csv", "are 60 different numbers with decimals, as for a regression; classes are expected, see '0.000' in row 2"),
        ("label_of_its_own_for_each_row.csv", "the 40 rows of .* have 40 different labels; .*--label-column"),
        ("empty.csv", "empty.csv is empty"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told.replace("(", r"\(").replace(")", r"\)")) as refused:
        read(name)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_named_settles_which_is_read() -> None:
    assert rows_of(read("two_trains", train_file="train.tsv")) == sorted(ROWS)
    tables = read("two_validations", validation_file="valid.csv")
    assert tables.splits["validation"].texts == [text for text, _ in ROWS]
    assert any("not read: dev.csv in" in remark for remark in tables.remarks)


def test_decimals_and_versions_stay_as_they_are(tmp_path: Path) -> None:
    """A class called 1.0 is a number without need for its point only where no other class has decimals."""
    names = ("1.0", "1.5", "2.0")
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"text {n},{names[n % 3]}\n" for n in range(30)))
    assert read_tables(tmp_path / "a.csv", TaskOptions()).classes == names


def test_labels_are_one_class_across_files(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"text {n},{n % 2}\n" for n in range(30)))
    (tmp_path / "test.csv").write_text("text,label\n" + "".join(f"word {n},{n % 2}.0\n" for n in range(4)))
    tables = read_tables(tmp_path, TaskOptions())
    assert tables.classes == ("0", "1") and tables.splits["test"].labels.tolist() == [0, 1, 0, 1]


def test_whatever_a_reader_raises_is_one_line_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text,label\n"))

    def fails(_content: bytes) -> bytes:
        raise KeyError("a bug of someone else's")

    monkeypatch.setattr(tables, "unpacked", fails)
    with pytest.raises(UserError, match=r"a\.csv\.gz cannot be read \(.*a bug of someone else's.*\); set --data") as refused:
        read_tables(tmp_path / "a.csv.gz", TaskOptions())
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------------ with transformers


def test_texts_that_are_cut_off_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    lengths = [3, 4, 5, 6, 7] * 8
    texts = [" ".join(["word"] * length) for length in lengths]
    (tmp_path / "a.tsv").write_text("text\tlabel\n" + "".join(f"{text}\t{n % 2}\n" for n, text in enumerate(texts)))
    task = load_task("text", str(tmp_path / "a.tsv"), TaskOptions(max_tokens=7))  # two of them around a text
    told = reported(task)
    parts = read_tables(tmp_path / "a.tsv", TaskOptions()).splits
    for split, table in parts.items():
        cut = sum(len(text.split()) > 5 for text in table.texts)
        assert f"- {cut} of {len(table.texts)} {split} rows are longer than 7 tokens and cut off there; see --max-tokens" in told
    assert "cut off" not in reported(load_task("text", str(tmp_path / "a.tsv"), TaskOptions(max_tokens=9)))


def test_classes_with_a_single_training_row_are_told() -> None:
    pytest.importorskip("transformers")
    told = reported(load_task("text", str(TABLES_AT / "class_of_one_row.csv")))
    assert "  test        4 rows (0: 2, 1: 2, 2: 0)" in told and "- classes with a single training row: 2" in told


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("empty.txt", "empty.txt is empty"),
        ("utf16.txt", "utf16.txt is in UTF-16"),
        ("cp1252.txt", "cp1252.txt is not in UTF-8 but, it seems, in cp1252"),
        ("zero_byte.txt", "zero_byte.txt holds a zero byte in line 31"),
        ("packed.txt", "packed.txt is packed with gzip; unpack it"),
    ],
)
def test_texts_to_go_on_with_that_cannot_be_are_refused(name: str, told: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match=re.escape(told)) as refused:
        load_task("language", str(TEXTS_AT / name), TaskOptions(max_tokens=16, prompt_tokens=4))
    assert "\n" not in str(refused.value)


def test_what_a_text_loses_is_told() -> None:
    pytest.importorskip("transformers")
    task = load_task("language", str(TEXTS_AT / "plain.txt"), TaskOptions(max_tokens=16, prompt_tokens=4))
    told, text = reported(task), str(TEXTS["plain.txt"])
    characters = {"train": round(0.9 * len(text)), "test": len(text) - round(0.95 * len(text))}
    for split, count in characters.items():
        rows = (count - 16) // 12 + 1
        assert f"  {split:<11} {rows} rows" in told
        assert f"- the last {count - 16 - 12 * (rows - 1)} tokens of {split} fill no row of 16, and are left out" in told
    assert f"- 1 of {characters['test']} tokens of test stand for characters that the training part lacks" in told
