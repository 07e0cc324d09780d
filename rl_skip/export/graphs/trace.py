"""Modules traced by torch.export and written as ONNX."""

import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rl_skip.core.errors import UserError
from rl_skip.core.tracing import part_by_part

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["OPSET", "require", "to_onnx", "traced"]

OPSET = 18
"""Of the ONNX operators that are used; with it onnxruntime 1.18 and newer run what is written."""
EXTRA = "pip install 'rl-skip[onnx]'"


def require(name: str) -> Any:
    """The package `name`, imported.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"writing ONNX needs {name}; {EXTRA}, or set --format torch-export") from None


def traced(module: nn.Module, given: Any, moving: Any, what: str) -> torch.export.ExportedProgram:
    """A module as a graph for every size of batch.

    Args:
        given: its argument, tensors in a dictionary, or one.
        moving: of the same form, the axes of each tensor that may have any size.
        what: the module, for messages.

    Raises:
        UserError: if it does something that a graph cannot.
    """
    sizes = _sizes(moving)
    try:
        with torch.no_grad(), _quiet(), part_by_part():
            return torch.export.export(module, (given,), dynamic_shapes=(sizes,), strict=False)
    except Exception as error:  # tracing runs the network's own code, which can fail in any way
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{what} cannot be traced by torch.export, so the network cannot be exported as a graph: {reason}") from error


def _sizes(moving: Any) -> Any:
    if isinstance(moving, Mapping):
        return {name: _sizes(axes) for name, axes in moving.items()}
    return dict.fromkeys(sorted(moving), torch.export.Dim.DYNAMIC)


def to_onnx(program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]) -> "ModelProto":
    """A traced module in ONNX, without inputs that nothing depends on, and without the traces of where it was made.

    Raises:
        UserError: if an operator has no counterpart.
    """
    for name in ("onnx", "onnxscript"):
        require(name)
    try:
        with _quiet():
            made = torch.onnx.export(program, (), input_names=inputs, output_names=outputs, opset_version=OPSET, verbose=False, dynamo=True)
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"the network uses an operator that ONNX lacks: {reason}; set --format torch-export") from error
    assert made is not None
    proto: ModelProto = made.model_proto
    graph = proto.graph
    used = {name for node in graph.node for name in node.input}
    kept = [value for value in graph.input if value.name in used]
    del graph.input[:]
    graph.input.extend(kept)
    for node in (*graph.node, *(node for function in proto.functions for node in function.node)):
        del node.metadata_props[:]
    for holder in (proto, graph, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del holder.metadata_props[:]
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, the exporter says nothing of operators of packages that are not there."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "torch.onnx._internal.exporter._registration")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
