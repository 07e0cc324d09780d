"""The contract between a model and everything else: a stack of layers that rows may skip."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from rl_skip.core.costs import CostModel, counting
from rl_skip.core.errors import UserError
from rl_skip.core.inputs import Inputs
from rl_skip.core.means import masked_mean
from rl_skip.core.readouts import RANK, Adapter, Readouts, adapter_of, too_large

__all__ = ["Carry", "LayerStack", "SplitWeights"]

T = TypeVar("T")


class _Packed(NamedTuple):
    """The rows that a layer has just run on, as it returned them, beside the hidden state of all in which they are written too."""

    rows: Tensor
    hidden: Tensor
    mask: Tensor | None
    home: Tensor
    version: int

    def is_of(self, home: Tensor) -> bool:
        """Whether the hidden state of all rows is the one that was written, and nobody has changed it since."""
        return home is self.home and version_of(home) == self.version


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 where PyTorch does not count."""
    return 0 if tensor.is_inference() else tensor._version


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

    shared = False
    """Whether somebody else may keep the hidden state between two layers, so that it is never written in place."""
    packed = None
    """`_Packed` rows, which travel together: they are not gathered again."""

    def some(self, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The hidden state (R, ...) and the mask (R, T) of the named rows (None: all)."""
        packed: _Packed | None = self.packed
        if rows is None:
            self.packed = None  # the hidden state is somebody else's too from now on, and must not be written to
            return self.hidden, self.mask
        if packed is not None and packed.rows is rows and packed.is_of(self.hidden):
            return packed.hidden, packed.mask
        return self.hidden.index_select(0, rows), None if self.mask is None else self.mask.index_select(0, rows)

    def write(self, rows: Tensor, hidden: Tensor, mask: Tensor | None) -> None:
        """Writes the hidden state (R, ...) of the named rows, whose `mask` is (R, T)."""
        hidden, packed = hidden.to(self.hidden.dtype), self.packed
        writable = not (self.shared or torch.is_grad_enabled() or torch.compiler.is_compiling())
        own = writable and packed is not None and packed.is_of(self.hidden)
        self.hidden = self.hidden.index_copy_(0, rows, hidden) if own else self.hidden.index_copy(0, rows, hidden)
        self.packed = _Packed(rows, hidden, mask, self.hidden, version_of(self.hidden))

    def take(self, rows: Tensor) -> "Carry":
        """A carry of the named rows alone."""
        return replace(self, **{name: tensor.index_select(0, rows) for name, tensor in self._tensors().items()})

    def put(self, rows: Tensor, other: "Carry") -> None:
        """Overwrites the named rows with those of `other`, which has exactly these rows, in order."""
        for name, tensor in self._tensors().items():
            setattr(self, name, tensor.index_copy(0, rows, getattr(other, name).to(tensor.dtype)))

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: value for field in fields(self) if isinstance(value := getattr(self, field.name), Tensor)}


class SplitWeights(Protocol):
    """What gathers the weights of a stack that are split over several processes, all of which make each pass together."""

    def passed(self, call: Callable[[], T]) -> T:
        """One pass from `begin` to the outputs, which `call` makes."""
        ...

    def passed_over(self, i: int) -> None:
        """Called where no row of a pass runs layer `i` in this process: those of another may."""
        ...


class LayerStack(nn.Module):
    """A stack of L layers of which each row of a batch runs some.

    Subclasses set `depth`, `width` and the buffer `layer_flops`, and implement `begin`, `run` and `finish`;
    `pooled`, `memory` and `on_jump` have defaults that suit hidden states of shape (B, T, D).

    All other methods are optional: what else can be done with the network. By default it cannot be done: `head_modules` and
    `readout` (its head; without one readouts are adapters), `keep` (without some of its layers), `add_adapters`, `described`
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
    channel_dim: int = -1
    """Where the D channels of the hidden state are."""
    looks_at_answers: bool = True
    """Whether what a policy sees of a readout is what the readout answers; else a look is another, cheaper call of it."""
    answers_late: bool = False
    """Whether rows that left are answered outside of the routing, by a model that goes on once its layers are done."""
    split: SplitWeights | None = None
    """What gathers the weights, where they are split over several processes; None: each process has them all."""
    autocast: torch.dtype | None = None
    """The number format in which matrices are multiplied (`torch.autocast`); None: that of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self._shares: tuple[Tensor, int, Tensor, tuple[Tensor, ...]] | None = None  # operations of the layers, their version, shares, and each
        self.readouts: Readouts | None = None
        """What answers rows that leave early; None: what comes after the last layer answers all."""

    def __prepare_scriptable__(self) -> None:
        """Called by `torch.jit.script`, which would read the source of what rows may skip.

        Raises:
            UserError: always.
        """
        raise UserError(f"torch.jit.script cannot read a {type(self).__name__}: torch.jit.trace a PrunedNetwork of one route instead")

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
        flops = self.layer_flops
        if torch.compiler.is_compiling():  # what a graph makes is not to be kept
            return flops / flops.sum()
        if self._shares is None or self._shares[0] is not flops or self._shares[1] != version_of(flops):
            shares = flops / flops.sum()
            self._shares = flops, version_of(flops), shares, shares.split(1)
        return self._shares[2]

    def layer_cost(self, i: int, rows: int) -> Tensor:
        """(rows,), the share of layer `i` for each row."""
        shares = self.layer_costs
        if self._shares is None or shares is not self._shares[2]:
            return shares[i].expand(rows)
        return self._shares[3][i] if rows == 1 else self._shares[3][i].expand(rows)

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
        return masked_mean(*self.gathered(carry, rows))

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

    def read(self, readout: nn.Module, carry: Carry, rows: Tensor | None) -> Tensor:
        """(R, ...), what the named rows (None: all) are answered by a readout: a copy of `readout()`, or an adapter before `finish`."""
        if isinstance(readout, Adapter):
            some = carry if rows is None else carry.take(rows)
            return self.finish(replace(some, hidden=readout(some.hidden, some.mask)))
        outputs: Tensor = readout(*self.gathered(carry, rows))
        return outputs

    def look(self, readout: nn.Module, carry: Carry, rows: Tensor | None) -> Tensor:
        """(R, ..., C), the logits of a readout that a policy sees of the named rows (None: all); by default all that `read` answers."""
        return self.read(readout, carry, rows)

    def look_modules(self) -> tuple[nn.Module, ...] | None:
        """The modules beside the readout that `look` calls, where it takes no more than these and the hidden state and the mask of a carry: then it
        can be compiled. None: it takes more, or is not known to do with less, which a look may show."""
        return None

    def answer_flops(self, readouts: Readouts, carry: Carry, rows: Tensor, looked: bool) -> Tensor | float:
        """(R,) or one for all, operations of answering the named rows by a readout, beyond those of a look where they were `looked` at."""
        return 0.0 if looked else readouts.flops

    def gathered(self, carry: Carry, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The hidden state (R, ...) of the named rows (None: all), and which of their tokens are real, (R, T); None where all are."""
        hidden, mask = carry.some(rows)
        return hidden if self.autocast is None else hidden.float(), mask

    def plan_readouts(self, example: Inputs | None) -> dict[str, Any]:
        """What readouts suit the stack, in plain JSON: {}, copies of its head; {"rank": …}, adapters where it has none to copy or a large one.

        Args:
            example: inputs of a few rows, for stacks that must be watched to know it.
        """
        head = self.readout()
        return {"rank": RANK} if head is None or too_large([head], self.depth) else {}

    def make_readout(self, plan: dict[str, Any]) -> nn.Module:
        """A readout as a plan says, that answers as the stack's own head does now.

        Raises:
            UserError: if the stack has no such head.
        """
        if "rank" in plan:
            return adapter_of(self.width, plan, self.channel_dim)
        head = self.readout()
        if head is None:
            raise UserError(f"a {type(self).__name__} has no head of which readouts could be copies; load them with the stack they were saved for")
        return head

    def new_readouts(self, example: Inputs | None = None, *, plan: dict[str, Any] | None = None, flops: float = 0.0) -> Readouts:
        """A readout after each layer but the last, each begun as the stack's own head.

        Args:
            example: inputs of a few rows, on which a readout's operations are counted.
            plan: what they are, such as {"rank": 8}; None: as `plan_readouts` finds.
            flops: the operations of a readout for one row, where they are known already.
        """
        plan = self.plan_readouts(example) if plan is None else plan
        readouts = Readouts(self.make_readout(plan), self.depth, plan, flops).to(self._device())
        if example is not None:
            self.count_readouts(example, readouts)
        return readouts

    def add_readouts(self, example: Inputs | None = None, *, plan: dict[str, Any] | None = None, flops: float = 0.0) -> Readouts:
        """Gives the stack readouts, as `new_readouts` makes them, and returns them."""
        self.readouts = self.new_readouts(example, plan=plan, flops=flops)
        return self.readouts

    def count_readouts(self, example: Inputs, readouts: Readouts) -> None:
        """Counts the operations of looking at one of these readouts for one row, on inputs of a few rows."""
        with torch.no_grad():
            carry = self.begin(example)
        with counting(self):
            readouts.count(lambda readout: self.read(readout, carry, None), carry.hidden.shape[0])

    def know_readouts(self, example: Inputs) -> None:
        """Counts what is not known yet of the stack's readouts, on inputs of a few rows: those that were loaded do not know their classes."""
        readouts = self.readouts
        if readouts is None:
            raise ValueError("the stack has no readouts: call its add_readouts() first")
        known = readouts.flops
        if not (known and readouts.classes):
            self.count_readouts(example, readouts)
            readouts.flops = known or readouts.flops

    def take_readout(self, i: int) -> Adapter | None:
        """Takes the readouts out, and lets the stack itself answer as the one after layer `i` did, for a network that ends there.

        Returns:
            The adapter that must stand before `finish` for that; None where none is needed.
        """
        readouts, self.readouts = self.readouts, None
        if readouts is None or i == self.depth - 1:
            return None
        readout = readouts.each[i]
        if isinstance(readout, Adapter):
            return readout
        self.answer_as(readout)
        return None

    def answer_as(self, readout: nn.Module) -> None:
        """Gives the stack's own head the weights of a copy of it."""
        head = self.readout()
        assert head is not None
        head.load_state_dict(readout.state_dict())

    def _device(self) -> torch.device:
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def head_modules(self) -> list[nn.Module]:
        """The modules that turn the last hidden state into outputs, for training them alone; empty where they are not known."""
        readout = self.readout()
        return [] if readout is None else [readout]

    def layer_modules(self) -> list[nn.Module]:
        """The L modules of the layers, each by itself; empty where they are not known, or do not stand alone."""
        return []

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
