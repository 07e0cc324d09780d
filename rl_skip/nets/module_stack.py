"""A stack of any PyTorch modules."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from rl_skip.core.costs import count_flops, counting
from rl_skip.core.errors import UserError
from rl_skip.core.inputs import Inputs
from rl_skip.core.readouts import Adapter
from rl_skip.core.stack import Carry, LayerStack, version_of

__all__ = ["ModuleStack"]


class ModuleStack(LayerStack):
    """A stack of any PyTorch modules: `embed`, then layers that keep the shape, then `head`.

    Args:
        embed: inputs → hidden state (B, ..., D), or a pair of it and a mask (B, T) that is true on real tokens.
        layers: modules that map the hidden state to one of the same shape; with `layers_take_mask` they are called
            as `layer(hidden, mask)`.
        head: (hidden, mask) → outputs with `layers_take_mask`, else hidden → outputs.
        width: D, the size of the hidden state's channel dimension.
        layer_flops: operations of each layer for one row. None: counted on `example`, or for `tokens`.
        example: inputs of a few rows, on which the operations are counted.
        channel_dim: where the D channels are; 1 for images (B, D, H, W).
        tokens: T; without an example, the operations are counted on a hidden state (1, T, D).

    Example:
        >>> layers = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(4)]
        >>> stack = ModuleStack(nn.Linear(3, 8), layers, nn.Linear(8, 2), width=8, example=torch.zeros(1, 5, 3))
        >>> stack.layer_costs.tolist()
        [0.25, 0.25, 0.25, 0.25]
    """

    def __init__(
        self,
        embed: nn.Module,
        layers: Sequence[nn.Module],
        head: nn.Module,
        *,
        width: int,
        layer_flops: Sequence[float] | None = None,
        example: Inputs | None = None,
        layers_take_mask: bool = False,
        channel_dim: int = -1,
        tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.embed, self.layers, self.head = embed, nn.ModuleList(layers), head
        self.depth, self.width = len(self.layers), width
        self.layers_take_mask, self.channel_dim = layers_take_mask, channel_dim
        self.full_flops = 1.0
        self._write: dict[tuple[nn.Module, bool], bool] = {}  # whether a module, training or not, writes into its input
        if layer_flops is None:
            if example is None and tokens is None:
                raise ValueError("the cost of the layers is unknown: pass layer_flops, or example inputs or the number of tokens to count them on")
            layer_flops = self._count_layer_flops(example, tokens)
        if len(layer_flops) != self.depth:
            raise ValueError(f"layer_flops has {len(layer_flops)} entries for {self.depth} layers")
        if not sum(layer_flops) > 0:
            raise ValueError(f"the {self.depth} layers cost nothing, so no share of it can be taken: pass layer_flops above 0")
        self.register_buffer("layer_flops", torch.tensor(list(layer_flops), dtype=torch.float32), persistent=False)
        self.full_flops = float(sum(layer_flops))

    @classmethod
    def from_modules(
        cls,
        embed: nn.Module,
        layers: Iterable[nn.Module],
        head: nn.Module,
        *,
        example: Inputs,
        layers_take_mask: bool = False,
        channel_dim: int = -1,
    ) -> "ModuleStack":
        """A stack of given modules: width and costs are found on `example`, and layers that cannot be skipped are refused.

        Args:
            layers: a list, `nn.ModuleList` or `nn.Sequential`; the modules are taken as they are, with their weights.
            embed: as the constructor takes it.
            head: the same.
            example: the same.
            layers_take_mask: the same.
            channel_dim: the same.

        Raises:
            UserError: if there are no layers, or one returns anything but a tensor of the shape that it was given.

        Example:
            >>> encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 4, enable_nested_tensor=False)
            >>> head = nn.Sequential(nn.Flatten(), nn.Linear(5 * 16, 2))
            >>> stack = ModuleStack.from_modules(nn.Linear(3, 16), encoder.layers, head, example=torch.zeros(2, 5, 3))
            >>> stack.depth, stack.width
            (4, 16)
        """
        listed = list(layers)
        if not listed:
            raise UserError("there are no layers that could be skipped; give the nn.ModuleList or nn.Sequential that holds them")
        stack = cls(embed, listed, head, width=1, layer_flops=[1.0] * len(listed), layers_take_mask=layers_take_mask, channel_dim=channel_dim)
        with counting(stack):
            carry = stack.begin(example)
            for i, layer in enumerate(stack.layers):
                moved = stack._caller(layer)(carry.hidden, carry.mask)
                if not isinstance(moved, Tensor) or moved.shape != carry.hidden.shape:
                    returned = f"one of shape {tuple(moved.shape)}" if isinstance(moved, Tensor) else f"a {type(moved).__name__}"
                    raise UserError(
                        f"layer {i}, {type(layer).__name__}, turns a tensor of shape {tuple(carry.hidden.shape)} into {returned}, so it cannot be "
                        "skipped; give layers that map a tensor to one of the same shape"
                    )
        width = stack.pooled(carry, None).shape[1]
        return cls(embed, listed, head, width=width, example=example, layers_take_mask=layers_take_mask, channel_dim=channel_dim)

    def begin(self, inputs: Inputs) -> Carry:
        embedded = self.embed(inputs)
        hidden, mask = embedded if isinstance(embedded, tuple) else (embedded, None)
        return Carry(hidden=hidden, full_flops=torch.full(hidden.shape[:1], self.full_flops, device=hidden.device), mask=mask)

    def run(self, i: int, carry: Carry, rows: Tensor | None) -> Tensor:
        call = self._caller(self.layers[i])
        if rows is None:
            carry.hidden = call(carry.hidden, carry.mask)
            return self.layer_cost(i, carry.hidden.shape[0])
        hidden, mask = carry.some(rows)
        carry.write(rows, call(hidden, mask), mask)
        return self.layer_cost(i, rows.shape[0])

    def finish(self, carry: Carry) -> Tensor:
        return self._caller(self.head)(carry.hidden, carry.mask)

    def pooled(self, carry: Carry, rows: Tensor | None) -> Tensor:
        if carry.mask is not None:
            return super().pooled(carry, rows)
        hidden = self.gathered(carry, rows)[0].movedim(self.channel_dim, -1)
        return hidden.flatten(1, -2).mean(dim=1) if hidden.dim() > 2 else hidden

    def readout(self) -> nn.Module:
        return self.head

    def look_modules(self) -> tuple[nn.Module, ...]:
        return (self.head,)

    def read(self, readout: nn.Module, carry: Carry, rows: Tensor | None) -> Tensor:
        hidden, mask = self.gathered(carry, rows)
        if isinstance(readout, Adapter):
            hidden, readout = readout(hidden, mask), self.head
        return self._caller(readout)(hidden, mask)

    def layer_modules(self) -> list[nn.Module]:
        return list(self.layers)

    def keep(self, layers: Sequence[int]) -> "ModuleStack":
        self.layers = nn.ModuleList(self.layers[i] for i in layers)
        self.layer_flops, self.depth = self.layer_flops[list(layers)], len(layers)
        return self

    def _caller(self, module: nn.Module) -> Callable[[Tensor, Tensor | None], Tensor]:
        """A layer or head as a function that leaves the hidden state as it is, since readouts, features and rows that go on need it still: a module
        that writes into what it is given, such as one that begins with `nn.ReLU(inplace=True)`, is given a copy."""
        call = module if self.layers_take_mask else lambda hidden, _mask: module(hidden)
        compiling = torch.compiler.is_compiling()
        writes = None if torch.compiler.is_dynamo_compiling() else self._write.get((module, module.training))
        if writes is None and not compiling:
            return partial(self._found_out, module, call)
        # What is recorded unseen has a copy, which a compiler drops where nothing writes.
        return call if writes is False else lambda hidden, mask: call(hidden.clone(), mask)

    def _found_out(self, module: nn.Module, call: Callable[[Tensor, Tensor | None], Tensor], hidden: Tensor, mask: Tensor | None) -> Tensor:
        """Calls a module for the first time, with a copy, and keeps whether it writes into what it is given.

        One with a drop-out that writes counts as such in either mode: in evaluation the drop-out does nothing, and its mode is its own.
        """
        with torch.inference_mode(False), torch.set_grad_enabled(torch.is_grad_enabled()):
            given = hidden.clone()  # no inference tensor: those do not count how often they are written to
        before = version_of(given)
        returned = call(given, mask)
        drops = any(isinstance(part, _DropoutNd) and part.inplace for part in module.modules())
        self._write[module, module.training] = drops or version_of(given) != before
        return returned

    def _count_layer_flops(self, example: Inputs | None, tokens: int | None) -> list[float]:
        with counting(self):
            blank = torch.zeros(1, tokens or 1, self.width)
            carry = Carry(hidden=blank, full_flops=blank) if example is None else self.begin(example)
            rows = carry.hidden.shape[0]
            return [count_flops(partial(self._caller(layer), carry.hidden, carry.mask)) / rows for layer in self.layers]
