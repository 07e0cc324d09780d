"""Pictures with classes: IDX files as MNIST ships them, an npz, or a folder per class."""

import gzip
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from rl_skip.attached.classes import order_of_model
from rl_skip.attached.pretrained import load_model, read_config
from rl_skip.core.errors import UserError
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, Split, Task, stratified_split
from rl_skip.nets.blocks import PatchEmbedding
from rl_skip.nets.network import NetworkConfig
from rl_skip.tasks import DEFAULTS, BundledTask
from rl_skip.tasks.options import TaskOptions, model_defaults
from rl_skip.tasks.pixels import PixelPreparation
from rl_skip.tasks.reading import class_indices, class_names, reading, split_rows
from rl_skip.tasks.tokens import no_embedding

__all__ = ["IMAGES", "images", "patch_and_padding"]

EXPECTED = "a folder of IDX files, an .npz with images and labels, or a folder of images per class"
SUFFIXES = (".png", ".jpg", ".jpeg")
LONGEST_SIDE = 128
"""Pixels; larger picture files are scaled down to it."""
MIN_TOKENS, MAX_TOKENS = 16, 64
USUAL_PATCH = 8
OVERLAP = 3
"""A patch sees beyond its edge by its side over this."""
MAX_CHANNELS = 4
NPZ_KEYS = ([("images", "labels")], [("x", "y")], [("x_train", "y_train"), ("x_test", "y_test")])


@dataclass(frozen=True)
class _Source:
    """Images with labels from one place."""

    name: str
    pixels: Tensor
    """(N, C, H, W), uint8 or float32."""
    labels: list[str]
    """N of them."""

    def check(self) -> None:
        if len(self.pixels) != len(self.labels):
            raise UserError(f"{self.name} holds {len(self.pixels)} images and {len(self.labels)} labels; set --data to as many of each")
        if not self.pixels.numel():
            raise UserError(f"{self.name} holds no images; set --data to {EXPECTED}")
        if not self.pixels.isfinite().all():
            raise UserError(f"the images in {self.name} hold values that are not finite; set --data to images without them")


def images(path: Path, options: TaskOptions = DEFAULTS) -> Task:
    """The task `images`: square patches as tokens, 16 to 64 of them; each channel has zero mean and unit deviation in train.

    Where the data name a test part, it is the test split and a sixth of each class of the training part is validation.
    Otherwise 60% are train, 20% validation, 20% test.

    Args:
        path: a folder of four IDX files (`train-images-idx3-ubyte.gz` and so on, gzip or plain); an `.npz` with `images`
            and `labels` or `x` and `y`, (N, H, W), (N, H, W, C) or (N, C, H, W), or with `x_train`, `y_train`, `x_test`,
            `y_test`; or a folder per class with PNG or JPEG files, perhaps below `train` and `test`.
        options: a model that is given gets the pixels in its own size instead, as its preprocessor configuration says.

    Raises:
        UserError: if it holds anything else, or its parts do not match.
    """
    parts = _parts(path)
    for source in parts:
        source.check()
    classes = class_names(parts[0].labels, path)
    labels = [class_indices(source.labels, classes, path) for source in parts]
    rows = split_rows(labels[0], path) if len(parts) == 1 else _official_rows(labels[0], labels[1], path)
    channels, height, width = parts[0].pixels.shape[1:]
    if parts[-1].pixels.shape[1:] != parts[0].pixels.shape[1:]:
        shape = tuple(parts[-1].pixels.shape[1:])
        raise UserError(
            f"the test images in {path} have shape {shape}, the training images {(channels, height, width)}; set --data to images of one shape"
        )
    if options.pretrained:
        return _for_model(parts, labels, rows, classes, options)
    deviation, mean = torch.std_mean(parts[0].pixels[rows["train"]].float(), dim=(0, 2, 3), correction=0, keepdim=True)  # (1, C, 1, 1)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    patch, (missing_rows, missing_columns) = patch_and_padding(height, width)
    margins = (missing_columns // 2, missing_columns - missing_columns // 2, missing_rows // 2, missing_rows - missing_rows // 2)

    def load(split: Split) -> Examples:
        place = -1 if split == "test" else 0
        pixels = parts[place].pixels[rows[split]].float().sub_(mean).div_(deviation)
        return Examples(pad(pixels, margins), labels[place][rows[split]])

    embedding = PatchEmbedding(height + missing_rows, width + missing_columns, channels, patch, overlap=patch // OVERLAP)
    return Task("images", classes, load, embedding, embedding.tokens)


def _for_model(parts: list[_Source], labels: list[Tensor], rows: dict[Split, Tensor], names: tuple[str, ...], options: TaskOptions) -> Task:
    """The task around a model from transformers, which gets whole pictures."""
    folder = options.model
    config = read_config(folder)
    if not hasattr(config, "image_size"):
        raise UserError(f"the model in {folder} takes no images; set --model to one that does, such as a ViT")
    order, classes = order_of_model(names, config, folder, options.label_order)
    prepare = PixelPreparation.of(folder, config, parts[0].pixels[rows["train"]])

    def load(split: Split) -> Examples:
        place = -1 if split == "test" else 0
        return Examples(parts[place].pixels[rows[split]].float(), order[labels[place][rows[split]]])

    def network(_size: NetworkConfig) -> LayerStack:
        return load_model(folder, classes, head=options.head, processor=prepare, prepare=prepare)

    return Task("images", classes, load, no_embedding, tokens=1, network=network)


def patch_and_padding(height: int, width: int) -> tuple[int, tuple[int, int]]:
    """The patch size that gives 16 to 64 tokens with the least padding, of these the one nearest to 8 pixels; 1 for tiny images.

    Returns:
        Pixels of a patch's side, and the rows and columns that are to be added.
    """
    fitting = []
    for patch in range(2, max(height, width) + 1):
        down, across = -(-height // patch), -(-width // patch)
        if MIN_TOKENS <= down * across <= MAX_TOKENS:
            fitting.append((down * across * patch**2, abs(patch - USUAL_PATCH), patch, (down * patch - height, across * patch - width)))
    if not fitting:
        return 1, (0, 0)
    _, _, patch, missing = min(fitting)
    return patch, missing


def _official_rows(train: Tensor, test: Tensor, path: Path) -> dict[Split, Tensor]:
    parts = stratified_split(train, (5 / 6, 0.0, 1 / 6))
    if not len(parts["test"]):
        raise UserError(f"{path} holds {len(train)} training images, too few to validate on some; set --data to at least 4 of each class")
    return {"train": parts["train"], "validation": parts["test"], "test": torch.arange(len(test))}


def _parts(path: Path) -> list[_Source]:
    """All images, or training images and test images."""
    if path.is_dir():
        return _idx_parts(path) if any(path.glob("*idx3-ubyte*")) else _folder_parts(path)
    if path.suffix == ".npz":
        return _npz_parts(path)
    raise UserError(f"{path} is not what the task 'images' reads; set --data to {EXPECTED}")


def _idx_parts(folder: Path) -> list[_Source]:
    parts = []
    for kind in ("train", "t10k"):
        pixels, labels = _idx(folder, f"{kind}-images", 3), _idx(folder, f"{kind}-labels", 1)
        parts.append(_Source(f"the {kind} files in {folder}", pixels.unsqueeze(1), [str(label) for label in labels.tolist()]))
    return parts


def _idx(folder: Path, kind: str, axes: int) -> Tensor:
    """A file of unsigned bytes: two zeros, the type, the number of axes, each axis in four bytes, then the values."""
    names = [f"{kind}{separator}idx{axes}-ubyte{packed}" for separator in "-." for packed in ("", ".gz")]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder} has no file {names[1]}; set --data to a folder with all four IDX files")
    with reading(file, "a folder with four whole IDX files"):
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes((0, 0, 8, axes)):
        raise UserError(f"{file} is no IDX file of bytes with {axes} axes; set --data to a folder with four whole IDX files")
    shape = [int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(1, axes + 1)]
    if len(content) - start != math.prod(shape):
        promised, values = math.prod(shape), len(content) - start
        raise UserError(f"{file} holds {values} values where its header promises {promised}; set --data to a folder with four whole IDX files")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].view(shape)


def _npz_parts(path: Path) -> list[_Source]:
    try:
        import numpy as np
    except ImportError:
        raise UserError("an .npz needs NumPy; pip install 'rl-skip[tasks]'") from None
    with reading(path, "an .npz with images and labels, without pickled objects"):
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array")
        for pairs in NPZ_KEYS:
            if all(key in file for pair in pairs for key in pair):
                return [_Source(f"{path} ({x}, {y})", _pixels(file[x], f"{x} in {path}"), _labels(file[y], f"{y} in {path}")) for x, y in pairs]
        arrays = ", ".join(file.files) or "nothing"
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
    if array.shape not in (array.shape[:1], (*array.shape[:1], 1)) or array.dtype.kind not in "buiU":
        raise UserError(f"{what} has shape {array.shape} and type {array.dtype}; set --data to labels (N,) that are whole numbers or text")
    return [str(label) for label in array.reshape(-1).tolist()]


def _folder_parts(path: Path) -> list[_Source]:
    """A folder per class, or `train` and `test` with a folder per class each; other folders and files are passed over."""
    try:
        from PIL import Image
    except ImportError:
        raise UserError("a folder of images needs Pillow; pip install 'rl-skip[tasks]'") from None
    roots = [path / "train", path / "test"]
    roots = roots if all(root.is_dir() for root in roots) else [path]
    files = {root: sorted(file for file in root.glob("[!.]*/[!.]*") if file.suffix.lower() in SUFFIXES) for root in roots}
    empty = next((root for root in roots if not files[root]), None)
    if empty is not None:
        raise UserError(f"{empty} holds no folders with PNG or JPEG images; set --data to {EXPECTED}")
    sizes, modes = [], set()
    for file in (file for root in roots for file in files[root]):
        with reading(file, "whole PNG or JPEG images"), Image.open(file) as image:
            sizes.append(image.size)
            modes.add(image.mode)
    if any(mode[0] in "IF" for mode in modes):
        raise UserError(f"{path} holds images with more than 8 bits a channel; set --data to images of 8 bits, or to an .npz")
    size = _common_size(sizes)
    mode = "L" if modes <= {"1", "L"} else "RGB"

    def pixels(file: Path) -> Tensor:
        with reading(file, "whole PNG or JPEG images"), Image.open(file) as image:
            picture = image.convert(mode)
            picture = picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)
            return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(size[1], size[0], -1).movedim(2, 0)

    return [_Source(str(root), torch.stack([pixels(file) for file in files[root]]), [file.parent.name for file in files[root]]) for root in roots]


def _common_size(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Width and height that all images are brought to: the medians, scaled down where a side is too long."""
    width, height = (median_low(side) for side in zip(*sizes, strict=True))
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


IMAGES = BundledTask(images, model_defaults)
