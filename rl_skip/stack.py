"""The contract between a model and everything else: a stack of layers that rows may skip."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.costs import CostModel, count_flops, counting
from rl_skip.errors import UserError
from rl_skip.inputs import Inputs

__all__ = ["Carry", "LayerStack", "ModuleStack", "masked_mean"]


@dataclass
class Carry:
    """What a batch takes with it from layer to layer. Every tensor has the rows first."""

    hidden: Tensor
    """The hidden state, (B, T, D) or any other shape with B first."""
    full_flops: Tensor
    """(B,), operations of each row through all layers, the unit of compute."""
    mask: Tensor | None = None
    """(B, T), true where a token is real and not padding; None where all are."""
    origin: Tensor | None = None
    """(B, T, D), the stack's input, kept by stacks whose jumps mix it in again."""
    memory: Tensor | None = None
    """(B, 1, D), the working memory, kept by stacks that have one."""

    def take(self, rows: Tensor) -> "Carry":
        """A carry of the named rows alone."""
        return replace(self, **{name: tensor.index_select(0, rows) for name, tensor in self._tensors().items()})

    def put(self, rows: Tensor, other: "Carry") -> None:
        """Overwrites the named rows with those of `other`, which has exactly these rows, in order."""
        for name, tensor in self._tensors().items():
            setattr(self, name, tensor.index_copy(0, rows, getattr(other, name)))

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: value for field in fields(self) if isinstance(value := getattr(self, field.name), Tensor)}


def masked_mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the tokens of (B, T, D) that `mask` (B, T) calls real. Returns (B, D)."""
    if mask is None:
        return hidden.mean(dim=1)
    weight = mask.to(hidden.dtype).unsqueeze(-1)  # (B, T, 1)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)


class LayerStack(nn.Module):
    """A stack of L layers of which each row of a batch runs some.

    Subclasses set `depth`, `width` and the buffer `layer_flops`, and implement `begin`, `run` and `finish`;
    `pooled`, `memory` and `on_jump` have defaults that suit hidden states of shape (B, T, D).

    All other methods are optional. They say what else can be done with the network, each with a default that says that it
    cannot: `head_modules` and `readout` (its head), `keep` (without some of its layers), `add_adapters`, `described`
    (rebuilding it from a file), `network_state` and `write_model` (how it is saved), `take_policy`.
    """

    depth: int
    """L, the number of layers that may be skipped."""
    width: int
    """D, the width of the pooled hidden state."""
    layer_flops: Tensor
    """(L,), operations of each layer for one row of nominal length."""
    has_memory: bool = False
    """Whether there is a working memory, so that `memory` returns one."""
    costs: CostModel = CostModel()
    """What running a layer, or deciding, costs."""

    @property
    def layer_costs(self) -> Tensor:
        """(L,), share of each layer in the cost of running all of them. Sums to 1."""
        return self.layer_flops / self.layer_flops.sum()

    def described(self) -> dict[str, Any] | None:
        """What an export says about the network, in plain JSON; None: nothing but its depth, width and costs."""
        return None

    def begin(self, inputs: Inputs) -> Carry:
        """Everything before layer 0."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it begins")

    def run(self, i: int, carry: Carry, rows: Tensor | None) -> Tensor:
        """Runs layer `i` on the named rows (None: all rows, without a gather) and writes them back to `carry`.

        Returns:
            (R,), the compute that each of these rows spent, in units of the whole stack at full depth.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it runs a layer")

    def finish(self, carry: Carry) -> Tensor:
        """Everything after the last layer. Returns the outputs, rows first."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it finishes")

    def pooled(self, carry: Carry, rows: Tensor | None) -> Tensor:
        """(R, D), the mean of the hidden state over the real tokens of the named rows."""
        mask = carry.mask
        if rows is None:
            return masked_mean(carry.hidden, mask)
        return masked_mean(carry.hidden.index_select(0, rows), None if mask is None else mask.index_select(0, rows))

    def memory(self, carry: Carry, rows: Tensor | None) -> Tensor | None:
        """(R, D), the working memory of the named rows; None where the stack has none."""
        if carry.memory is None:
            return None
        memory = carry.memory if rows is None else carry.memory.index_select(0, rows)
        return memory.squeeze(1)

    def on_jump(self, carry: Carry, rows: Tensor, jumps: Tensor) -> None:
        """Called after the policy chose `jumps` (R,) for `rows`; stacks that mark a jump in the hidden state do it here."""

    def readout(self) -> nn.Module | None:
        """The module that turns the hidden state after any layer into outputs, for copies of it; `read` calls it. None: there is none."""
        return None

    def read(self, readout: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """The outputs of `readout`, or of a copy of it, on a hidden state and its mask, rows first."""
        outputs: Tensor = readout(hidden, mask)
        return outputs

    def head_modules(self) -> list[nn.Module]:
        """What makes outputs of the last hidden state, for training it alone; empty where that is not known."""
        readout = self.readout()
        return [] if readout is None else [readout]

    def keep(self, layers: Sequence[int]) -> "LayerStack":
        """The same network without all layers but `layers`, which ascend; this stack is taken over.

        Raises:
            UserError: if the stack does not know which of its weights are a layer's.
        """
        raise UserError(f"a {type(self).__name__} cannot be pruned: it does not know which of its weights are a layer's; give it a keep(layers)")

    def add_adapters(self, rank: int, alpha: int) -> Any:
        """Puts adapters into the linear maps of the layers (LoRA, Hu et al. 2022).

        Returns:
            What stands around the model now; its `merge_and_unload` adds what the adapters learned to the weights.

        Raises:
            UserError: if the stack takes none.
        """
        raise UserError("adapters go into models from transformers; set --tune all, or --model to one")

    def network_state(self) -> dict[str, Tensor]:
        """The weights that an export writes as the network's: all but those of a policy inside."""
        return self.state_dict()

    def write_model(self, folder: Path) -> bool:
        """Writes the network into a folder in a format of its own, in place of what is there. Returns whether it has one."""
        return False

    def take_policy(self, policy: nn.Module, price: float) -> None:
        """Called when a policy is loaded with the stack: a stack with a policy inside takes it in its place."""


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
        """A stack of modules that are at hand: width and costs are found on `example`, and what cannot be skipped is refused.

        Args:
            layers: a list, `nn.ModuleList` or `nn.Sequential`; the modules are taken as they are, with their weights.
            embed, head, example, layers_take_mask, channel_dim: as the constructor takes them.

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
                    found = f"one of shape {tuple(moved.shape)}" if isinstance(moved, Tensor) else f"a {type(moved).__name__}"
                    raise UserError(
                        f"layer {i}, {type(layer).__name__}, turns a tensor of shape {tuple(carry.hidden.shape)} into {found}, so it cannot be "
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
            return self.layer_costs[i].expand(carry.hidden.shape[0])
        mask = None if carry.mask is None else carry.mask.index_select(0, rows)
        moved = call(carry.hidden.index_select(0, rows), mask)
        carry.hidden = carry.hidden.index_copy(0, rows, moved.to(carry.hidden.dtype))
        return self.layer_costs[i].expand(rows.shape[0])

    def finish(self, carry: Carry) -> Tensor:
        return self.read(self.head, carry.hidden, carry.mask)

    def pooled(self, carry: Carry, rows: Tensor | None) -> Tensor:
        if carry.mask is not None:
            return super().pooled(carry, rows)
        hidden = carry.hidden if rows is None else carry.hidden.index_select(0, rows)
        hidden = hidden.movedim(self.channel_dim, -1)
        return hidden.flatten(1, -2).mean(dim=1) if hidden.dim() > 2 else hidden

    def readout(self) -> nn.Module:
        return self.head

    def read(self, readout: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
        return self._caller(readout)(hidden, mask)

    def keep(self, layers: Sequence[int]) -> "ModuleStack":
        self.layers = nn.ModuleList(self.layers[i] for i in layers)
        self.layer_flops, self.depth = self.layer_flops[list(layers)], len(layers)
        return self

    def _caller(self, module: nn.Module) -> Callable[[Tensor, Tensor | None], Tensor]:
        return module if self.layers_take_mask else lambda hidden, _mask: module(hidden)

    def _count_layer_flops(self, example: Inputs | None, tokens: int | None) -> list[float]:
        with counting(self):
            blank = torch.zeros(1, tokens or 1, self.width)
            carry = Carry(hidden=blank, full_flops=blank) if example is None else self.begin(example)
            rows = carry.hidden.shape[0]
            return [count_flops(partial(self._caller(layer), carry.hidden, carry.mask)) / rows for layer in self.layers]
