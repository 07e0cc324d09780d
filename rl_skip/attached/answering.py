"""Readouts on an attached model: its own call goes on after the layers, and answers each row by the readout of the depth at which it left.

An adapter changes the hidden state that the last layer hands on. Copies of the modules after the layers are run in their place, on
the rows of their depth alone. So whatever the model makes of it all, logits, a loss, a beam search, is made of the right rows.
What the policy looks at is found by calling the model once more, from within the layer: its layers then hand on the hidden state that
there is, and what came before them is not computed again.
"""

import inspect
import threading
from collections.abc import Hashable, Sequence
from contextvars import Context
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.called import CalledCarry, CalledStack, evaluating
from rl_skip.attached.calls import LayerCall
from rl_skip.attached.chain import ChainTrace
from rl_skip.attached.rows import Places, RowPlaces, few_rows, having_rows, is_cache, leaves, places_by_shape, rows_of
from rl_skip.attached.stand_in import Attached, StandIn
from rl_skip.attached.standing import Way, hooks_of
from rl_skip.attached.tail import Recorded, Tail, copied, modules_beside, speaks, taken
from rl_skip.core.errors import UserError
from rl_skip.core.readouts import Adapter, Readouts
from rl_skip.core.routing import RoutingState
from rl_skip.core.stack import Carry, version_of

__all__ = ["HEAD_BESIDE", "AnsweringStack", "Beside", "ModelCall"]

HEAD_BESIDE = (
    "the readouts are copies of a head that is not the model's own but was put beside it, so the model alone cannot answer with them: "
    "rl_skip.load(\"RUN/policy\", \"RUN/model\") runs the policy"
)
QUIET = {"labels": None, "return_dict": True, "use_cache": False, "output_hidden_states": False, "output_attentions": False}
"""Arguments with which a model says what it would answer, and nothing else."""


class _Call(threading.local):
    """What is known of the call of the model that goes on; each thread has its own."""

    inputs: dict[str, Any] | None = None
    """Its arguments; None where the model is not called."""
    before: Recorded
    """What the modules beside the layers returned so far."""
    left: list[tuple[int, Tensor]] | None = None
    """Once the layers are done: each depth at which rows left, and the rows."""
    shown: Tensor | None = None
    """During a look: the hidden state that stands in the place of the layers."""
    copies: dict[str, nn.Module]
    """During a look: the modules of the readout."""
    replayed: Recorded
    """During a look: what the modules before the layers have still to return."""
    after: ChainTrace | None = None
    """During a look, once the layers are passed by: what is seen of the modules that are called then."""
    traced: Recorded | None = None
    """During a look that is for this alone: what the modules beside the layers return."""
    autocast: torch.dtype | None = None
    """The number format that the caller's `torch.autocast` asks for."""


class AnsweringStack(CalledStack):
    """The layers of an attached model, and readouts with which the model answers rows that leave early.

    Args:
        model: the model.
        path: where its layers are.
        readouts: adapters, or copies of modules of the model.
        looks: whether a policy looks at what they answer.
        prefix: where in `model`, around which adapters may have been put, the model is whose modules were copied; it ends with a dot.
        layers, width, forwards, channel_dim: as `CalledStack` takes them.

    Raises:
        UserError: if the readouts are copies of a head that the model does not have.
    """

    answers_late = True

    def __init__(
        self, layers: Sequence[nn.Module], *, model: nn.Module, path: str, readouts: Readouts, looks: bool, prefix: str = "", **options: Any
    ) -> None:
        super().__init__(layers, **options)
        if len(readouts.each) != self.depth - 1:
            raise UserError(f"these are readouts for {len(readouts.each) + 1} layers, {path} has {self.depth}; take those trained with the policy")
        self.readouts = deepcopy(readouts).eval().requires_grad_(False)  # they go where the model goes
        self.speaks = speaks(model, self.causal)
        self.now = _Call()
        self._model = (model,)  # a tuple: the model is not a part of its layers
        first = readouts.each[0]
        if not isinstance(first, Tail | Adapter):
            raise UserError(HEAD_BESIDE)
        self._tail = [prefix + name for name in first.by_name()] if isinstance(first, Tail) else []
        self._prefix, self._records = prefix, looks and not self.speaks
        beside = modules_beside(model, path)
        if missing := [name for name in self._tail if name not in beside]:
            raise UserError(f"the readouts copy {missing[0]}, which is not called after {path}; attach to the layers that they were trained with")
        self._between = (*Way(model, path).modules[1:], self.routed[-1])  # modules whose hooks may change what a look shows
        self._hooks: tuple[Hashable, ...] = ()
        self._chains: dict[Hashable, tuple[str, ...] | None] = {}  # by mode and kind of the call, the modules that alone answer a look
        self._found_before: dict[frozenset[str], Places] = {}  # by which of the arguments have rows
        self._tail_places = {name: RowPlaces() for name in self._tail}
        self._watched = {name: module for name, module in beside.items() if looks or name in self._tail}

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not in the middle of a call."""
        return {name: value for name, value in vars(self).items() if name != "now"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.now = _Call()

    @property
    def autocast(self) -> torch.dtype | None:  # type: ignore[override]
        return self.now.autocast

    @property
    def looking(self) -> bool:
        """Whether the model is being asked what it would answer."""
        return self.now.shown is not None

    def stand_ins(self, handle: Attached) -> list[StandIn]:
        """What must stand in for the model's `forward` and for those of its modules beside the layers."""
        self._whole = ModelCall(handle, self._model[0], "the model")
        beside = [Beside(handle, module, name) for name, module in self._watched.items()]
        for one in beside:
            one.must_stand = self._records or one.name in self._tail
        return [self._whole, *beside]

    def adopt(self, hidden: Tensor) -> None:
        """Called at the first layer of a call: the readouts follow the model to its device and number format."""
        if (hooks := hooks_of(self._between)) != self._hooks:
            self._chains.clear()
            self._hooks = hooks
        in_autocast = torch.is_autocast_enabled(hidden.device.type)
        self.now.autocast = torch.get_autocast_dtype(hidden.device.type) if in_autocast else None
        self.readouts.to(hidden.device, None if in_autocast else hidden.dtype)  # type: ignore[union-attr]

    def call_model(self, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls the model for its user."""
        self.begin_call(forward, args, kwargs)
        try:
            return forward(*args, **kwargs)
        finally:
            self.end_call()

    def begin_call(self, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before the model is."""
        now = self.now
        now.inputs, now.before, now.left = _named(forward, args, kwargs) if self._records else {}, {}, None

    def end_call(self) -> None:
        """Called after it, whether it came to its end or not."""
        now = self.now
        now.inputs, now.left, now.before = None, None, {}

    def call_beside(self, name: str, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls a module beside the layers: as it is before them, and after them by the readout of each row."""
        now = self.now
        if now.shown is not None:
            if now.replayed.get(name):
                return copied(now.replayed[name].pop(0))
            output = now.copies.get(name, original)(*args, **kwargs)
            if now.after is not None:
                now.after.called(name, args, kwargs, output)
            if now.traced is not None:
                now.traced.setdefault(name, []).append(output)
            return output
        if now.inputs is None:
            return original(*args, **kwargs)
        if now.left is not None:
            return self._answered(name, original, args, kwargs) if name in self._tail else original(*args, **kwargs)
        output = original(*args, **kwargs)
        if self._records:
            now.before.setdefault(name, []).append(output)
        return output

    def pass_by(self, i: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What layer `i` returns while the model is asked what it would answer."""
        shown = self.now.shown
        assert shown is not None
        _, call = LayerCall.of(self.names[i], args, kwargs)
        if i == self.depth - 1:
            self.now.after = ChainTrace(shown, views=self.speaks)  # then one token
        return self.returned(i, CalledCarry(hidden=shown, full_flops=shown, calls={i: call}))

    def look_modules(self) -> tuple[nn.Module, ...] | None:
        inputs = self.now.inputs
        chain = None if inputs is None or self.speaks else self._chains.get(self._kind(inputs))
        return None if chain is None else tuple(self._model[0].get_submodule(name) for name in chain)

    def look(self, readout: nn.Module, carry: Carry, rows: Tensor | None) -> Tensor:
        now, B = self.now, carry.hidden.shape[0]
        if self.speaks:
            kept = self.last_seen(carry, rows)
            hidden = readout(kept) if isinstance(readout, Adapter) else kept
            token = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)  # any: no layer runs
            inputs = {str(self._model[0].main_input_name): token}
        elif now.inputs is None:
            whole = type(self._model[0]).__name__
            raise UserError(f"the policy looks at what {whole} would answer: call it, and not a part of it, or disable the policy")
        else:
            kept, mask = self.gathered(carry, rows)
            inputs = now.inputs
            hidden = readout(kept, mask) if isinstance(readout, Adapter) else kept
        version, kind, copies = version_of(kept), self._kind(inputs), self._copies(readout)
        chain = self._chains.get(kind)
        if chain is not None:
            logits = self._along(chain, hidden, copies)
        elif self.speaks:
            logits = self._said(hidden, copies, inputs, {}, kind)
        else:
            before = now.before if rows is None else taken(now.before, rows, B, self._places_before(carry.hidden))
            logits = self._said(hidden, copies, _some(inputs, rows, B), {name: list(outputs) for name, outputs in before.items()}, kind)
        if version_of(kept) != version:
            raise UserError("a module after the layers changes the hidden state in place, which rows that go on still need: set inplace=False there")
        return logits.squeeze(1) if self.speaks else logits

    def leave(self, state: RoutingState) -> None:
        """Called when the last layer was: adapters change the hidden state that it hands on, and the rows wait for the modules after it."""
        carry = state.carry
        left = [(i, (state.position == i).nonzero().squeeze(1)) for i in state.position.unique().tolist()]
        for i, rows in left:
            adapter = self._adapter(i)
            if adapter is not None:
                adapted = adapter(*self.gathered(carry, rows)).to(carry.hidden.dtype)
                carry.hidden = carry.hidden.index_copy(0, rows, adapted)
        self.now.left = left if self.now.inputs is not None else None

    def leave_together(self, i: int, carry: Carry) -> None:
        """As `leave`, where all rows left after layer `i`."""
        adapter = self._adapter(i)
        if adapter is not None:
            carry.hidden = adapter(carry.hidden, carry.mask).to(carry.hidden.dtype)
        rows = torch.arange(carry.hidden.shape[0], device=carry.hidden.device)
        self.now.left = [(i, rows)] if self.now.inputs is not None else None

    def _adapter(self, i: int) -> Adapter | None:
        """What changes the hidden state of rows that left after layer `i`."""
        assert self.readouts is not None
        readout = self.readouts.each[i] if i < self.depth - 1 else None
        return readout if isinstance(readout, Adapter) else None

    def _places_before(self, hidden: Tensor) -> Places:
        """Where the rows are in what the modules before the layers returned, found by calling them for a few rows."""
        now, B = self.now, hidden.shape[0]
        assert now.inputs is not None
        kind = having_rows(now.inputs, B)
        found = self._found_before.get(kind, {})
        if B > 1 and not found.keys() >= places_by_shape(now.before, {}, B, B).keys():
            few, traced = few_rows(B, device=hidden.device), Recorded()
            now.traced = traced
            try:
                with torch.no_grad(), evaluating(self._model[0]):
                    self._said(hidden.index_select(0, few), {}, _some(now.inputs, few, B), {})
            finally:
                now.traced = None
            found = {**found, **places_by_shape(now.before, traced, B, few.shape[0])}
            self._found_before[kind] = found
        return found

    def _kind(self, inputs: dict[str, Any]) -> Hashable:
        """What of a call of the model with these arguments can decide which modules it calls after its layers."""
        return self._model[0].training, *map(_kind, inputs.items())

    def _along(self, chain: Sequence[str], hidden: Tensor, copies: dict[str, nn.Module]) -> Tensor:
        """What `_said` says, by the modules that the model calls in turn after its layers."""
        now = self.now
        now.shown, now.copies, now.replayed = hidden, copies, {}
        try:
            for name in chain:
                hidden = self._model[0].get_submodule(name)(hidden)
        finally:
            now.shown, now.copies = None, {}
        return hidden

    def _said(
        self, hidden: Tensor, copies: dict[str, nn.Module], inputs: dict[str, Any], before: Recorded, kind: Hashable = None
    ) -> Tensor:
        """The model's logits with a hidden state in the place of its layers. For calls of a `kind`, it is noted which modules alone make them."""
        original = self._whole.original
        parameters = inspect.signature(original).parameters
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        quiet = {name: value for name, value in QUIET.items() if name in parameters or name in inputs or (name == "return_dict" and open_ended)}
        now = self.now
        now.shown, now.copies, now.replayed = hidden, copies, before
        try:  # in a context of its own: the call that goes on may be collecting the hidden states of its layers there
            outputs = Context().run(partial(original, **inputs | quiet))
            after = now.after
        finally:
            now.shown, now.copies, now.replayed, now.after = None, {}, {}, None
        logits = getattr(outputs, "logits", outputs)
        if not isinstance(logits, Tensor):
            raise UserError(f"{type(self._model[0]).__name__} returns no logits for the policy to look at: attach to a model with a head")
        if kind is not None and after is not None:
            self._chains[kind] = after.names(logits)
        return logits

    def _copies(self, readout: nn.Module) -> dict[str, nn.Module]:
        return {self._prefix + name: copy for name, copy in readout.by_name().items()} if isinstance(readout, Tail) else {}

    def _answered(self, name: str, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the module of that name returns, each row by the copy for the depth at which it left."""
        left = self.now.left
        assert left is not None and self.readouts is not None
        runs = [original if i == self.depth - 1 else self._copies(self.readouts.each[i])[name] for i, _ in left]
        if len(runs) == 1:
            return runs[0](*args, **kwargs)
        B = sum(len(rows) for _, rows in left)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not tensors or tensors[0].shape[0] != B:
            raise UserError(f"{name} is not called with a tensor of the {B} rows, so they cannot be answered by readouts of their own: use adapters")
        given = {"args": args, "kwargs": kwargs}

        def some(run: Any, rows: Tensor, places: Places) -> Any:
            taken = {key: rows_of(value, rows, B, key, places) for key, value in given.items()}
            return run(*taken["args"], **taken["kwargs"])

        def answer(rows: Tensor | None, places: Places) -> Tensor:
            with torch.no_grad(), evaluating(self._model[0].get_submodule(name)):
                output = original(*args, **kwargs) if rows is None else some(original, rows.to(tensors[0].device), places)
            return next(tensor for _, tensor in leaves("", output))

        places = self._tail_places[name].settle(given, B, answer, name)
        parts = [some(run, rows, places) for run, (_, rows) in zip(runs, left, strict=True)]
        return _merged(name, parts, torch.cat([rows for _, rows in left]).argsort())


class ModelCall(StandIn):
    """Stands in for the model's own `forward`."""

    handle: Any  # a `Handle`

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stack = self.handle.stack
        if not self.handle.routing or not isinstance(stack, AnsweringStack):
            return self.original(*args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            from rl_skip.attached.compiled import call_model

            return call_model(self, args, kwargs)
        self.handle.check_standing()
        return stack.call_model(self.original, args, kwargs)


class Beside(StandIn):
    """Stands in for the `forward` of a module beside the layers."""

    must_stand = True
    """Whether no look, or no answer, is right where the module was replaced."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        stack = self.handle.stack
        assert isinstance(stack, AnsweringStack)
        if torch.compiler.is_dynamo_compiling() and self.handle.routing:
            from rl_skip.attached.compiled import call_beside

            return call_beside(self, args, kwargs)
        return stack.call_beside(self.name, self.original, args, kwargs)


def _named(forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those beyond the named ones among them."""
    bound = inspect.signature(forward).bind_partial(*args, **kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        else:
            named[name] = value
    return named


def _kind(argument: tuple[str, Any]) -> Hashable:
    """What of an argument of the model can decide what it does after its layers: its name, and its value where it is no tensor."""
    name, value = argument
    return name, value if isinstance(value, bool | int | str) else type(value)


def _some(inputs: dict[str, Any], rows: Tensor | None, B: int) -> dict[str, Any]:
    """The arguments of the model, which have the rows first, for the named rows (None: all), without what it would keep for later calls."""
    kept = {name: None if is_cache(value) else value for name, value in inputs.items()}
    if rows is None:
        return kept
    places = {(path, part.dim()): 0 for name, value in kept.items() for path, part in leaves(name, value) if part.dim() and part.shape[0] == B}
    return {name: rows_of(value, rows, B, name, places) for name, value in kept.items()}


def _merged(name: str, parts: list[Any], order: Tensor) -> Any:
    """What a module returned for groups of rows, put together in the order of the batch."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts).index_select(0, order)
    if type(first) in (tuple, list):
        return type(first)(_merged(name, list(items), order) for items in zip(*parts, strict=True))
    if first is None:
        return None
    raise UserError(f"{name} returns a {type(first).__name__}, so rows cannot be answered by readouts of their own: use adapters")
