"""A stack of layers that belong to another model and are called as that model calls them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.calls import HIDDEN, RETURNS, LayerCall, parameter_names, real_tokens, split_returned
from rl_skip.attached.flops import LayerFlops
from rl_skip.core.inputs import Inputs, map_inputs
from rl_skip.core.readouts import Readouts
from rl_skip.core.stack import Carry, LayerStack

__all__ = ["CalledCarry", "CalledStack"]


@dataclass
class CalledCarry(Carry):
    """A carry with the calls of the layers."""

    spending: Tensor | None = None
    """(B, L), operations of each layer for each row."""
    calls: dict[int, LayerCall] = field(default_factory=dict)
    """How each layer is called, with all rows."""
    passed: dict[str, Any] = field(default_factory=dict)
    """What a layer returned for the layers after it, such as T5's position bias, the same for all rows."""
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
        taken.inputs = None if self.inputs is None else map_inputs(self.inputs, lambda tensor: tensor.index_select(0, rows))
        return taken

    def put(self, rows: Tensor, other: Carry) -> None:
        assert isinstance(other, CalledCarry)
        super().put(rows, other)
        self.calls = {i: call.put(rows, other.calls[i], self.causal) for i, call in self.calls.items()}
        if isinstance(self.inputs, dict) and isinstance(other.inputs, dict):
            self.inputs = {name: tensor.index_copy(0, rows, other.inputs[name]) for name, tensor in self.inputs.items()}
        elif isinstance(self.inputs, Tensor) and isinstance(other.inputs, Tensor):
            self.inputs = self.inputs.index_copy(0, rows, other.inputs)


class CalledStack(LayerStack):
    """Runs layers with the arguments that their model calls them with, for all rows or for some alone.

    Args:
        layers: the L layers.
        forwards: what runs each of them; their own calls by default.
        width: D.
        channel_dim: where the D channels of the hidden state are.
    """

    def __init__(
        self, layers: Sequence[nn.Module], *, width: int, forwards: Sequence[Callable[..., Any]] | None = None, channel_dim: int = -1
    ) -> None:
        super().__init__()
        self.routed = tuple(layers)  # a tuple: the layers are the model's, and are not registered a second time
        self.forwards = self.routed if forwards is None else tuple(forwards)
        self.names = [parameter_names(layer.forward) for layer in layers]
        self.depth, self.width, self.channel_dim = len(self.routed), width, channel_dim
        self.prompt_tokens: int | None = None
        self.causal = any(getattr(module, "is_causal", False) for module in self.routed[0].modules())
        self.speaks = False
        """Whether the outputs are what may follow each token (B, T, V): then a look is at the last token that may be seen, not at all of them."""

    def carry_of(self, hidden: Tensor, call: LayerCall, flops: LayerFlops) -> CalledCarry:
        """The carry of a batch before layer 0, which is called with `call`."""
        mask = real_tokens(call, hidden.shape[1]) if hidden.dim() == 3 else None
        B = call.row_count
        everything = hidden.shape[1] if hidden.dim() == 3 else 1
        lengths = torch.full((B,), everything, device=hidden.device) if mask is None else mask.sum(dim=1)
        if self.prompt_tokens is not None:
            mask = hidden.new_ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask
            mask = mask & (mask.cumsum(dim=1) <= self.prompt_tokens)
        lengths = lengths.clamp(min=1)  # a row without a real token counts as if it had one
        spending = flops.of(lengths)  # (B, L)
        return CalledCarry(hidden=hidden, full_flops=spending.sum(dim=1), mask=mask, spending=spending, lengths=lengths)

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
        return self.ran(i, carry, rows, call.run(self.forwards[i], hidden, carry.passed))

    def gathered_call(self, i: int, carry: CalledCarry, rows: Tensor | None) -> tuple[Tensor, LayerCall]:
        """The hidden state (R, ...) of the named rows (None: all) before layer `i`, and how it is called for them."""
        call = carry.calls[i]
        return (carry.hidden, call) if rows is None else (carry.hidden.index_select(0, rows), call.take(rows))

    def ran(self, i: int, carry: CalledCarry, rows: Tensor | None, returned: Any) -> Tensor:
        """Writes what layer `i` returned for the named rows back to `carry`. Returns (R,), the relative compute that each spent."""
        assert carry.spending is not None
        moved, passed = split_returned(self.routed[i], returned)
        carry.hidden = moved if rows is None else carry.hidden.index_copy(0, rows, moved.to(carry.hidden.dtype))
        if passed:
            carry.passed = {**{name: value for name, value in passed.items() if value is not None}, **carry.passed}
        spent = carry.spending[:, i] / carry.full_flops
        return spent if rows is None else spent.index_select(0, rows)

    def returned(self, i: int, carry: CalledCarry) -> Any:
        """What layer `i` returns to its model now, in the form in which the layer itself does."""
        names = RETURNS.get(type(self.routed[i]).__name__)
        if names is None:
            return carry.hidden
        values = {**carry.calls[i].arguments, **carry.passed, HIDDEN: carry.hidden}
        return tuple(None if name is None else values.get(name) for name in names)

    def pooled(self, carry: Carry, rows: Tensor | None) -> Tensor:
        hidden = carry.hidden if rows is None else carry.hidden.index_select(0, rows)
        mask = carry.mask if rows is None or carry.mask is None else carry.mask.index_select(0, rows)
        hidden = hidden.float().movedim(self.channel_dim, -1)
        if mask is None:
            return hidden.flatten(1, -2).mean(dim=1) if hidden.dim() > 2 else hidden
        weight = mask.unsqueeze(-1)  # (R, T, 1)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
