"""Graphs of routes that all rows share: one fixed route, or leaving after each layer. No policy is in them."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch

from rl_skip.core.errors import UserError
from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import Inputs
from rl_skip.core.stack import LayerStack
from rl_skip.export.graphs.carried import probes
from rl_skip.export.graphs.folder import About, checked_batches, difference, moving_inputs, names_of, numpy_inputs, write_folder
from rl_skip.export.graphs.modules import ANSWERS, RouteGraph
from rl_skip.export.graphs.trace import require, to_onnx, traced
from rl_skip.export.pruned import checked_layers

__all__ = ["DESCRIPTION", "GraphFormat", "every_exit", "write_routes"]

DESCRIPTION = "graphs.json"
GraphFormat = Literal["torch-export", "onnx"]


def every_exit(depth: int) -> dict[str, tuple[int, ...]]:
    """The routes that end after each layer, by the names of their graphs."""
    return {f"exit_{i}": tuple(range(i + 1)) for i in range(depth)}


def write_routes(
    folder: Path, stack: LayerStack, inputs: Inputs, routes: Mapping[str, Sequence[int]], form: GraphFormat, about: About
) -> dict[str, Any]:
    """Writes a graph for each route, once it has answered like the network on that route.

    Args:
        folder: what to make; it must not exist.
        stack: the network, in evaluation mode on the CPU.
        inputs: rows of its data, on which it is traced and checked.
        routes: the layers of each, ascending, by the names of their graphs.
        form: "torch-export" writes `NAME.pt2`, for `torch.export.load`; "onnx" `NAME.onnx`.
        about: what stands in the description.

    Raises:
        UserError: if the folder exists, a package is missing, a route is none, or the network cannot be exported.
    """
    if type(stack).on_jump is not LayerStack.on_jump or stack.has_memory:
        raise UserError(f"a {type(stack).__name__} has a working memory or marks its jumps, which no graph here can hold; prune it: rl-skip prune")
    first, second = probes(inputs)
    moving, files = moving_inputs(first, second), {}
    programs: dict[str, torch.export.ExportedProgram] = {}
    for name, layers in routes.items():
        graph = RouteGraph(stack, checked_layers(layers, stack.depth))
        programs[name] = traced(graph, first, moving, f"the route {','.join(map(str, layers))}")
        files[f"{name}.{'onnx' if form == 'onnx' else 'pt2'}"] = _written(programs[name], names_of(first), form)

    def check(new: Path) -> float:
        largest = 0.0
        for name, layers in routes.items():
            route = torch.zeros(stack.depth, dtype=torch.bool)
            route[list(layers)] = True
            for rows in checked_batches(inputs):
                with torch.no_grad():
                    expected = routed_forward(stack, route, rows).outputs
                    answers = _run_onnx(new / f"{name}.onnx", rows) if form == "onnx" else programs[name].module()(rows)
                largest = max(largest, difference(name, answers, expected))
        return largest

    more = {"format": form, "routes": {name: list(layers) for name, layers in routes.items()}}
    return write_folder(folder, DESCRIPTION, files, first, about, more, check)


def _written(program: torch.export.ExportedProgram, inputs: Sequence[str], form: GraphFormat) -> bytes:
    if form == "onnx":
        require("onnxruntime")
        return to_onnx(program, inputs, [ANSWERS]).SerializeToString()
    opened = BytesIO()
    torch.export.save(program, opened)
    return opened.getvalue()


def _run_onnx(file: Path, inputs: Inputs) -> Any:
    graph = require("onnxruntime").InferenceSession(file)
    return graph.run([ANSWERS], numpy_inputs(inputs))[0]
