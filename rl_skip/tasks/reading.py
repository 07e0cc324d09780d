"""What the tasks that read files share: errors in one line, classes and splits."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from rl_skip.core.errors import UserError
from rl_skip.core.task import Split, stratified_split

__all__ = ["class_indices", "class_names", "reading", "split_rows"]


@contextmanager
def reading(what: Path | str, expected: str) -> Iterator[None]:
    """Raises what goes wrong while `what` is read as a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # other people's readers, on other people's files
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
        raise UserError(f"the test data in {path} hold the class {unknown[0]!r}, which the training data lack; set --data to data that have it")
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
