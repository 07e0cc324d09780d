"""The parts of a routed network as modules from tensors to tensors, which can be traced: everything that they compute is the code that trained it.

A state is a dictionary of tensors: those of a `Carry`, and of each row what it has spent, its price, and what the policy saw at its last look.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from rl_skip.core.features import View
from rl_skip.core.inputs import Inputs
from rl_skip.core.policy import JumpPolicy, ObservationLayout
from rl_skip.core.stack import Carry, LayerStack
from rl_skip.export.graphs.carried import Carried

__all__ = ["ANSWERS", "FIRST", "LOOK", "NEXT", "PRICE", "SPENT", "AnswerGraph", "BeginGraph", "LayerGraph", "RouteGraph", "State", "reads_at_exits"]

State = dict[str, Tensor]
LOOK, FIRST = "look.", "first."
"""Before the names of features: what they saw at the last look, and what a policy that looks at the input alone saw of it."""
PRICE, SPENT, NEXT, ANSWERS = "price", "spent", "next_layer", "answers"


class _Looked:
    """What a `View` looks at, of a batch whose rows have all run the same layer."""

    def __init__(self, stack: LayerStack, layout: ObservationLayout, carry: Carry, i: int, state: State, spent: Tensor) -> None:
        self.stack, self.layout, self.carry, self.price, self._i = stack, layout, carry, state[PRICE], i
        self.spent = spent.unsqueeze(1)  # (R, 1)
        self.position = torch.full_like(self.price, i, dtype=torch.long)
        self._before = {name.removeprefix(LOOK): values for name, values in state.items() if name.startswith(LOOK)}
        self.now: State = {}
        """What the features saw at this look."""

    @cached_property
    def answers(self) -> Tensor:
        """(R, ...), what the rows are answered where they leave here."""
        assert self.stack.readouts is not None
        return self.stack.look(self.stack.readouts.each[self._i], self.carry, None)

    def said(self, rows: Tensor) -> Tensor:
        return self.answers

    def layer_of(self, rows: Tensor) -> int:
        return self._i

    def previous(self, name: str, rows: Tensor, value: Tensor) -> Tensor:
        self.now[LOOK + name] = value
        return self._before.get(name, torch.zeros_like(value))


def _rows(like: Tensor) -> Tensor:
    """(R,) long, the numbers of all rows."""
    return torch.arange(like.shape[0], device=like.device)


def reads_at_exits(policy: JumpPolicy) -> bool:
    """Whether what rows are answered where they leave was looked at anyway, to decide whether they leave."""
    return policy.rules.allow_exit and policy.rules.layout.reads


class BeginGraph(nn.Module):
    """Inputs → the state before layer 0.

    Args:
        outputs: the tensors of the carry that are wanted.
        looks: what the features of a look are like, (R, ...) each by name.
    """

    def __init__(self, stack: LayerStack, policy: JumpPolicy, carried: Carried, outputs: Sequence[str], looks: State) -> None:
        super().__init__()
        self.stack, self.policy, self._carried, self._outputs, self._looks = stack, policy, carried, outputs, looks

    def forward(self, inputs: Inputs) -> State:
        carry = self.stack.begin(inputs)
        state = self._carried.of(carry)
        begun = {name: state[name] for name in self._outputs}
        nothing = torch.zeros_like(carry.full_flops)  # (B,)
        begun[SPENT] = nothing
        for name, like in self._looks.items():
            begun[name] = torch.zeros(nothing.shape[0], *like.shape[1:], dtype=like.dtype, device=nothing.device)
        rules = self.policy.rules
        if rules.scope == "input":
            view = View(_Looked(self.stack, rules.layout, carry, 0, {PRICE: nothing}, nothing), _rows(nothing))
            begun |= {FIRST + part.name: rules.layout.read_feature(part, view) for part in rules.layout.parts if part.of_state}
        return begun


class LayerGraph(nn.Module):
    """State → the state after layer `i`, with the next layer of each row, and with the answers of those that leave where these are known."""

    def __init__(self, stack: LayerStack, policy: JumpPolicy, carried: Carried, i: int) -> None:
        super().__init__()
        self.stack, self.policy, self._carried, self.i = stack, policy, carried, i

    def forward(self, state: State) -> State:
        stack, rules, i = self.stack, self.policy.rules, self.i
        carry = self._carried.carry(state)
        spent = state[SPENT] + stack.costs.layer(i, stack.run(i, carry, None).float())  # (R,)
        rows = _rows(spent)
        if i == stack.depth - 1:
            return {ANSWERS: stack.finish(carry), SPENT: spent, NEXT: torch.full_like(rows, stack.depth)}
        moved = {"hidden": carry.hidden}
        if not rules.choices[i]:
            return {**moved, SPENT: spent, NEXT: rules.next_layer(i, torch.zeros_like(rows))}
        looked = _Looked(stack, rules.layout, carry, i, state, spent)
        first = {name.removeprefix(FIRST): values for name, values in state.items() if name.startswith(FIRST)}
        logits = self.policy(rules.layout.read(View(looked, rows), first))  # (R, J + 1)
        spent = spent + stack.costs.part("decision", rules.decision_flops / carry.full_flops)
        answers = {ANSWERS: looked.answers} if reads_at_exits(self.policy) else {}
        return {**moved, **looked.now, **answers, SPENT: spent, NEXT: rules.next_layer(i, self.policy.likeliest(logits, state[PRICE]))}


class AnswerGraph(nn.Module):
    """State → the answers of rows that leave after layer `i`; for policies that decide without looking at these."""

    def __init__(self, stack: LayerStack, carried: Carried, i: int) -> None:
        super().__init__()
        self.stack, self._carried, self.i = stack, carried, i

    def forward(self, state: State) -> State:
        stack, carry, spent = self.stack, self._carried.carry(state), state[SPENT]
        if stack.readouts is None:
            return {ANSWERS: stack.finish(carry), SPENT: spent + 0.0}
        flops = stack.answer_flops(stack.readouts, carry, _rows(spent), False)
        spent = spent + stack.costs.part("readout", flops / carry.full_flops)
        return {ANSWERS: stack.read(stack.readouts.each[self.i], carry, None), SPENT: spent}


class RouteGraph(nn.Module):
    """Inputs → outputs, by a route that all rows share; no policy runs.

    Args:
        stack: the network.
        layers: those that run, ascending, layer 0 first; after the last of them its readout answers, where there is one.
    """

    def __init__(self, stack: LayerStack, layers: Sequence[int]) -> None:
        super().__init__()
        self.stack, self.layers = stack, tuple(layers)

    def forward(self, inputs: Inputs) -> Tensor:
        stack, last = self.stack, self.layers[-1]
        carry = stack.begin(inputs)
        for i in self.layers:
            stack.run(i, carry, None)
        if stack.readouts is None or last == stack.depth - 1:
            return stack.finish(carry)
        return stack.read(stack.readouts.each[last], carry, None)
