"""What the tasks that read files share: errors in one line, classes and splits."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rl_skip.core.errors import UserError
from rl_skip.core.task import Split, stratified_split

__all__ = ["HELD_OUT", "SPLIT_NAMES", "class_indices", "class_names", "digests", "divided", "reading", "repeats", "split_rows"]

SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""What files, folders and arrays of a split are called."""
HELD_OUT = 1 / 6
"""The share of the training rows of each class that becomes a split of its own where the data have none."""


@contextmanager
def reading(what: Path | str, expected: str) -> Iterator[None]:
    """Raises what goes wrong while `what` is read as a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # other people's code, on other people's files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":.")
        raise UserError(f"{what} cannot be read ({reason}); set --data to {expected}") from None


def class_names(labels: Sequence[str], path: Path) -> tuple[str, ...]:
    """The distinct classes: numbers in their order, then text in its own.

    Raises:
        UserError: if there is one class alone.
    """
    classes = tuple(sorted(set(labels), key=_order))
    if len(classes) < 2:
        raise UserError(f"{path} holds the class {classes[0]!r} alone; set --data to examples of at least 2 classes")
    return classes


def _order(name: str) -> tuple[bool, int, str]:
    is_number = name.removeprefix("-").isdecimal()
    return not is_number, int(name) if is_number else 0, name


def class_indices(labels: Sequence[str], classes: Sequence[str], path: Path) -> Tensor:
    """(N,) long, the number of each row's class among `classes`.

    Raises:
        UserError: if a row is of none of them.
    """
    index = {name: i for i, name in enumerate(classes)}
    unknown = sorted(set(labels) - set(index))
    if unknown:
        raise UserError(f"the data in {path} hold the class {unknown[0]!r}, which the training data lack; set --data to data that have it")
    return torch.tensor([index[name] for name in labels], dtype=torch.long)


def split_rows(labels: Tensor, path: Path) -> dict[Split, Tensor]:
    """60% train, 20% validation, 20% test of each class.

    Raises:
        UserError: if there are too few rows for that.
    """
    rows = stratified_split(labels)
    if not all(len(chosen) for chosen in rows.values()):
        raise UserError(f"{path} holds {len(labels)} examples, too few for three splits; set --data to at least 4 of each class")
    return rows


def divided(labels: Mapping[Split, Tensor], path: Path) -> dict[Split, tuple[Split, Tensor]]:
    """For each split the part of the data that holds its rows, and their numbers there.

    What has no part is a sixth of each class of the training part; a training part alone is split 60 : 20 : 20.

    Args:
        labels: of each part that the data have, train among them; (N,) long.

    Raises:
        UserError: if there are too few rows for that.
    """
    if len(labels) == 1:
        return {split: ("train", rows) for split, rows in split_rows(labels["train"], path).items()}
    rows: dict[Split, tuple[Split, Tensor]] = {split: (split, torch.arange(len(part))) for split, part in labels.items()}
    for split in SPLIT_NAMES:
        if split not in rows:
            kept = stratified_split(labels["train"], (1 - HELD_OUT, 0.0, HELD_OUT))
            if not len(kept["test"]):
                raise UserError(
                    f"{path} holds {len(labels['train'])} training examples, too few to hold some out for {split}; "
                    "set --data to at least 4 of each class"
                )
            rows |= {"train": ("train", kept["train"]), split: ("train", kept["test"])}
    return rows


def digests(rows: Tensor) -> list[int]:
    """A number for each row (N, …), equal where rows are: products with fixed random weights, modulo 2^64."""
    flat = rows.flatten(1)
    width = -(-flat.shape[1] * flat.element_size() // 8)  # in words of 8 bytes
    weights = torch.randint(-(2**62), 2**62, (2, width), generator=torch.Generator().manual_seed(0)) * 2 + 1
    found: list[int] = []
    for some in flat.split(256):  # what the words take of memory is bounded
        words = torch.zeros(len(some), 8 * width, dtype=torch.uint8)
        content = some.contiguous().view(torch.uint8)
        words[:, : content.shape[1]] = content
        mixed = words.view(torch.int64) * weights[0]
        found += ((mixed ^ (mixed >> 32)) * weights[1]).sum(dim=1).tolist()
    return found


def repeats(rows: Mapping[Split, Sequence[Hashable]], path: Path, noun: str) -> list[str]:
    """Says how many validation and test rows are training rows as well.

    Args:
        rows: what is compared: a text, or a digest.
        noun: what a row is, such as "pictures".

    Raises:
        UserError: if all training rows are equal, since there is nothing in them to learn from.
    """
    known = set(rows["train"])
    if len(known) == 1:
        raise UserError(f"all {len(rows['train'])} training {noun} in {path} are equal; set --data to {noun} that differ")
    remarks = []
    for split in ("validation", "test"):
        count = sum(row in known for row in rows[split])
        if count:
            remarks.append(
                f"{count} of {len(rows[split])} {split} {noun} in {path} {'is' if count == 1 else 'are'} among the training {noun} as well"
            )
    return remarks
