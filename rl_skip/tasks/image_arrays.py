"""Pictures as arrays: IDX files as MNIST ships them, and npz files."""

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl_skip.core.bounded import checked_file, most_unpacked, read_bytes, unpacked
from rl_skip.core.errors import UserError
from rl_skip.core.task import Split
from rl_skip.tasks.folders import is_hidden
from rl_skip.tasks.reading import SPLIT_NAMES, reading

__all__ = ["EXPECTED", "ImagePart", "idx_parts", "npz_parts"]

EXPECTED = "a folder of IDX files, an .npz with images and labels, or a folder of images per class"
IDX_KINDS: dict[Split, str] = {"train": "train", "test": "t10k"}
MAX_CHANNELS = 4
ALONE = (("images", "labels"), ("x", "y"))
"""Names of arrays that hold everything."""
PER_SPLIT = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
"""Names of arrays that hold one split."""


@dataclass(frozen=True)
class ImagePart:
    """Images with labels, of one split or of all."""

    name: str
    pixels: Tensor
    """(N, C, H, W), uint8 or float32."""
    labels: list[str]
    """N of them."""

    def check(self) -> None:
        """Raises a UserError where they do not match, are none, or hold what is no number."""
        if len(self.pixels) != len(self.labels):
            raise UserError(f"{self.name} holds {len(self.pixels)} images and {len(self.labels)} labels; set --data to as many of each")
        if not self.pixels.numel():
            raise UserError(f"{self.name} holds no images; set --data to {EXPECTED}")
        if self.pixels.is_floating_point() and not self.pixels.isfinite().all():
            raise UserError(f"the images in {self.name} hold values that are not finite; set --data to images without them")


def idx_parts(folder: Path) -> tuple[dict[Split, ImagePart], list[str]]:
    """The training and the test images of four IDX files; and what is to be said of other files beside them."""
    parts: dict[Split, ImagePart] = {}
    read = set()
    for split, kind in IDX_KINDS.items():
        images, labels = _idx_file(folder, f"{kind}-images", 3), _idx_file(folder, f"{kind}-labels", 1)
        numbers = _idx(labels, 1).tolist()
        parts[split] = ImagePart(f"the {kind} files in {folder}", _idx(images, 3).unsqueeze(1), [str(label) for label in numbers])
        read |= {images.name, labels.name}
    others = sorted(file.name for file in folder.iterdir() if file.name not in read and not is_hidden(file.name))
    return parts, [f"passed over in {folder}: {', '.join(others)}, beside the four files that are read"] if others else []


def _idx_file(folder: Path, kind: str, axes: int) -> Path:
    names = [f"{kind}{separator}idx{axes}-ubyte{packed}" for separator in "-." for packed in ("", ".gz")]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} has no file {names[1]}; set --data to a folder with all four IDX files")
    return file


def _idx(file: Path, axes: int) -> Tensor:
    """A file of unsigned bytes: two zeros, the type, the number of axes, each axis in four bytes, then the values."""
    expected = "a folder with four whole IDX files"
    with reading(file, expected):
        content = unpacked(read_bytes(file, f"set --data to {expected}"))
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes((0, 0, 8, axes)):
        raise UserError(f"{file} is no IDX file of bytes with {axes} axes; set --data to a folder with four whole IDX files")
    shape = [int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, axes + 1)]
    if len(content) - start != math.prod(shape):
        promised, values = math.prod(shape), len(content) - start
        raise UserError(f"{file} holds {values} values where its header promises {promised}; set --data to a folder with four whole IDX files")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].view(shape)


def npz_parts(path: Path) -> tuple[dict[Split, ImagePart], list[str]]:
    """The images of each split that has arrays of its own, else all as train; and what is to be said of other arrays."""
    try:
        import numpy as np
    except ImportError:
        raise UserError("an .npz needs NumPy; pip install 'rl-skip[tasks]'") from None
    with reading(path, "an .npz with images and labels, without pickled objects"):
        _check_archive(path)
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        with loaded as file:
            pairs = _pairs(file.files, path)
            parts = {
                split: ImagePart(f"{path} ({x}, {y})", _pixels(file[x], f"{x} in {path}"), _labels(file[y], f"{y} in {path}"))
                for split, (x, y) in pairs.items()
            }
            unread = [name for name in file.files if not any(name in pair for pair in pairs.values())]
    remarks = [f"passed over in {path}: the arrays {', '.join(unread)}"] if unread else []
    beside = sorted(other.name for other in path.parent.iterdir() if other.suffix.lower() == ".npz" and other.name != path.name)
    if beside and len(parts) == 1:
        remarks.append(f"passed over beside {path}: {', '.join(beside)}")
    return parts, remarks


def _check_archive(path: Path) -> None:
    """Refuses an npz whose arrays, by their headers, are not as large as what is there of them, before any of them is made."""
    from numpy.lib import format as npy

    size = checked_file(path, f"set --data to {EXPECTED}")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total, most = sum(member.file_size for member in members), most_unpacked(size)
        if total > most:
            raise ValueError(f"its arrays have {total:,} bytes, and its size allows {most:,}; save it with numpy.savez, uncompressed")
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two of its arrays have one name")
        for member in members:
            with archive.open(member) as opened:
                if not member.filename.endswith(".npy"):
                    continue
                version = npy.read_magic(opened)
                shape, _, dtype = npy.read_array_header_1_0(opened) if version == (1, 0) else npy.read_array_header_2_0(opened)
                there = member.file_size - opened.tell()
                if not dtype.hasobject and math.prod(shape) * dtype.itemsize != there:
                    raise ValueError(f"{member.filename} holds {there:,} bytes where its header promises {math.prod(shape) * dtype.itemsize:,}")


def _pairs(names: list[str], path: Path) -> dict[Split, tuple[str, str]]:
    """For each split the names of its images and labels: one pair for all, or train, test and perhaps validation."""
    for pair in ALONE:
        if all(name in names for name in pair):
            return {"train": pair}
    for x, y in PER_SPLIT:
        pairs: dict[Split, tuple[str, str]] = {}
        for split, words in SPLIT_NAMES.items():
            found = [(x.format(word), y.format(word)) for word in words if x.format(word) in names and y.format(word) in names]
            if len(found) > 1:
                raise UserError(f"{path} holds {found[0][0]} and {found[1][0]}, both for {split}; set --data to an .npz with one of them")
            pairs |= {split: found[0]} if found else {}
        if "train" in pairs and "test" in pairs:
            return pairs
    arrays = ", ".join(names) or "nothing"
    raise UserError(f"{path} holds {arrays}; set --data to an .npz with images and labels, or x_train, y_train, x_test and y_test")


def _pixels(array: Any, what: str) -> Tensor:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) of any real type → (N, C, H, W), uint8 or float32."""
    shape = array.shape
    axis = 1 if len(shape) == 4 and shape[1] <= shape[3] else -1
    if len(shape) not in (3, 4) or array.dtype.kind not in "buif" or (len(shape) == 4 and shape[axis] > MAX_CHANNELS):
        raise UserError(
            f"{what} has shape {tuple(shape)} and type {array.dtype}; set --data to real numbers as (N, H, W), (N, H, W, C) or (N, C, H, W), "
            f"with at most {MAX_CHANNELS} channels"
        )
    pixels = torch.from_numpy(array if array.dtype == "uint8" else array.astype("float32"))
    return pixels.unsqueeze(1) if len(shape) == 3 else pixels.movedim(axis, 1)


def _labels(array: Any, what: str) -> list[str]:
    """(N,) or (N, 1), whole numbers or text."""
    if not array.shape or array.shape not in (array.shape[:1], (*array.shape[:1], 1)) or array.dtype.kind not in "buiU":
        raise UserError(f"{what} has shape {array.shape} and type {array.dtype}; set --data to labels (N,) that are whole numbers or text")
    labels = [str(label).strip() for label in array.reshape(-1).tolist()]
    if "" in labels:
        raise UserError(f"{what} has an empty label in row {labels.index('')}, counted from 0; set --data to labels for all rows")
    return labels
