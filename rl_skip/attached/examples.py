"""Batches: one made up for a model, to try it on, and those of a person's loader."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.finding import configured
from rl_skip.core.errors import UserError
from rl_skip.core.inputs import Inputs, map_inputs, row_count

__all__ = ["IGNORED", "call", "checked_labels", "logits_of", "made_up", "split_batch"]

IGNORED = -100
"""The label of a row that is padding, as in transformers and in PyTorch's cross-entropy."""
LABELS = ("labels", "label")
ROWS, TOKENS, IMAGE = 2, 4, 224


def made_up(model: nn.Module) -> Inputs:
    """Two rows that a model from transformers can be called on.

    Raises:
        UserError: for a model whose inputs are not known, or of waveforms, whose length says what a readout costs.
    """
    name = getattr(model, "main_input_name", None) if hasattr(model, "config") else None
    if name == "input_ids":
        padding = configured(model, "pad_token_id")
        token = 1 if padding != 1 else 2
        return {"input_ids": torch.full((ROWS, TOKENS), token), "attention_mask": torch.ones(ROWS, TOKENS, dtype=torch.long)}
    if name == "pixel_values":
        size, channels = configured(model, "image_size") or IMAGE, configured(model, "num_channels") or 3
        height, width = (size, size) if isinstance(size, int) else size
        return {"pixel_values": torch.zeros(ROWS, channels, height, width)}
    unknown = "what a readout of waveforms costs depends on their length" if name == "input_values" else "what it is called with is not known"
    raise UserError(f"no batch can be made up for a {type(model).__name__}, {unknown}: give one, attach(model, SkipConfig(…), example=batch)")


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Calls the model on a tensor, or on a dictionary of its arguments."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    moved = map_inputs(inputs, lambda tensor: tensor.to(device))
    return model(moved) if isinstance(moved, Tensor) else model(**moved)


def logits_of(outputs: Any, model: nn.Module) -> Tensor:
    """(B, C), what the model answers of B rows.

    Raises:
        UserError: where it returns none, or those of tokens.
    """
    name, logits = type(model).__name__, getattr(outputs, "logits", outputs)
    if not isinstance(logits, Tensor):
        raise UserError(f"{name} returned a {type(outputs).__name__} without logits: take a model with a head, called with return_dict=True")
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise UserError(f"{name} returns logits of shape {tuple(logits.shape)}, expected (rows, classes) with at least 2 classes: take a classifier")
    return logits


def split_batch(batch: Any) -> tuple[Inputs, Tensor]:
    """The inputs of a loader's batch, and its labels.

    Args:
        batch: the model's arguments by name, with labels; or a pair (inputs, labels).

    Raises:
        UserError: for anything else.
    """
    if isinstance(batch, Mapping):
        label = next((name for name in LABELS if name in batch), None)
        inputs: Any = {name: value for name, value in batch.items() if name not in LABELS and isinstance(value, Tensor)}
        labels = None if label is None else batch[label]
    else:
        inputs, labels = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (None, None)
        inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
    if labels is None or not isinstance(inputs, Tensor | dict):
        got = f"got a {type(batch).__name__}"
        raise UserError(f"a batch is the model's arguments by name with 'labels' among them, or a pair (inputs, labels); {got}")
    labels = torch.as_tensor(labels)
    if labels.shape[:1] != (row_count(inputs),):
        raise UserError(f"a batch has {row_count(inputs)} rows and labels of shape {tuple(labels.shape)}; give one for each row")
    return inputs, labels


def checked_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """(B,) long, labels that fit logits (B, C).

    Raises:
        UserError: for another shape or type, and for a class that the model does not have.
    """
    rows, classes = logits.shape
    if labels.shape != (rows,) or labels.is_floating_point() or labels.is_complex():
        kind = f"shape {tuple(labels.shape)} and type {labels.dtype}"
        raise UserError(f"the labels have {kind}, expected a class number for each of {rows} rows: shape ({rows},), of integers")
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels >= classes))]
    if len(wrong) > 0:
        raise UserError(f"a label is {int(wrong[0])}, and the model has {classes} classes, 0 to {classes - 1}; {IGNORED} marks a row that is padding")
    return labels.long()
