"""Class folders: which file is of which class and split, as names alone, and what is said or refused."""

from pathlib import Path

import pytest

from rl_skip.core.errors import UserError
from rl_skip.tasks.folders import FileKind, check_names, class_folders, passed_over, walk

KIND = FileKind("pictures", (".png", ".jpg"), "a folder per class")
PLACE = Path("photos")


def found(*names: str) -> dict[str, dict[str, str | None]]:
    """The files of each split, with their classes."""
    return {split: part.labels for split, part in class_folders(names, KIND, PLACE)[0].items()}


def said(*names: str) -> list[str]:
    return class_folders(names, KIND, PLACE)[1]


def test_a_folder_per_class_whatever_the_case_of_a_suffix() -> None:
    names = ("cat/", "dog/", "dog/1.JPG", "cat/2.png", "cat/notes.txt", "cat/.hidden.png", "__MACOSX/cat/._2.png")
    assert found(*names) == {"train": {"cat/2.png": "cat", "dog/1.JPG": "dog"}}
    assert said(*names) == []


def test_one_folder_around_everything_is_looked_through() -> None:
    assert found("a/b/cat/1.png", "a/b/dog/1.png", "a/readme.txt") == {"train": {"a/b/cat/1.png": "cat", "a/b/dog/1.png": "dog"}}
    assert found("a/train/cat/1.png", "a/test/cat/1.png") == {"train": {"a/train/cat/1.png": "cat"}, "test": {"a/test/cat/1.png": "cat"}}


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev", "Val"])
def test_splits_have_folders_of_their_own_in_any_case(validation: str) -> None:
    names = ("Train/cat/1.png", "Train/dog/1.png", f"{validation}/cat/1.png", "testing/dog/1.png", "test.txt")
    assert found(*names) == {
        "train": {"Train/cat/1.png": "cat", "Train/dog/1.png": "dog"},
        "validation": {f"{validation}/cat/1.png": "cat"},
        "test": {"testing/dog/1.png": "dog"},
    }


def test_a_class_may_have_the_name_of_a_split() -> None:
    assert found("train/1.png", "plane/1.png", "train/old/2.png") == {
        "train": {"train/1.png": "train", "plane/1.png": "plane", "train/old/2.png": "train"}
    }


def test_pictures_deeper_inside_a_class_are_of_that_class_and_told() -> None:
    names = ("cat/1.png", "cat/tabby/2.png", "dog/1.png", "dog/pug/small/2.png")
    assert list(found(*names)["train"].values()) == ["cat", "cat", "dog", "dog"]
    (remark,) = said(*names)
    assert remark.startswith("2 of 4 pictures in photos lie deeper") and "cat/tabby/2.png" in remark


def test_loose_pictures_and_folders_beside_the_splits_are_counted() -> None:
    assert said("cat/1.png", "dog/1.png", "both.png") == ["passed over in photos: 1 pictures in no class's folder (the first: both.png)"]
    names = ("train/cat/1.png", "test/cat/1.png", "extra/cat/1.png", "extra/list.txt", "cover.png")
    assert said(*names) == [
        "passed over in photos: the folder extra, which is no split's, with 2 files",
        "passed over in photos: 1 pictures in no class's folder (the first: cover.png)",
    ]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("notes.txt",), "photos holds no pictures"),
        (("cat/1.png", "dog/"), "photos/dog gives no pictures, it holds no files"),
        (("cat/1.png", "dog/1.gif", "dog/a/2.gif", "dog/3"), r"photos/dog gives no pictures, it holds 2 \.gif, 1 without a suffix"),
        (("train/cat/1.png", "test/"), "photos/test holds no pictures"),
        (("train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "test/dog/"), "photos/test/dog gives no pictures"),
        (("train/cat/1.png", "val/cat/1.png", "dev/cat/1.png"), "photos holds folders dev, train, val"),
        (("val/cat/1.png", "test/cat/1.png"), "photos holds folders test, val"),
        (("cat/1.png", "dog/1.png", "test/cat/1.png"), "photos holds folders test;"),
        (("one/cat/1.png", "two/cat/1.png"), "photos has a folder cat in one and in two; name the outer folders train"),
        (("1.png", "2.png", "cat/3.png"), "1.png in photos is in no class's folder, others are"),
    ],
)
def test_what_is_not_plain_is_refused_by_name(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        class_folders(names, KIND, PLACE)
    assert "set --data to" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_passed_over_is_counted_by_suffix() -> None:
    names = ("cat/", "cat/1.png", "cat/2.HEIC", "3.heic", "list", ".git/", "cat/.x.png", "Thumbs.db")
    assert passed_over(names, KIND, PLACE) == [
        "passed over in photos: 2 .heic, 1 .db, 1 without a suffix, not read as pictures (the first: cat/2.HEIC)",
        "passed over in photos: 2 hidden (the first: .git/)",
    ]


def test_a_walk_follows_links_and_leaves_hidden_folders(tmp_path: Path) -> None:
    (tmp_path / "all" / "cats").mkdir(parents=True)
    (tmp_path / "all" / "cats" / "1.png").write_bytes(b"")
    data = tmp_path / "data"
    (data / ".git").mkdir(parents=True)
    (data / ".git" / "x.png").write_bytes(b"")
    (data / "cat").symlink_to(tmp_path / "all" / "cats")
    (data / "again").symlink_to(tmp_path / "all" / "cats")
    (data / "2.png").symlink_to(tmp_path / "all" / "cats" / "1.png")
    (data / ".#lock").symlink_to(tmp_path / "nowhere")
    assert list(walk(data)) == [".#lock", ".git/", "2.png", "again/", "again/1.png", "cat/", "cat/1.png"]


def test_links_to_nothing_and_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    link = tmp_path / "cat" / "1.png"
    link.symlink_to(tmp_path / "gone.png")
    with pytest.raises(UserError, match="cat/1.png is a link to nothing.*set --data"):
        list(walk(tmp_path))
    link.unlink()
    link.symlink_to(tmp_path)
    with pytest.raises(UserError, match="cat/1.png is a link to a folder that it lies in.*set --data"):
        list(walk(tmp_path))


def test_names_that_no_report_can_hold_are_refused() -> None:
    check_names(["café/1.png", "Bildschirmfoto\u202f2.png"], PLACE)
    with pytest.raises(UserError, match=r"the name 'caf\\udce9/1.png' in photos is not UTF-8"):
        check_names(["café/1.png", "caf\udce9/1.png"], PLACE)
