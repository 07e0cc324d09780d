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
from rl_skip.export.graphs.external import WEIGHTS, ExternalWeights
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
        form: "torch-export" writes `NAME.pt2`, for `torch.export.load`; "onnx" `NAME.onnx`, and where there are several `weights.data`.
        about: what stands in the description.

    Raises:
        UserError: if the folder exists, a package is missing, a route is none, or the network cannot be exported.
    """
    if type(stack).on_jump is not LayerStack.on_jump or stack.has_memory:
        raise UserError(f"a {type(stack).__name__} has a working memory or marks its jumps, which no graph here can hold; prune it: rl-skip prune")
    first, second = probes(inputs)
    moving = moving_inputs(first, second)
    programs: dict[str, torch.export.ExportedProgram] = {}
    for name, layers in routes.items():
        graph = RouteGraph(stack, checked_layers(layers, stack.depth))
        programs[name] = traced(graph, first, moving, f"the route {','.join(map(str, layers))}")
    files = _onnx_files(programs, names_of(first)) if form == "onnx" else {f"{name}.pt2": _saved(program) for name, program in programs.items()}

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


def _onnx_files(programs: Mapping[str, torch.export.ExportedProgram], inputs: Sequence[str]) -> dict[str, bytes]:
    """The graphs; where there are several, their weights, which most of them have in common, lie in a file beside them."""
    require("onnxruntime")
    protos = {f"{name}.onnx": to_onnx(program, inputs, [ANSWERS]) for name, program in programs.items()}
    weights = ExternalWeights()
    if len(protos) > 1:
        for proto in protos.values():
            weights.take(proto)
    files = {name: proto.SerializeToString() for name, proto in protos.items()}
    return {**files, WEIGHTS: bytes(weights.content)} if weights.content else files


def _saved(program: torch.export.ExportedProgram) -> bytes:
    opened = BytesIO()
    torch.export.save(program, opened)
    return opened.getvalue()


def _run_onnx(file: Path, inputs: Inputs) -> Any:
    graph = require("onnxruntime").InferenceSession(file)
    return graph.run([ANSWERS], numpy_inputs(inputs))[0]
