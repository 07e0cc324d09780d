"""A stack of layers that belong to another model and are called as that model calls them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.calls import LayerCall, parameter_names, real_tokens
from rl_skip.attached.flops import LayerFlops, shares_of
from rl_skip.attached.returns import HIDDEN, Form, blank, form_of, split_returned, spread
from rl_skip.attached.rows import Places, RowPlaces, put_rows, rows_of
from rl_skip.core.inputs import Inputs, map_inputs
from rl_skip.core.readouts import Readouts
from rl_skip.core.stack import Carry, LayerStack

__all__ = ["CalledCarry", "CalledStack", "evaluating"]


@dataclass
class CalledCarry(Carry):
    """A carry with the calls of the layers."""

    shared = True
    spending: Tensor | None = None
    """(B, L), the relative compute of each layer for each row."""
    calls: dict[int, LayerCall] = field(default_factory=dict)
    """How each layer is called, with all rows."""
    passed: dict[str, Any] = field(default_factory=dict)
    """What a layer returned for the layers after it, such as T5's position bias."""
    parts: tuple[Any, ...] = ()
    """What else the last layer returned, of all rows, in its place in the tuple; zeros of rows that did not run it."""
    inputs: Inputs | None = None
    """What the model was called with; None where the model itself calls its layers."""
    causal: bool = False
    """Whether no token sees a later one."""
    lengths: Tensor | None = None
    """(B,), how many real tokens each row has."""

    def take(self, rows: Tensor) -> "CalledCarry":
        taken = super().take(rows)
        assert isinstance(taken, CalledCarry)
        taken.calls = {i: call.take(rows) for i, call in self.calls.items()}
        B, taken.parts = self.hidden.shape[0], ()
        taken.passed = {name: rows_of(value, rows, B, name, self._places) for name, value in self.passed.items()}
        taken.inputs = None if self.inputs is None else inputs_of(self.inputs, rows, B)
        return taken

    def put(self, rows: Tensor, other: Carry) -> None:
        assert isinstance(other, CalledCarry)
        super().put(rows, other)
        for name in self.passed.keys() & other.passed.keys():
            self.passed = {**self.passed, name: put_rows(self.passed[name], other.passed[name], rows, self.hidden.shape[0], name, self._places)}
        self.calls = {i: call.put(rows, other.calls[i], self.causal) for i, call in self.calls.items()}
        if isinstance(self.inputs, dict) and isinstance(other.inputs, dict):
            B, others = self.hidden.shape[0], other.inputs
            self.inputs = {
                name: tensor.index_copy(0, rows, others[name]) if tensor.shape[0] == B else tensor for name, tensor in self.inputs.items()
            }
        elif isinstance(self.inputs, Tensor) and isinstance(other.inputs, Tensor):
            self.inputs = self.inputs.index_copy(0, rows, other.inputs)

    @property
    def _places(self) -> Places:
        return next(iter(self.calls.values())).places if self.calls else {}


def inputs_of(inputs: Inputs, rows: Tensor, B: int) -> Inputs:
    """The named rows of a batch of B; what all rows share, such as positions (1, T), stays as it is."""
    return map_inputs(inputs, lambda tensor: tensor.index_select(0, rows.to(tensor.device)) if tensor.shape[0] == B else tensor)


class CalledStack(LayerStack):
    """Runs layers with the arguments that their model calls them with, for all rows or for some alone.

    Args:
        layers: the L layers.
        forwards: what runs each of them; their own calls by default.
        width: D.
        channel_dim: where the D channels of the hidden state are.
        form: what each part of what a layer returns is; None: as is known of its class.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        *,
        width: int,
        forwards: Sequence[Callable[..., Any]] | None = None,
        channel_dim: int = -1,
        form: Form | None = None,
    ) -> None:
        super().__init__()
        self._hold(layers, forwards, form)
        self.depth, self.width, self.channel_dim = len(self.routed), width, channel_dim
        self.prompt_tokens: int | None = None
        self.speaks = False
        """Whether the outputs are what may follow each token (B, T, V): then a look is at the last token that may be seen, not at all of them."""

    def _hold(self, layers: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]] | None = None, form: Form | None = None) -> None:
        """Takes these for its layers."""
        self.routed = tuple(layers)  # a tuple: the layers are the model's, and are not registered a second time
        self.forwards = self.routed if forwards is None else tuple(forwards)
        self.names = [parameter_names(layer) for layer in layers]
        self.forms = [form_of(layer) if form is None else form for layer in layers]
        self.places = RowPlaces(named=type(layers[0]).__module__.startswith("transformers."))
        self.causal = any(getattr(module, "is_causal", False) for module in self.routed[0].modules())

    def layer_modules(self) -> list[nn.Module]:
        return list(self.routed)

    def carry_of(self, hidden: Tensor, call: LayerCall, flops: LayerFlops) -> CalledCarry:
        """The carry of a batch before layer 0, which is called with `call`."""
        mask = real_tokens(call, hidden.shape[1]) if hidden.dim() == 3 else None
        B = call.row_count
        everything = hidden.shape[1] if hidden.dim() == 3 else 1
        if mask is None:
            lengths = torch.full((B,), max(everything, 1), device=hidden.device)
            spending, full = (each.expand(B, -1) for each in flops.of_one(max(everything, 1), hidden.device))
        else:
            lengths = mask.sum(dim=1).clamp(min=1)  # a row without a real token counts as if it had one
            spending, full = shares_of(flops.of(lengths))
        return CalledCarry(hidden=hidden, full_flops=full.squeeze(1), mask=self.seen_tokens(hidden, mask), spending=spending, lengths=lengths)

    def seen_tokens(self, hidden: Tensor, real: Tensor | None) -> Tensor | None:
        """(B, T) bool, true where a token may be looked at, of those that are `real` (B, T); None: all."""
        if self.prompt_tokens is None:
            return real
        real = hidden.new_ones(hidden.shape[:2], dtype=torch.bool) if real is None else real
        return real & (real.cumsum(dim=1) <= self.prompt_tokens)

    @property
    def looks_at_answers(self) -> bool:  # type: ignore[override]
        return not self.speaks

    def last_seen(self, carry: Carry, rows: Tensor | None) -> Tensor:
        """(R, 1, D), the hidden state of the last token that a policy may look at, of the named rows (None: all)."""
        hidden, mask = self.gathered(carry, rows)
        if mask is None:
            return hidden[:, -1:]
        last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1).clamp(min=1) - 1  # (R,)
        return hidden.gather(1, last.view(-1, 1, 1).expand(-1, 1, hidden.shape[2]))

    def answer_flops(self, readouts: Readouts, carry: Carry, rows: Tensor, looked: bool) -> Tensor | float:
        if not self.speaks:
            return super().answer_flops(readouts, carry, rows, looked)
        assert isinstance(carry, CalledCarry) and carry.lengths is not None
        return carry.lengths.index_select(0, rows) * readouts.flops  # a look is at one token, an answer is of all

    def run(self, i: int, carry: Carry, rows: Tensor | None) -> Tensor:
        assert isinstance(carry, CalledCarry)
        hidden, call = self.gathered_call(i, carry, rows)
        return self.ran(i, carry, rows, call.run(self.forwards[i], hidden))

    def gathered_call(self, i: int, carry: CalledCarry, rows: Tensor | None) -> tuple[Tensor, LayerCall]:
        """The hidden state (R, ...) of the named rows (None: all) before layer `i`, and how it is called for them."""
        call = carry.calls[i].given(carry.passed)
        if rows is None:
            return carry.hidden, call
        return carry.some(rows)[0], self.settled(i, carry.hidden, call).take(rows)

    def ran(self, i: int, carry: CalledCarry, rows: Tensor | None, returned: Any) -> Tensor:
        """Writes what layer `i` returned for the named rows back to `carry`. Returns (R,), the relative compute that each spent."""
        assert carry.spending is not None
        spent = carry.spending.select(1, i)
        if rows is None:
            if self.keep_returned(i, carry, returned) and i + 1 in carry.calls:  # some rows may be taken before a layer runs on some
                self.settled(i + 1, carry.hidden, carry.calls[i + 1].given(carry.passed))
            return spent
        moved, named, parts = split_returned(self.routed[i], returned, self.forms[i])
        B, arguments = carry.hidden.shape[0], carry.calls[i].given(carry.passed).arguments
        carry.write(rows, moved, None if carry.mask is None else carry.mask.index_select(0, rows))
        carry.parts = spread(parts, carry.parts, rows, B, f"what {type(self.routed[i]).__name__} returns beside the hidden state")
        for name in named.keys() & arguments.keys():  # rows that skip the layer keep what it would have changed
            if arguments[name] is not None:
                carry.passed = {**carry.passed, name: put_rows(arguments[name], named[name], rows, B, name, self.places.found)}
        return spent.index_select(0, rows)

    def keep_returned(self, i: int, carry: CalledCarry, returned: Any) -> bool:
        """Writes what layer `i` returned for all rows to `carry`. Returns whether some of it becomes arguments of the next layer."""
        carry.hidden, named, carry.parts = split_returned(self.routed[i], returned, self.forms[i])
        carry.passed = carry.passed | {name: value for name, value in named.items() if value is not None}
        return bool(named)

    def settled(self, i: int, hidden: Tensor, call: LayerCall) -> LayerCall:
        """The call of layer `i` with where the rows are in its arguments."""

        def answer(rows: Tensor | None, places: Places) -> Tensor:
            some = replace(call.without_caches(), places=places)
            rows = None if rows is None else rows.to(hidden.device)
            some, own = (some, hidden) if rows is None else (some.take(rows), hidden.index_select(0, rows))
            with torch.no_grad(), evaluating(self.routed[i]):  # in a context of its own: the call that goes on may be collecting outputs there
                returned = Context().run(partial(some.run, self.forwards[i], own.detach()))
            return split_returned(self.routed[i], returned, self.forms[i])[0]

        return replace(call, places=self.places.settle(call.parts(), call.row_count, answer, type(self.routed[i]).__name__))

    def skip(self, carry: CalledCarry) -> None:
        """Called instead of `run` where no row runs a layer."""
        carry.parts = blank(carry.parts)

    def returned(self, i: int, carry: CalledCarry) -> Any:
        """What layer `i` returns to its model now, in the form in which the layer itself does."""
        form = self.forms[i]
        if form is None:
            return carry.hidden
        values = {**carry.calls[i].arguments, **carry.passed, HIDDEN: carry.hidden}
        parts = carry.parts or (None,) * len(form)
        return tuple(part if name is None else values.get(name) for name, part in zip(form, parts, strict=False))

    def pooled(self, carry: Carry, rows: Tensor | None) -> Tensor:
        hidden, mask = carry.some(rows)
        hidden = hidden.float().movedim(self.channel_dim, -1)
        if mask is None:
            return hidden.flatten(1, -2).mean(dim=1) if hidden.dim() > 2 else hidden
        weight = mask.unsqueeze(-1)  # (R, T, 1)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


@contextmanager
def evaluating(layer: nn.Module) -> Iterator[None]:
    """Within it, the layer is not in training mode."""
    training = [module for module in layer.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
