"""The graphs of a routed network: one for what comes before the layers and one for each of them.

The graph of a layer holds its readout, what the policy sees, the policy and the cost too, traced from the code that trained them: who runs it has
nothing to compute, and a decision costs no call of its own.
"""

from typing import TYPE_CHECKING

import torch

from rl_skip.core.errors import UserError
from rl_skip.core.features import FEATURES
from rl_skip.core.inputs import Inputs
from rl_skip.core.stack import LayerStack
from rl_skip.export.graphs.carried import Carried, probes
from rl_skip.export.graphs.external import ExternalWeights
from rl_skip.export.graphs.folder import moving_inputs, names_of
from rl_skip.export.graphs.modules import ANSWERS, FIRST, LOOK, PRICE, SPENT, AnswerGraph, BeginGraph, LayerGraph, State, reads_at_exits
from rl_skip.export.graphs.trace import to_onnx, traced
from rl_skip.export.policy_folder import SkipModel

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["BEGIN", "LAYER", "NEW", "Graphs", "check_exportable"]

NEW = "new."
"""Before the names of what a graph makes of a state: within it, what comes out cannot be called as what went in."""
BEGIN, LAYER, ANSWER, FINISH = "begin.onnx", "layer_{}.onnx", "readout_{}.onnx", "finish.onnx"


def check_exportable(model: SkipModel) -> None:
    """Refuses what no pack can hold.

    Raises:
        UserError: naming it.
    """
    stack, layout = model.stack, model.policy.rules.layout
    if stack.has_memory or type(stack).on_jump is not LayerStack.on_jump:
        raise UserError(f"a {type(stack).__name__} has a working memory or marks its jumps, which a pack cannot hold; train with --stack blocks")
    if not stack.looks_at_answers or stack.answers_late:
        raise UserError("a language model answers token by token and keeps a cache, which a pack cannot hold; use rl_skip.attach")
    for feature in layout.features:
        if feature.name not in FEATURES.names() and not feature.at_once:
            raise UserError(f"the feature {feature.name!r} is your own and may read what graphs lack; set at_once in it if it reads the view alone")


class Graphs:
    """The graphs of a routed network, by the names of their files.

    Args:
        model: the network and its policy, in evaluation mode on the CPU.
        inputs: at least three rows of its data, to trace it on.

    Raises:
        UserError: if the network cannot be exported.
    """

    def __init__(self, model: SkipModel, inputs: Inputs) -> None:
        check_exportable(model)
        self.model, self.stack, self.policy = model, model.stack, model.policy
        self.first, self.second = probes(inputs)
        with torch.no_grad():
            self.carried = Carried(self.stack, self.first, self.second)
            self._check_layers()
            begun = BeginGraph(self.stack, self.policy, self.carried, [], {})(self.first)
            self._seen = {name: tensor for name, tensor in begun.items() if name.startswith(FIRST)}
            self.looks: State = {}
            """What the features of a look keep for the next, by name, of the first probe."""
            self.looks = self._look()
            self.answer_shape = tuple(LayerGraph(self.stack, self.policy, self.carried, self.stack.depth - 1)(self._state())[ANSWERS].shape[1:])
            """Of what one row is answered."""
        self.weights = ExternalWeights()
        """To which the graphs refer."""
        self.by_file: dict[str, ModelProto] = {}
        self.answers: list[str | None] = []
        """For each layer, the file of the graph that answers rows that leave after it; None: the layer's own does."""
        self._build()
        for proto in self.by_file.values():
            self.weights.take(proto)

    @property
    def shared(self) -> list[str]:
        """What the graph before the layers returns that is the same for all rows."""
        outputs = [value.name.removeprefix(NEW) for value in self.by_file[BEGIN].graph.output]
        return [name for name in outputs if name in self.carried.tensors and not self.carried.has_rows(name)]

    def _build(self) -> None:
        depth, rules = self.stack.depth, self.policy.rules
        for i in range(depth):
            self.by_file[LAYER.format(i)] = self._state_graph(LayerGraph(self.stack, self.policy, self.carried, i), f"layer {i}")
            answered = i == depth - 1 or reads_at_exits(self.policy) or not rules.allow_exit
            file = None if answered else FINISH if self.stack.readouts is None else ANSWER.format(i)
            if file is not None and file not in self.by_file:
                self.by_file[file] = self._state_graph(AnswerGraph(self.stack, self.carried, i), "what comes after the layers")
            self.answers.append(file)
        used = {value.name for proto in self.by_file.values() for value in proto.graph.input}
        begin = BeginGraph(self.stack, self.policy, self.carried, [name for name in self.carried.tensors if name in used], self.looks)
        with torch.no_grad():
            outputs = [NEW + name for name in begin(self.first)]
        program = traced(begin, self.first, moving_inputs(self.first, self.second), "what comes before the layers")
        self.by_file[BEGIN] = to_onnx(program, names_of(self.first), outputs)

    def _state(self) -> State:
        rows = self.carried.tensors["full_flops"].new_zeros(self.carried.tensors["hidden"].shape[0])
        return {**self.carried.tensors, **self.looks, **self._seen, SPENT: rows, PRICE: rows + self.model.price}

    def _state_graph(self, module: LayerGraph | AnswerGraph, what: str) -> "ModelProto":
        with torch.no_grad():
            state = self._state()
            outputs = [NEW + name for name in module(state)]
        moving = {name: self.carried.axes.get(name, frozenset({0})) for name in state}
        return to_onnx(traced(module, state, moving, what), list(state), outputs)

    def _look(self) -> State:
        """What the features of a look keep for the next, of the first probe."""
        choices = [i for i, choice in enumerate(self.policy.rules.choices) if choice]
        kept = LayerGraph(self.stack, self.policy, self.carried, choices[0])(self._state())
        return {name: values for name, values in kept.items() if name.startswith(LOOK)}

    def _check_layers(self) -> None:
        """Refuses layers that hand on more than the hidden state."""
        given = self.carried.tensors
        for i in range(self.stack.depth):
            carry = self.carried.carry(given)
            self.stack.run(i, carry, None)
            if more := [place for place in self.carried.changed(carry, given) if place != "hidden"]:
                raise UserError(f"layer {i} hands on {more[0]} besides the hidden state, which a pack cannot hold")
