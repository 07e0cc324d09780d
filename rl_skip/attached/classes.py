"""The classes of a model: which of them are the data's, and under which names they are saved."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from rl_skip.core.errors import UserError

__all__ = ["Head", "has_classifier", "name_classes", "order_of_model"]

CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification", "ForAudioClassification")
Head = Literal["standard", "mean", "attention"]
"""What a model without a classifier gets."""
SHOWN = 6
"""Names of classes in a message."""


def has_classifier(config: Any) -> bool:
    """Whether the model of a configuration was saved with a classifier of its own."""
    return next(iter(config.architectures or ()), "").endswith(CLASSIFIERS)


def name_classes(config: Any, classes: Sequence[str]) -> None:
    """Writes the names of the classes, each row of one, into a model's configuration."""
    config.id2label, config.label2id = dict(enumerate(classes)), {name: i for i, name in enumerate(classes)}
    config.problem_type = "single_label_classification"


def order_of_model(classes: Sequence[str], config: Any, folder: str, label_order: str | None = None) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The order that the classes of the data have in a model. One whose classifier is still to be learned takes them as they are.

    Args:
        classes: names of the data's classes.
        config: the model's configuration.
        folder: where the model is, for messages.
        label_order: what --label-order says: the data's classes in the model's order, with commas between; None: they are known by name.

    Returns:
        For each class of the data its number in the model, and the data's names of the classes in the model's order.

    Raises:
        UserError: if the model has another number of classes, or a classifier of which it is not known which class is which.
    """
    if not has_classifier(config):
        if label_order is not None:
            raise UserError(f"the model in {folder} has no classifier yet, so its classes have no order; leave out --label-order")
        return torch.arange(len(classes)), tuple(classes)
    if config.num_labels != len(classes):
        raise UserError(
            f"the model in {folder} has {config.num_labels} classes, the data have {len(classes)}; set --data to data with as many, "
            "or --model to a backbone without a head"
        )
    called = [str(config.id2label[i]) for i in range(len(classes))]
    names = _recognised(classes, called) if label_order is None else _ordered(classes, label_order)
    if names is None:
        raise UserError(
            f"the model in {folder} calls its classes {_listed(called)}, the data theirs {_listed(classes)}, so it is not known which is which; "
            f"set --label-order to the data's classes in the model's order, with commas between them: {','.join(classes[:2])},…"
        )
    return torch.tensor([names.index(name) for name in classes]), names


def _recognised(classes: Sequence[str], named: Sequence[str]) -> tuple[str, ...] | None:
    """The data's names in the model's order, where both have the same names, perhaps in another case."""
    for plain in (str, str.lower):
        known = {plain(name): name for name in classes}
        if len(known) == len(classes) and {plain(name) for name in named} == known.keys():
            return tuple(known[plain(name)] for name in named)
    return None


def _ordered(classes: Sequence[str], label_order: str) -> tuple[str, ...]:
    """The data's names as --label-order has them."""
    names = tuple(name.strip() for name in label_order.split(","))
    if sorted(names) != sorted(classes):
        raise UserError(f"--label-order names {_listed(names)}, the classes of the data are {_listed(classes)}; name each of these once")
    return names


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
