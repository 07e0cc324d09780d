"""Picture files as people have them: those of tests/data/images, each read rightly and told of, or refused in one line with its name."""

import shutil
from pathlib import Path

import pytest
import torch

from rl_skip.core.errors import UserError
from rl_skip.tasks.image_files import folder_parts
from rl_skip.tasks.images import images

Image = pytest.importorskip("PIL.Image")
DATA = Path(__file__).parents[2] / "data" / "images"
RED, BLUE, WHITE = (200, 0, 0), (0, 0, 200), (255, 255, 255)


def photos(folder: Path, *odd: str) -> Path:
    """A copy of the plain pictures with odd ones among the cats."""
    shutil.copytree(DATA / "photos", folder, dirs_exist_ok=True)
    for name in odd:
        shutil.copy(DATA / "odd" / name, folder / "cat")
    return folder


def read(folder: Path, name: str) -> tuple[torch.Tensor, list[str]]:
    """The pixels (C, H, W) of one picture, and the remarks on all."""
    parts, remarks = folder_parts(folder)
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.*"))
    assert len(parts["train"].pixels) == len(files)
    return parts["train"].pixels[files.index(name)], remarks


def assert_halves(pixels: torch.Tensor, left: tuple[int, ...], right: tuple[int, ...], atol: float = 0) -> None:
    wanted = torch.tensor([left] * 6 + [right] * 6).T[:, None].expand(3, 8, 12)  # (C, H, W)
    torch.testing.assert_close(pixels.float(), wanted.float(), rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "atol"),
    [(f"plain.{suffix}", 0) for suffix in ("bmp", "gif", "tif", "ppm", "webp")] + [("plain.jpeg", 5), ("jpeg_inside.png", 5)],
)
def test_pictures_of_other_kinds_are_read_and_nothing_needs_to_be_said(tmp_path: Path, name: str, atol: int) -> None:
    pixels, remarks = read(photos(tmp_path, name), f"cat/{name}")
    assert_halves(pixels, RED, BLUE, atol)
    assert not remarks


@pytest.mark.parametrize(
    ("name", "right", "atol", "remark"),
    [(f"turned.{suffix}", BLUE, 5, "turned as the EXIF orientation says") for suffix in ("jpg", "png", "tif", "webp")]
    + [("late_exif.png", BLUE, 0, "turned as the EXIF orientation says"), ("damaged_exif.png", BLUE, 0, "taken without EXIF data")]
    + [(f"see_through{kind}", WHITE, 0, "laid on white") for kind in (".png", ".webp", ".gif", "_palette.png", "_colour.png")]
    + [("print.jpg", BLUE, 3, "brought from CMYK to RGB"), ("moving.gif", BLUE, 0, "the first of several"), ("pages.tif", BLUE, 0, "the first of")]
    + [("wide.png", BLUE, 60, "squeezed by a tenth or more to the shape 12 x 8")],
)
def test_what_a_file_says_beside_its_colours_counts_and_is_told(tmp_path: Path, name: str, right: tuple[int, ...], atol: int, remark: str) -> None:
    pixels, remarks = read(photos(tmp_path, name), f"cat/{name}")
    assert_halves(pixels, RED, right, atol)
    assert any(said.startswith("1 of 11 pictures was ") and remark in said for said in remarks)
    assert all(f"cat/{name}" in said for said in remarks) and len(remarks) == (2 if name == "wide.png" else 1)


def test_a_turned_picture_gives_the_size_that_all_are_brought_to(tmp_path: Path) -> None:
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        for number in range(4):
            shutil.copy(DATA / "odd" / ("turned.jpg", "turned.tif")[number % 2], tmp_path / folder / f"{number}{('.jpg', '.tif')[number % 2]}")
    assert folder_parts(tmp_path)[0]["train"].pixels.shape == (8, 3, 8, 12)


def test_pillows_warnings_are_remarks(tmp_path: Path) -> None:
    _, remarks = read(photos(tmp_path, "damaged_exif.jpg"), "cat/damaged_exif.jpg")
    assert any("warning of Pillow's, Corrupt EXIF data" in said and "cat/damaged_exif.jpg" in said for said in remarks)


def test_grey_with_transparency_stays_grey(tmp_path: Path) -> None:
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        for number in range(4):
            shutil.copy(DATA / "odd" / "see_through_grey.png", tmp_path / folder / f"{number}.png")
    pixels = folder_parts(tmp_path)[0]["train"].pixels
    assert pixels.shape == (8, 1, 8, 12)
    assert pixels[..., :6].unique().tolist() == [100] and pixels[..., 6:].unique().tolist() == [255]


def test_an_alpha_channel_that_hides_nothing_needs_no_remark(tmp_path: Path) -> None:
    Image.new("RGBA", (12, 8), (1, 2, 3, 255)).save(photos(tmp_path) / "cat" / "opaque.png")
    pixels, remarks = read(tmp_path, "cat/opaque.png")
    assert pixels[:, 0, 0].tolist() == [1, 2, 3] and not remarks


def test_16_bits_of_grey_are_kept_and_those_of_a_colour_are_told(tmp_path: Path) -> None:
    steps = torch.arange(12) * 5000 / 257
    grey, remarks = read(photos(tmp_path / "grey", "deep_grey.png"), "cat/deep_grey.png")
    torch.testing.assert_close(grey, steps.expand(3, 8, 12), rtol=0, atol=1e-3)
    assert not remarks
    colour, remarks = read(photos(tmp_path / "colour", "deep_colour.png"), "cat/deep_colour.png")
    torch.testing.assert_close(colour.float(), torch.stack([steps, 0 * steps, 0 * steps + 255])[:, None].expand(3, 8, 12), rtol=0, atol=1)
    (said,) = remarks
    assert "the upper 8 of the 16 bits" in said and "cat/deep_colour.png" in said
    assert images(photos(tmp_path / "both", "deep_grey.png", "deep_colour.png")).load("train").inputs.isfinite().all()  # type: ignore[union-attr]


REFUSED = {
    "deep_grey_see_through.png": "16 bits and a transparent value",
    "float.tif": "floating-point values",
    "negative.tif": "run from -5 to -5",
    "text.png": "cannot identify image file",
    "cut.jpg": "truncated",
    "huge.png": "900000000 pixels",
    "large.png": "95000000 pixels",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_picture_that_cannot_be_read_is_refused_in_one_line_with_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="set --data") as caught:
        images(photos(tmp_path, name))
    assert f"cat/{name}" in str(caught.value) and REFUSED[name] in str(caught.value) and "\n" not in str(caught.value)


def test_files_of_other_kinds_are_counted(tmp_path: Path) -> None:
    photos(tmp_path, "phone.heic")
    shutil.copy(DATA / "odd" / "phone.heic", tmp_path / "dog" / "PHONE.HEIC")
    for name in ("readme.txt", "cat/labels", "cat/.DS_Store"):
        (tmp_path / name).write_text("beside")
    assert images(tmp_path).remarks == (
        f"passed over in {tmp_path}: 2 .heic, 1 .txt, 1 without a suffix, not read as pictures (the first: cat/labels)",
        f"passed over in {tmp_path}: 1 hidden (the first: cat/.DS_Store)",
    )


def test_a_class_that_gives_none_is_refused_by_name(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "bird").mkdir()
    shutil.copy(DATA / "odd" / "phone.heic", tmp_path / "bird")
    with pytest.raises(UserError, match=r"bird gives no pictures, it holds 1 \.heic; take it out, or set --data"):
        images(tmp_path)


def test_pictures_that_are_all_equal_are_refused(tmp_path: Path) -> None:
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        for number in range(5):
            shutil.copy(DATA / "odd" / "wide.png", tmp_path / folder / f"{number}.png")
    with pytest.raises(UserError, match=f"all 6 training images in {tmp_path} are equal; set --data"):
        images(tmp_path)


def test_test_pictures_that_are_training_pictures_are_counted(tmp_path: Path) -> None:
    photos(tmp_path / "train")
    photos(tmp_path / "val", "plain.bmp")
    for file in photos(tmp_path / "test").glob("*/[34].png"):
        Image.new("RGB", (12, 8), (int(file.stem), 9, len(file.parent.name))).save(file)
    assert images(tmp_path).remarks == (
        f"10 of 11 validation images in {tmp_path} are among the training images as well",
        f"6 of 10 test images in {tmp_path} are among the training images as well",
    )
