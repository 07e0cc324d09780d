"""Pictures with classes: IDX files as MNIST ships them, an npz, or a folder per class."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from rl_skip.attached.classes import order_of_model
from rl_skip.attached.pretrained import load_model, read_config
from rl_skip.core.errors import UserError
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, Split, Task
from rl_skip.nets.blocks import PatchEmbedding
from rl_skip.nets.network import NetworkConfig
from rl_skip.tasks import DEFAULTS, BundledTask
from rl_skip.tasks.image_arrays import EXPECTED, ImagePart, idx_parts, npz_parts
from rl_skip.tasks.image_files import folder_parts
from rl_skip.tasks.options import TaskOptions, model_defaults
from rl_skip.tasks.pixels import PixelPreparation
from rl_skip.tasks.reading import class_indices, class_names, digests, divided, repeats
from rl_skip.tasks.tokens import no_embedding

__all__ = ["IMAGES", "images", "patch_and_padding"]

MIN_TOKENS, MAX_TOKENS = 16, 64
USUAL_PATCH = 8
OVERLAP = 3
"""A patch sees beyond its edge by its side over this."""


def images(path: Path, options: TaskOptions = DEFAULTS) -> Task:
    """The task `images`: square patches as tokens, 16 to 64 of them; each channel has zero mean and unit deviation in train.

    Where the data name splits, these are taken, and one that is missing is a sixth of each class of the training part.
    Otherwise 60% are train, 20% validation, 20% test.

    Args:
        path: a folder of four IDX files (`train-images-idx3-ubyte.gz` and so on, gzip or plain); an `.npz` with `images`
            and `labels` or `x` and `y`, (N, H, W), (N, H, W, C) or (N, C, H, W), or with `x_train`, `y_train`, `x_test`,
            `y_test` and perhaps `x_val`, `y_val`; or a folder per class with picture files, perhaps below `train`, `val`
            and `test`.
        options: a model that is given gets the pixels in its own size instead, as its preprocessor configuration says.

    Raises:
        UserError: if it holds anything else, or its parts do not match.
    """
    parts, remarks = _parts(path)
    for part in parts.values():
        part.check()
    _check_alike(parts, path)
    classes = class_names(parts["train"].labels, path)
    labels = {split: class_indices(part.labels, classes, Path(part.name)) for split, part in parts.items()}
    rows = divided(labels, path)
    contents = {split: digests(part.pixels) for split, part in parts.items()}
    remarks += repeats({split: [contents[part][row] for row in of.tolist()] for split, (part, of) in rows.items()}, path, "images")

    def labels_of(split: Split) -> Tensor:
        part, of = rows[split]
        return labels[part][of]

    def raw(split: Split) -> Examples:
        part, of = rows[split]
        return Examples(parts[part].pixels[of].float(), labels_of(split))

    train = parts["train"].pixels[rows["train"][1]]
    if options.pretrained:
        return _for_model(raw, labels_of, train, parts, classes, options, remarks)
    channels, height, width = train.shape[1:]
    deviation, mean = torch.std_mean(train.float(), dim=(0, 2, 3), correction=0, keepdim=True)  # (1, C, 1, 1)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    patch, (missing_rows, missing_columns) = patch_and_padding(height, width)
    margins = (missing_columns // 2, missing_columns - missing_columns // 2, missing_rows // 2, missing_rows - missing_rows // 2)

    def load(split: Split) -> Examples:
        examples = raw(split)
        assert isinstance(examples.inputs, Tensor)
        return Examples(pad(examples.inputs.sub_(mean).div_(deviation), margins), examples.labels)

    embedding = PatchEmbedding(height + missing_rows, width + missing_columns, channels, patch, overlap=patch // OVERLAP)
    return Task("images", classes, load, embedding, embedding.tokens, labels=labels_of, remarks=tuple(remarks))


def _check_alike(parts: Mapping[Split, ImagePart], path: Path) -> None:
    """Refuses splits whose images have other shapes or another type of number than the training images."""
    train = parts["train"].pixels
    for split, part in parts.items():
        if part.pixels.shape[1:] != train.shape[1:]:
            shapes = f"have shape {tuple(part.pixels.shape[1:])}, the training images {tuple(train.shape[1:])}"
            raise UserError(f"the {split} images in {path} {shapes}; set --data to images of one shape")
        if part.pixels.dtype != train.dtype:
            bytes_in, others_in = (split, "train") if part.pixels.dtype == torch.uint8 else ("train", split)
            raise UserError(f"the {bytes_in} images in {path} are bytes, those of {others_in} are not; set --data to images of one type")


def _for_model(
    raw: Callable[[Split], Examples],
    labels_of: Callable[[Split], Tensor],
    train: Tensor,
    parts: Mapping[Split, ImagePart],
    names: tuple[str, ...],
    options: TaskOptions,
    remarks: list[str],
) -> Task:
    """The task around a model from transformers, which gets whole pictures."""
    folder = options.model
    config = read_config(folder)
    if not hasattr(config, "image_size"):
        raise UserError(f"the model in {folder} takes no images; set --model to one that does, such as a ViT")
    for part in parts.values():
        lowest, highest = (float(value) for value in part.pixels.aminmax())
        if lowest < 0 or highest > 255:
            raise UserError(
                f"the values in {part.name} run from {lowest:g} to {highest:g}, and a model from transformers gets 0 to 255 or 0 to 1; "
                "set --data to images with such values"
            )
    order, classes = order_of_model(names, config, folder, options.label_order)
    prepare = PixelPreparation.of(folder, config, train)

    def load(split: Split) -> Examples:
        examples = raw(split)
        return Examples(examples.inputs, order[examples.labels])

    def network(_size: NetworkConfig) -> LayerStack:
        return load_model(folder, classes, head=options.head, processor=prepare, prepare=prepare)

    task = Task("images", classes, load, no_embedding, tokens=1, network=network, remarks=tuple(remarks))
    return replace(task, labels=lambda split: order[labels_of(split)])


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


def _parts(path: Path) -> tuple[dict[Split, ImagePart], list[str]]:
    """The images of each split that the data name, else all as train; and what is to be said of them."""
    if path.is_dir():
        return idx_parts(path) if any(path.glob("*idx3-ubyte*")) else folder_parts(path)
    if path.suffix.lower() == ".npz":
        return npz_parts(path)
    raise UserError(f"{path} is not what the task 'images' reads; set --data to {EXPECTED}")


IMAGES = BundledTask(images, model_defaults)
