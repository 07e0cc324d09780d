"""The contract between a model and everything else: a stack of layers that rows may skip."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.core.costs import CostModel
from rl_skip.core.errors import UserError
from rl_skip.core.inputs import Inputs
from rl_skip.core.readouts import Readouts

__all__ = ["Carry", "LayerStack", "masked_mean"]


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
            setattr(self, name, tensor.index_copy(0, rows, getattr(other, name).to(tensor.dtype)))

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

    All other methods are optional: what else can be done with the network. By default it cannot be done: `head_modules` and
    `readout` (its head), `keep` (without some of its layers), `add_adapters`, `described` (rebuilding it from a file),
    `network_state` and `write_model` (how it is saved), `take_policy`.
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
    autocast: torch.dtype | None = None
    """The number format in which matrices are multiplied (`torch.autocast`); None: that of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.readouts: Readouts | None = None
        """What answers rows that leave early; None: what comes after the last layer answers all."""

    def computing(self, device: torch.device) -> AbstractContextManager[None]:
        """Within it, the network computes in the number format that `autocast` names; every pass enters it."""
        return nullcontext() if self.autocast is None else torch.autocast(device.type, self.autocast)

    @contextmanager
    def computing_in(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Within it, `autocast` is `dtype`."""
        before, self.autocast = self.autocast, dtype
        try:
            yield
        finally:
            self.autocast = before

    @property
    def layer_costs(self) -> Tensor:
        """(L,), share of each layer in the cost of running all of them. Sums to 1."""
        return self.layer_flops / self.layer_flops.sum()

    def described(self) -> dict[str, Any] | None:
        """The network's description in an export, in plain JSON; None: only its depth, width and costs are known."""
        return None

    def begin(self, inputs: Inputs) -> Carry:
        """Everything before layer 0."""
        raise NotImplementedError(f"{type(self).__name__} must implement begin")

    def run(self, i: int, carry: Carry, rows: Tensor | None) -> Tensor:
        """Runs layer `i` on the named rows (None: all rows, without a gather) and writes them back to `carry`.

        Returns:
            (R,), the relative compute that each of these rows spent: a share of the whole stack at full depth.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement run")

    def finish(self, carry: Carry) -> Tensor:
        """Everything after the last layer. Returns the outputs, rows first."""
        raise NotImplementedError(f"{type(self).__name__} must implement finish")

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

    def add_readouts(self, example: Inputs | None = None, *, flops: float = 0.0) -> Readouts:
        """Gives the stack a readout after each layer but the last, each begun as its own head.

        Args:
            example: inputs of a few rows, on which a readout's operations are counted.
            flops: the operations of a readout for one row, where they are known already.

        Raises:
            UserError: if the stack has no head that reads a hidden state of any layer.
        """
        head = self.readout()
        if head is None:
            raise UserError(f"a {type(self).__name__} has no head that could be copied after each layer; leave --readouts out")
        self.readouts = Readouts(head, self.depth, flops).to(next(head.parameters()).device)
        if example is not None:
            self.count_readouts(example)
        return self.readouts

    def count_readouts(self, example: Inputs) -> None:
        """Counts the operations of one of its readouts for one row, on inputs of a few rows."""
        assert self.readouts is not None
        with torch.no_grad():
            carry = self.begin(example)
        self.readouts.count(lambda readout: self.read(readout, carry.hidden, carry.mask), carry.hidden.shape[0])

    def head_modules(self) -> list[nn.Module]:
        """The modules that turn the last hidden state into outputs, for training them alone; empty where they are not known."""
        readout = self.readout()
        return [] if readout is None else [readout]

    def keep(self, layers: Sequence[int]) -> "LayerStack":
        """The same network without all layers but `layers`, which ascend; it may reuse this stack, which must not be used afterwards.

        Raises:
            UserError: if the stack does not know which of its weights are a layer's.
        """
        raise UserError(f"a {type(self).__name__} cannot be pruned: it does not know which of its weights are a layer's; give it a keep(layers)")

    def add_adapters(self, rank: int, alpha: int) -> Any:
        """Puts adapters into the linear maps of the layers (LoRA, Hu et al. 2022).

        Returns:
            The wrapped model; its `merge_and_unload` adds what the adapters learned to the weights.

        Raises:
            UserError: if the stack takes none.
        """
        raise UserError("adapters go into models from transformers; set --tune all, or --model to one")

    def network_state(self) -> dict[str, Tensor]:
        """The weights that an export writes as the network's: all but the readouts, and a policy inside."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("readouts.")}

    def write_model(self, folder: Path) -> bool:
        """Writes the network into a folder in a format of its own, in place of what is there. Returns whether it has one."""
        return False

    def take_policy(self, policy: nn.Module, price: float) -> None:
        """Called when a policy is loaded with the stack: a stack with a policy inside replaces its own."""
