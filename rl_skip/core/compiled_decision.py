"""A look and a decision as one compiled function, for batches of any size: what a policy does between two layers, where no gradient is kept.

The function is recorded from the modules and features that decide without it, so there is no second definition of what a policy sees or does. It is
compiled ahead of time (AOTInductor): the checks that `torch.compile` makes before each call take longer than a decision.
"""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch._inductor import aoti_compile_and_package, aoti_load_package, standalone_compile
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch.export import Dim, ExportedProgram, export
from torch.func import functional_call

from rl_skip.core.errors import UserError
from rl_skip.core.features import View
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.routing import RoutingState
from rl_skip.core.stack import Carry, LayerStack
from rl_skip.core.tracing import RECORDING

__all__ = ["CompiledDecision", "Decided", "compile_policy"]

LEAVE_OUT = "leave compile() out"
ROWS = 3
"""On which the function is recorded: PyTorch takes a size of 1 for a constant."""
MOST_SAID = 300
"""Characters of what the compiler says, which can be pages."""
HIDDEN, MASK, SAID = 2, 3, 5
"""Where these are in what a decision is made of, see `_Parts.forward`."""


def compile_policy(policy: JumpPolicy, stack: LayerStack, layers: bool) -> None:
    """From now on, what the policy sees and chooses after a layer is one compiled function where no gradient is kept.

    It is compiled when it is first needed, which takes a minute, for any number of rows. Copies of the policy decide without.

    Args:
        stack: whose rows it routes.
        layers: whether `torch.compile` makes one function of each layer too, for any number of rows; PyTorch makes another for a single one.

    Raises:
        UserError: where there is no C++ compiler, the policy cannot be compiled, or the stack does not know which of its modules its layers are.
    """
    compiled = CompiledDecision(policy)
    if layers and not stack.layer_modules():
        raise UserError(f"a {type(stack).__name__} does not know which of its modules are its layers, so none is compiled; leave layers=True out")
    policy.compiled = compiled
    for layer in stack.layer_modules() if layers else []:
        layer.compile(dynamic=True)


def _check_compiler() -> None:
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError(f"compiling takes a C++ compiler, and none was found; install g++, set CXX to one, or {LEAVE_OUT}") from None


class Decided(NamedTuple):
    """What a policy saw of R rows, and chose for them."""

    observation: Tensor
    """(R, S)."""
    logits: Tensor
    """(R, J + 1)."""
    jumps: Tensor
    """(R,) long, the likeliest."""


class CompiledDecision:
    """Decides as the policy does, in one call. Weights are read anew in each; what else features hold is taken as it is when they are compiled.

    One function is made, when it is first needed, for each stack and kind of hidden state; it takes any number of rows, and any number of tokens of
    hidden states (B, T, D) where the readouts do.

    Args:
        policy: who decides.

    Raises:
        UserError: where there is no C++ compiler, or the policy is no function of what there is to see after one layer.
    """

    def __init__(self, policy: JumpPolicy) -> None:
        _check_compiler()
        if policy.rules.scope != "state":
            raise UserError(f"a policy that looks at the input alone looks once, and is not compiled; {LEAVE_OUT}")
        for feature in policy.rules.layout.parts:
            if not feature.at_once:
                advice = f"set at_once = True in it where it reads a view's own properties alone, or {LEAVE_OUT}"
                raise UserError(f"the feature {feature.name!r} may read what changes while rows are routed, so it is not compiled; {advice}")
        self.policy = policy
        self.functions: dict[tuple[Any, ...], _Function] = {}
        """Those that were compiled so far."""
        self._latest: tuple[Callable[[], RoutingState | None], bool, Any] = (lambda: None, False, None)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the policy decides without."""
        return type(None), ()

    def __call__(self, state: RoutingState, i: int, rows: Tensor) -> Decided | None:
        """What the policy sees of `rows` (R,), which have just run layer `i`, and chooses; to `state` it is a look.

        Returns:
            None where the policy must be asked without it: where gradients are kept, or the rows were looked at already.
        """
        if torch.is_grad_enabled() or state.layer_of(rows) != i or state.looked:
            return None
        given = self._given(state, rows)
        heard = given[SAID] is not None
        latest, as_heard, function = self._latest
        if latest() is not state or as_heard != heard:  # what else the kind depends on stays as it is while a batch is on its way
            function = self._function(state.stack, given)
            self._latest = ref(state), heard, function
        given += [state.remembered(name, rows, size) for name, size in function.sizes.items()]
        observation, logits, jumps, *found = function(i, given)
        if function.looks:
            state.hear(rows, found.pop())
        for name, value in zip(function.sizes, found, strict=True):
            state.previous(name, rows, value)
        return Decided(observation, logits, jumps)

    def _given(self, state: RoutingState, rows: Tensor) -> list[Tensor | None]:
        """What a decision is made of beside memory: see `_Parts.forward`."""
        some, memory = state.some(rows), state.carry.memory
        hidden, mask = state.carry.some(some)
        said = self._said(state, rows)
        if some is None:
            return [state.spent, state.price, hidden, mask, memory, said]
        memory = None if memory is None else memory.index_select(0, some)
        return [state.spent.index_select(0, some), state.price.index_select(0, some), hidden, mask, memory, said]

    def _said(self, state: RoutingState, rows: Tensor) -> Tensor | None:
        """What the readout says, where it must be asked outside of the function; None where it is a part of it, or not looked at."""
        if not self.policy.rules.layout.reads or state.stack.look_modules() is not None:
            return None
        said = state.said(rows)
        return said if state.stack.look_modules() is None else None  # the first look may show what all of them call

    def _function(self, stack: LayerStack, given: list[Tensor | None]) -> "_Function":
        _, _, hidden, mask, memory, said = given
        assert hidden is not None
        shape, device = hidden.shape, hidden.device
        casting = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        heard = None if said is None else said.shape[1:]
        looks = stack.look_modules() if said is None and self.policy.rules.layout.reads else None
        asked = () if looks is None or stack.readouts is None else (stack.readouts, *looks)
        modes = tuple(module.training for module in (self.policy, *asked))  # dropout is a part of what is compiled, or is not
        kind = (stack, stack.autocast, casting, hidden.dtype, device, mask is None, memory is None, heard, looks, modes, len(shape), shape[2:])
        found = self._kept(kind, shape)
        if found is None:
            with RECORDING:
                found = self._kept(kind, shape)  # another thread may have made it meanwhile
                if found is None:
                    found = _Function(_Parts(self.policy, stack, looks), given)
                    self.functions[kind if found.any_tokens else (*kind, shape[1])] = found
        return found

    def _kept(self, kind: tuple[Any, ...], shape: torch.Size) -> "_Function | None":
        found = self.functions.get(kind) or self.functions.get((*kind, shape[1]))
        return found if found is not None and found.fits() else None


class _Seen:
    """What features see while the function is recorded: what it is given, in the place of a batch on its way through a stack.

    Args:
        parts: that look.
        layer: (1,) long, the layer that ran.
        said: what a readout said, (R, ...); None: the readout is a part, and is asked here.
        before: what was given at the last look, by name; zeros of what is missing.
    """

    def __init__(
        self, parts: "_Parts", carry: Carry, spent: Tensor, price: Tensor, layer: Tensor, said: Tensor | None, before: dict[str, Tensor]
    ) -> None:
        self.stack, self.layout, self._parts = parts.stack, parts.policy.rules.layout, parts
        self.carry, self.spent, self.price, self._said = carry, spent, price, said
        self.position = layer.expand(price.shape[0])
        self._before, self.after = before, dict[str, Tensor]()

    def layer_of(self, rows: Tensor) -> None:
        """One number for all layers would be a constant of the function."""

    def said(self, rows: Tensor) -> Tensor:
        """(R, ..., C), asked once."""
        if self._said is None:
            with self.stack.computing(rows.device):
                said = self.stack.look(self._parts.readout, self.carry, None)
            self._said = said if self.stack.autocast is None else said.float()
        return self._said

    def previous(self, name: str, rows: Tensor, value: Tensor) -> Tensor:
        """See `View.previous`."""
        self.after[name] = value
        return self._before[name] if name in self._before else torch.zeros_like(value)


class _Parts(nn.Module):
    """The modules that look and decide, and how.

    Args:
        policy: who decides.
        stack: whose rows.
        beside: the modules beside the readout that a look calls, where it is a part too; None: it is not.
    """

    def __init__(self, policy: JumpPolicy, stack: LayerStack, beside: Sequence[nn.Module] | None) -> None:
        super().__init__()
        self.policy, self._stack = policy, (stack,)  # a tuple: of its modules only those below are a part
        self.looks = beside is not None
        """Whether the readout is asked here too."""
        self.sizes: dict[str, int] = {}
        """How many numbers of a row are remembered for the next look, by name; known after the first call."""
        if beside is not None:
            assert stack.readouts is not None
            self.readout = stack.readouts.each[0]
            self.beside = nn.ModuleList(beside)

    @property
    def stack(self) -> LayerStack:
        """The network."""
        return self._stack[0]

    def forward(self, layer: Tensor, given: Sequence[Tensor | None]) -> list[Tensor]:
        """Looks at R rows that have run the same layer.

        Args:
            layer: (1,) long, which.
            given: spent (R, L), price (R,), hidden state (R, ...), mask (R, T), working memory (R, 1, D) and what the readout said (R, ..., C), each
                None where there is none, and what was given at the last look (R, K), as `sizes` names it.

        Returns:
            Observation, logits and jumps, what is to be remembered, and what the readout said where it was asked here.
        """
        spent, price, hidden, mask, memory, said, *before = given
        assert spent is not None and price is not None and hidden is not None
        carry = Carry(hidden=hidden, full_flops=price, mask=mask, memory=memory)
        seen = _Seen(self, carry, spent, price, layer, said, dict(zip(self.sizes, before, strict=True)))  # type: ignore[arg-type]
        rows = torch.arange(price.shape[0], device=price.device)
        observation = self.policy.rules.layout.read(View(seen, rows))
        logits = self.policy(observation)
        self.sizes = {name: value.shape[1] for name, value in seen.after.items()}
        if any(isinstance(size, torch.SymInt) for size in self.sizes.values()):
            raise ValueError("a number is remembered for each token, so the function is one of so many tokens alone")
        return [observation, logits, self.policy.likeliest(logits, price), *seen.after.values(), *([seen.said(rows)] if self.looks else [])]

    def slots(self, i: int) -> list[tuple[dict[str, Any], str]]:
        """Where each of `tensors` is held that takes part in a decision after layer `i`."""
        return [self._slot(name, i) for name in self.tensors()]

    def _slot(self, name: str, i: int) -> tuple[dict[str, Any], str]:
        path, _, leaf = name.rpartition(".")
        part, _, within = path.partition(".")
        readouts = self.stack.readouts
        owner = self.get_submodule(path) if part != "readout" or readouts is None else readouts.each[i].get_submodule(within)
        return owner._parameters if leaf in owner._parameters else owner._buffers, leaf

    def tensors(self) -> dict[str, Tensor]:
        """Weights and buffers by name."""
        return dict(self.named_parameters()) | dict(self.named_buffers())


class _WithWeights(nn.Module):
    """The parts as a function of their weights too, so that these are no constants of what is compiled."""

    def __init__(self, parts: _Parts) -> None:
        super().__init__()
        self._parts = (parts,)

    def forward(self, layer: Tensor, weights: list[Tensor], given: list[Tensor | None]) -> list[Tensor]:
        (parts,) = self._parts
        return functional_call(parts, dict(zip(parts.tensors(), weights, strict=True)), (layer, given))


class _Function:
    """What was compiled of some parts.

    Args:
        parts: what it does.
        given: what it is first called with, see `_Parts.forward`.
    """

    def __init__(self, parts: _Parts, given: list[Tensor | None]) -> None:
        self.parts, self.looks, hidden = parts, parts.looks, given[HIDDEN]
        assert hidden is not None
        self._slots = [parts.slots(i) for i in range(parts.stack.depth - 1)]
        self._scattered = any(not held[name].is_contiguous() for slots in self._slots for held, name in slots)
        self._layers = [torch.tensor([i], device=hidden.device) for i in range(parts.stack.depth - 1)]
        with torch.inference_mode(False), torch.no_grad():
            parts(self._layers[0], given)  # which shows what it remembers
            self.sizes = parts.sizes
            self._like = [(weight.shape, weight.dtype, weight.device) for weight in self._weights(0)]
            try:
                program, self.any_tokens = self._recorded(given)
                self._run = _compiled(program, hidden.device)
            except Exception as error:  # a compiler, and what a person's own features do in it, can fail in any way
                reason = (" ".join(str(error).split()) or type(error).__name__)[:MOST_SAID]
                raise UserError(f"the policy cannot be compiled: {type(error).__name__}: {reason}; {LEAVE_OUT}") from error

    def fits(self) -> bool:
        """Whether the weights still are what they were in shape and number format, and where they were."""
        return self._like == [(weight.shape, weight.dtype, weight.device) for weight in self._weights(0)]

    def __call__(self, i: int, given: Sequence[Tensor | None]) -> list[Tensor]:
        # What was compiled takes it for granted that a tensor is contiguous.
        there = [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in given if tensor is not None]
        return self._run([self._layers[i], *self._weights(i), *there])

    def _weights(self, i: int) -> list[Tensor]:
        with RECORDING:  # in which others stand in their place
            weights = [held[name] for held, name in self._slots[i]]
        return [weight.contiguous() for weight in weights] if self._scattered else weights

    def _recorded(self, given: list[Tensor | None]) -> tuple[ExportedProgram, bool]:
        """The function for any number of rows, and whether it is one for any number of tokens: a readout may be for so many alone."""
        hidden = given[HIDDEN]
        if hidden is None or hidden.dim() != 3:
            return self._exported(given, False), False
        try:
            return self._exported(given, True), True
        except Exception:
            return self._exported(given, False), False

    def _exported(self, given: list[Tensor | None], any_tokens: bool) -> ExportedProgram:
        price = given[1]
        assert price is not None
        rows, tokens = Dim("rows", min=1), Dim("tokens", min=1)
        examples, sizes = [], []
        for place, tensor in enumerate([*given, *(price.new_empty(1, size) for size in self.sizes.values())]):
            each, of_tokens = list(() if tensor is None else tensor.shape[1:]), any_tokens and place in (HIDDEN, MASK)
            if of_tokens and each:
                each[0] = max(each[0], 2)  # PyTorch takes a size of 1 for a constant
            examples.append(None if tensor is None else tensor.new_zeros(ROWS, *each))
            sizes.append(None if tensor is None else {0: rows} | ({1: tokens} if of_tokens else {}))
        weights = self._weights(0)
        arguments = (self._layers[0], weights, examples)
        return export(_WithWeights(self.parts), arguments, dynamic_shapes=(None, [None] * len(weights), sizes), strict=False)


def _compiled(program: ExportedProgram, device: torch.device) -> Callable[[list[Tensor]], list[Tensor]]:
    """What runs the program on its tensors, one after the other."""
    if device.type != "cpu":  # AOTInductor's own runner ends the process there (PyTorch 2.11 on CUDA)
        return _called_from_python(program)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch about itself
        package = aoti_compile_and_package(program, package_path=str(Path(folder) / "decision.pt2"))
        return aoti_load_package(package).loader.run


def _called_from_python(program: ExportedProgram) -> Callable[[list[Tensor]], list[Tensor]]:
    """The same, with Python between its kernels."""
    inputs = [node.meta["val"] for node in program.graph_module.graph.nodes if node.op == "placeholder"]
    compiled = standalone_compile(program.graph_module, inputs, dynamic_shapes="from_graph")

    def run(tensors: list[Tensor]) -> list[Tensor]:
        given = iter(tensors)
        return list(compiled(*[None if value is None else next(given) for value in inputs]))

    return run
