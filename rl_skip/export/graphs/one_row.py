"""A routed network as one ONNX graph for one row: every layer stands in an `If`, which runs it where it is the row's next."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rl_skip.core.inputs import Inputs
from rl_skip.export.graphs.folder import About, same_routes, single_rows, write_folder
from rl_skip.export.graphs.layer_graphs import BEGIN, LAYER, NEW, Graphs
from rl_skip.export.graphs.modules import ANSWERS, NEXT, PRICE, SPENT
from rl_skip.export.graphs.routes import DESCRIPTION
from rl_skip.export.graphs.trace import require

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

__all__ = ["ONE_ROW", "one_row_graph", "write_one_row"]

ONE_ROW = "one_row.onnx"
ROUTE, COMPUTE = "route", "compute"


def write_one_row(folder: Path, graphs: Graphs, inputs: Inputs, about: About) -> dict[str, Any]:
    """Writes `one_row.onnx`, inputs and a price (1,) → answers (1, ...), route (1, L) and compute (1,), once it has answered like the network.

    Args:
        folder: what to make; it must not exist.
        graphs: those of the network.
        inputs: rows of its data, on which the graph is checked.
        about: what stands in the description.

    Raises:
        UserError: if the folder exists, a package is missing, or the graph answers otherwise.
    """
    runtime = require("onnxruntime")

    def check(new: Path) -> float:
        graph = runtime.InferenceSession(new / ONE_ROW)

        def run(rows: dict[str, Any], price: float) -> tuple[Any, Any]:
            answers, route, _ = graph.run([ANSWERS, ROUTE, COMPUTE], {**rows, PRICE: torch.tensor([price]).numpy()})
            return answers, route

        return same_routes(graphs.model, run, single_rows(inputs))

    alone = one_row_graph(graphs)
    graphs.weights.put_back(alone)
    return write_folder(folder, DESCRIPTION, {ONE_ROW: alone.SerializeToString()}, graphs.first, about, {"format": "onnx"}, check)


def one_row_graph(graphs: Graphs) -> "ModelProto":
    """The graphs of a routed network as one, for one row at a time, which refers to their weights."""
    onnx = require("onnx")
    helper, begin, depth = onnx.helper, graphs.by_file[BEGIN], graphs.stack.depth
    here = _Placed("begin/", begin, {})
    nodes, weights = here.nodes, here.weights
    state = {**here.outputs, PRICE: PRICE}
    nothing = {name: torch.zeros_like(like[:1]) for name, like in graphs.looks.items()} | {ANSWERS: torch.zeros(1, *graphs.answer_shape)}
    constants = {f"no/{name}": zeros for name, zeros in nothing.items()}
    constants |= {f"layer/{i}": torch.tensor([i]) for i in range(depth + any(graphs.answers))}
    weights += [onnx.numpy_helper.from_array(tensor.numpy(), name) for name, tensor in constants.items()]
    state |= {name: f"no/{name}" for name in nothing} | {NEXT: "layer/0"}
    changing = [name for name in state if any(name in _outputs(graphs.by_file[LAYER.format(i)]) for i in range(depth))]
    for i in range(depth):
        asked = f"asked/{i}"
        nodes.append(helper.make_node("Equal", [state[NEXT], f"layer/{i}"], [asked]))  # (1,)
        after = {name: f"after/{i}/{name}" for name in changing}
        branches = {"then_branch": _layer(graphs, i, state, changing, weights), "else_branch": _unchanged(f"passed/{i}/", state, changing)}
        nodes.append(helper.make_node("If", [asked], list(after.values()), **branches))
        state |= after
    nodes.append(helper.make_node("Concat", [f"asked/{i}" for i in range(depth)], ["asked"], axis=0))
    nodes.append(helper.make_node("Reshape", ["asked", "route/shape"], [ROUTE]))
    weights.append(onnx.numpy_helper.from_array(torch.tensor([1, depth]).numpy(), "route/shape"))
    nodes += [helper.make_node("Identity", [state[name]], [said]) for name, said in ((ANSWERS, ANSWERS), (SPENT, COMPUTE))]
    number, flag = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
    price = helper.make_tensor_value_info(PRICE, number, [1])
    shapes = ((ANSWERS, number, [1, *graphs.answer_shape]), (ROUTE, flag, [1, depth]), (COMPUTE, number, [1]))
    outputs = [helper.make_tensor_value_info(*shape) for shape in shapes]
    graph = helper.make_graph(nodes, "one_row", [*begin.graph.input, price], outputs, weights)
    return helper.make_model(graph, opset_imports=begin.opset_import, ir_version=begin.ir_version)


def _layer(graphs: Graphs, i: int, state: Mapping[str, str], changing: Sequence[str], outer: "list[TensorProto]") -> Any:
    """The branch that runs layer `i`, and where rows that leave are answered by a graph of its own, that one in a branch within.

    Its weights are added to those of the `outer` graph, which branches see: in a branch a runtime takes none that lie elsewhere.
    """
    helper, name = require("onnx").helper, LAYER.format(i)
    placed = _Placed(f"{name}/", graphs.by_file[name], state)
    nodes, after = placed.nodes, {**state, **placed.outputs}
    outer += placed.weights
    file = graphs.answers[i]
    if file is not None:
        answered = _Placed(f"{name}/{file}/", graphs.by_file[file], after)
        names = [ANSWERS, SPENT]
        outer += answered.weights
        then = _branch(answered.nodes, [answered.outputs[name] for name in names])
        nodes.append(helper.make_node("Equal", [after[NEXT], f"layer/{graphs.stack.depth}"], [f"{name}/left"]))
        said = {key: f"{name}/answered/{key}" for key in names}
        branches = {"then_branch": then, "else_branch": _unchanged(f"{name}/stays/", after, names)}
        nodes.append(helper.make_node("If", [f"{name}/left"], list(said.values()), **branches))
        after |= said
    passed = [(key, f"{name}/kept/{key}") for key in changing if after[key] == state[key]]  # a branch returns no outer tensor as it is
    nodes += [helper.make_node("Identity", [state[key]], [kept]) for key, kept in passed]
    after |= dict(passed)
    return _branch(nodes, [after[key] for key in changing])


def _unchanged(prefix: str, state: Mapping[str, str], names: Sequence[str]) -> Any:
    nodes = [require("onnx").helper.make_node("Identity", [state[name]], [prefix + name]) for name in names]
    return _branch(nodes, [prefix + name for name in names])


def _branch(nodes: "Sequence[NodeProto]", outputs: Sequence[str]) -> Any:
    onnx = require("onnx")
    values = [onnx.ValueInfoProto(name=name) for name in outputs]  # of types that are found by inference
    return onnx.helper.make_graph(nodes, "branch", [], values)


def _outputs(proto: "ModelProto") -> list[str]:
    return [value.name.removeprefix(NEW) for value in proto.graph.output]


class _Placed:
    """The nodes and weights of a graph with names of their own, its inputs those of the graph around it.

    Args:
        prefix: before its names.
        given: what the graph around it calls the tensors that are its inputs.
    """

    def __init__(self, prefix: str, proto: "ModelProto", given: Mapping[str, str]) -> None:
        self._prefix, self._inputs = prefix, {value.name: given.get(value.name, value.name) for value in proto.graph.input}
        graph = type(proto.graph)()
        graph.CopyFrom(proto.graph)
        self._rename(graph)
        self.nodes, self.weights = list(graph.node), list(graph.initializer)
        self.outputs = {value.name.removeprefix(NEW): prefix + value.name for value in proto.graph.output}

    def _named(self, name: str) -> str:
        return self._inputs.get(name, self._prefix + name) if name else name

    def _rename(self, graph: "GraphProto") -> None:
        """Renames all that a graph names, and the graphs within it, which see its tensors."""
        for named in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            named.name = self._named(named.name)
        for node in graph.node:
            node.name = self._prefix + node.name
            for names in (node.input, node.output):
                names[:] = [self._named(name) for name in names]
            for attribute in node.attribute:
                for within in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                    self._rename(within)
