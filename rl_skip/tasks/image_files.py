"""Picture files in a folder per class, read with Pillow: what a file says beside its colour values is heeded, or told."""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rl_skip.core.bounded import checked_file
from rl_skip.core.errors import UserError
from rl_skip.core.task import Split
from rl_skip.tasks.folders import FileKind, Notes, check_names, class_folders, passed_over, walk
from rl_skip.tasks.image_arrays import EXPECTED, ImagePart
from rl_skip.tasks.reading import reading

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["folder_parts"]

SUFFIXES = (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What Pillow may take a file for, whatever its suffix says."""
KIND = FileKind("pictures", SUFFIXES, EXPECTED)
LONGEST_SIDE = 128
"""Pixels; larger picture files are scaled down to it."""
GROUND = (255, 255, 255, 255)
"""White, on which most programs show what is transparent."""
GREY = {"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N"}
WITH_ALPHA = {"RGBA", "RGBa", "LA", "PA"}
TO_BYTE = 1 / 257
"""What brings 16 bits, 0 to 65535, to 0 to 255."""
DEEP_COLOUR = re.compile(r";16[BLN]\b")
"""In what Pillow says of values that it reads: 16 bits, in the order of bytes that the letter names."""
WIDTH, HEIGHT, ORIENTATION = 0x0100, 0x0101, 0x0112
"""Tags of TIFF, the last one of EXIF too: it says how a picture is to be turned, and from 5 on its sides change places."""
MOST_PIXELS = 2**26
"""Of a picture file, 67 million; with its copies in colour it takes a gigabyte."""
SQUEEZED = 1.1
"""From which factor on another ratio of width to height is told."""


class _Header(NamedTuple):
    """What a file says before its colour values are read."""

    size: tuple[int, int]
    mode: str


def folder_parts(path: Path) -> tuple[dict[Split, ImagePart], list[str]]:
    """The pictures of each split that has a folder of its own, else all as train; and what is to be said of them.

    All are brought to one size, the median of widths and heights, and to grey where none has colours.

    Raises:
        UserError: if a file cannot be read, or its class is not plain.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise UserError("a folder of images needs Pillow; pip install 'rl-skip[tasks]'") from None
    with reading(path, EXPECTED):
        names = list(walk(path))
    check_names(names, path)
    remarks = passed_over(names, KIND, path)
    parts, said = class_folders(names, KIND, path)
    flat = next((part for part in parts.values() if None in part.labels.values()), None)
    if flat is not None:
        raise UserError(f"{flat.name} holds no folders with pictures, but pictures; set --data to {EXPECTED}")
    notes = Notes()
    headers = [_header(path, name, notes) for part in parts.values() for name in part.labels]
    size = _common_size([header.size for header in headers])
    modes = {header.mode for header in headers}
    mode = "L" if modes <= GREY else "RGB"
    found: dict[Split, ImagePart] = {}
    for split, part in parts.items():
        pixels = [_pixels(path, name, mode, size, notes) for name in part.labels]
        kind = torch.float32 if any(mode.startswith("I") for mode in modes) else torch.uint8
        found[split] = ImagePart(part.name, torch.stack([picture.to(kind) for picture in pixels]), [str(label) for label in part.labels.values()])
    return found, remarks + said + notes.sentences(len(headers), KIND.noun)


@contextmanager
def _opened(path: Path, name: str, notes: Notes) -> Iterator["Image"]:
    """A picture; what goes wrong is one line with its name, and what Pillow warns of a note."""
    from PIL import Image

    with reading(path / name, "pictures that can be read"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        checked_file(path / name, f"set --data to {EXPECTED}")
        with Image.open(path / name, formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"it has {image.width} x {image.height} pixels, and at most {MOST_PIXELS:,} are read; scale it down")
            yield image
    for warning in caught:
        notes.add(f"read with a warning of Pillow's, {' '.join(str(warning.message).split())}", name)


def _header(path: Path, name: str, notes: Notes) -> _Header:
    with _opened(path, name, notes) as image:
        size, mode = image.size, image.mode
        if mode == "F":
            raise ValueError("it holds floating-point values; save it with 8 or 16 bits, or as an array in an .npz")
        if any(DEEP_COLOUR.search(str(tile[3])) for tile in getattr(image, "tile", ())) and mode not in GREY:
            notes.add("read with the upper 8 of the 16 bits that a colour has", name)
        if getattr(image, "is_animated", False):
            notes.add("read by the first of several pictures in the file", name)
        if mode == "CMYK":
            notes.add("brought from CMYK to RGB without a colour profile", name)
        if image.format == "TIFF":  # versions of Pillow differ in whether its size is that of the picture as it is stored
            tags: Any = image.tag_v2  # type: ignore[attr-defined]
            size = tags[WIDTH], tags[HEIGHT]
        if _orientation(image, name, notes) > 4:
            size = size[1], size[0]
        return _Header(size, mode)


def _orientation(image: "Image", name: str, notes: Notes) -> int:
    """How the picture is to be turned; 1 where nothing is said. What a PNG says after its colour values is known when these are read."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        orientation = int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged block beside a whole picture
        notes.add("taken without EXIF data, which cannot be read", name)
        return 1
    if orientation > 1:
        notes.add("turned as the EXIF orientation says", name)
    return orientation


def _common_size(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Width and height that all images are brought to: the medians, scaled down where a side is too long."""
    width, height = (median_low(side) for side in zip(*sizes, strict=True))
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _pixels(path: Path, name: str, mode: str, size: tuple[int, int], notes: Notes) -> Tensor:
    """(C, H, W), uint8, or float32 from 0 to 255 where a grey value has 16 bits."""
    from PIL import Image

    with _opened(path, name, notes) as image:
        picture = _opaque(_upright(image, name, notes), name, notes)
        picture = _wide(picture) if picture.mode.startswith("I") else picture if picture.mode == mode else picture.convert(mode)
        if picture.size != size:
            notes.add(f"brought to {size[0]} x {size[1]} pixels", name)
            ratio = picture.width * size[1] / (picture.height * size[0])
            if max(ratio, 1 / ratio) >= SQUEEZED:
                notes.add(f"squeezed by a tenth or more to the shape {size[0]} x {size[1]}", name)
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        if picture.mode == "F":
            values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.float32).view(1, size[1], size[0])
            return (values * TO_BYTE).expand(len(mode), -1, -1)
        return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(size[1], size[0], -1).movedim(2, 0)


def _upright(image: "Image", name: str, notes: Notes) -> "Image":
    """The picture as its EXIF orientation says it is looked at."""
    from PIL import ImageOps

    image.load()
    if image.format != "TIFF" and _orientation(image, name, notes) > 1:  # a TIFF is turned by Pillow when it is loaded
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _opaque(image: "Image", name: str, notes: Notes) -> "Image":
    """The picture on white, where it is transparent."""
    from PIL import Image

    if image.mode not in WITH_ALPHA and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        raise ValueError("it has 16 bits and a transparent value; save it with an alpha channel")
    image = image.convert("RGBA")
    lowest: Any = image.getchannel("A").getextrema()[0]
    if lowest < 255:
        notes.add("laid on white where transparent", name)
    ground = Image.new("RGBA", image.size, GROUND)
    ground.alpha_composite(image)
    return ground


def _wide(image: "Image") -> "Image":
    """Grey values of 16 bits as floating point."""
    values = image.convert("I")
    lowest, highest = (int(value) for value in values.getextrema())  # type: ignore[arg-type]
    if lowest < 0 or highest > 65535:
        raise ValueError(f"its values run from {lowest} to {highest}, beyond 16 bits; save it with 8 or 16, or as an array in an .npz")
    return values.convert("F")
