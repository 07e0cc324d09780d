"""What there is to see of rows on their way through a stack: the hidden state, what readouts say, what was seen before; and the observation of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rl_skip.core.features import View
from rl_skip.core.policy import JumpRules, ObservationLayout
from rl_skip.core.remembered import Remembered
from rl_skip.core.stack import Carry, LayerStack

__all__ = ["Sight"]


class Sight(ABC):
    """What a policy, and whoever asks a readout, sees of the B rows of a batch.

    Args:
        stack: the layers.
        rules: what the policy may see; None without a policy.
        carry: the batch between two layers.
        price: what compute costs, for each row or for all.
        rows: B.
    """

    def __init__(self, stack: LayerStack, rules: JumpRules | None, carry: Carry, price: Tensor | float, rows: int) -> None:
        self.stack, self.rules, self.carry = stack, rules, carry
        device = carry.hidden.device
        self.price = torch.as_tensor(price, dtype=torch.float32, device=device).expand(rows).clone()  # (B,)
        self.spent = torch.zeros(rows, stack.depth, device=device)
        """(B, L), the relative compute that each row spent at each layer, decisions included."""
        self._cheap = 0 < price < rules.layout.price_low if rules is not None and isinstance(price, int | float) else None
        self.everyone = torch.arange(rows, device=device)
        self._visited: tuple[int, Tensor] | None = None  # the layer that ran last, and the rows that it ran on
        self._said: tuple[Tensor, Tensor] | None = None  # the rows whose readouts were asked last, and what they said
        self._looks: dict[str, Remembered] = {}
        self._looked: dict[str, Tensor] = {}  # since the last visit, by name: what was given before
        self._known: dict[str, Tensor] = {}  # features that stay as they are, (B, size) each by name

    @property
    @abstractmethod
    def position(self) -> Tensor:
        """(B,) long, the last layer that each row has run; 0 before any."""

    @property
    def layout(self) -> ObservationLayout:
        """What an observation holds.

        Raises:
            ValueError: if there is no policy.
        """
        if self.rules is None:
            raise ValueError("cannot observe: this forward pass has no policy")
        return self.rules.layout

    @property
    def cheap(self) -> bool:
        """Whether compute costs some row less than an observation can show, see `JumpPolicy.likeliest`."""
        if self._cheap is None:
            self._cheap = bool(((self.price > 0) & (self.price < self.layout.price_low)).any())
        return self._cheap

    def said(self, rows: Tensor) -> Tensor:
        """(R, ..., C), what a policy sees of what the network would answer rows that wait for a decision, by the readout after their last layer.

        Raises:
            ValueError: if the stack has no readouts.
        """
        if self._said is None or self._said[0] is not rows:
            self._said = rows, self._after(rows, self._look)
        return self._said[1]

    def answer(self, rows: Tensor) -> Tensor:
        """(R, ...), what rows that wait for a decision are answered where they leave now."""
        return self.said(rows) if self.stack.looks_at_answers else self._after(rows, self._read)

    def read(self, readout: nn.Module, rows: Tensor) -> Tensor:
        """(R, ...), what a readout answers the named rows as they are."""
        return self._asked(self.stack.read, readout, rows)

    def look(self, readout: nn.Module, rows: Tensor) -> Tensor:
        """(R, ..., C), what a policy sees of it."""
        if self.stack.looks_at_answers:  # what is an answer too is learned from
            return self._asked(self.stack.look, readout, rows)
        with torch.no_grad():
            return self._asked(self.stack.look, readout, rows)

    def _asked(self, ask: Callable[[nn.Module, Carry, Tensor | None], Tensor], readout: nn.Module, rows: Tensor) -> Tensor:
        with self.stack.computing(rows.device):
            said = ask(readout, self.carry, self.some(rows))
        return said if self.stack.autocast is None else said.float()

    def _after(self, rows: Tensor, ask: Callable[[int, Tensor], Tensor]) -> Tensor:
        """What `ask(i, rows)` says of rows that wait, each after its last layer i."""
        if self._visited is not None and self._visited[1] is rows:
            return ask(self._visited[0], rows)
        position = self.position[rows]  # the rows of an environment are at different layers
        parts = [(there, ask(i, rows[there])) for i in position.unique().tolist() for there in ((position == i).nonzero().squeeze(1),)]
        order = torch.cat([there for there, _ in parts]).argsort()
        return torch.cat([logits for _, logits in parts])[order]

    def _read(self, i: int, rows: Tensor) -> Tensor:
        return self.finish(rows) if i == self.stack.depth - 1 else self.read(self._readout(i), rows)

    def _look(self, i: int, rows: Tensor) -> Tensor:
        if i < self.stack.depth - 1:
            return self.look(self._readout(i), rows)
        return self.finish(rows) if self.stack.looks_at_answers else self.look(nn.Identity(), rows)  # the stack's own head, as it is

    def _readout(self, i: int) -> nn.Module:
        if self.stack.readouts is None:
            raise ValueError("the stack has no readouts: call its add_readouts() first")
        return self.stack.readouts.each[i]

    def observe(self, rows: Tensor) -> Tensor:
        """(R, S), what the policy sees of rows that wait for a decision."""
        layout, some = self.layout, self.some(rows)
        if not self._known:
            self._know(self.rules)  # type: ignore[arg-type]
        known = self._known if some is None else {name: values.index_select(0, some) for name, values in self._known.items()}
        return layout.read(View(self, rows), known)

    @property
    def looked(self) -> bool:
        """Whether some of the rows that the last layer ran on were looked at already."""
        return self._said is not None or bool(self._looked)

    def hear(self, rows: Tensor, said: Tensor) -> None:
        """Notes what the readout after their last layer said of `rows` (R,), (R, ..., C), where somebody else has asked it: see `said`."""
        self._said = rows, said

    def remembered(self, name: str, rows: Tensor, size: int) -> Tensor:
        """(R, size), what `previous` will give by that name to `rows` (R,), which have run a layer together and were not looked at since."""
        if name not in self._looks:
            self._looks[name] = Remembered(self.price.new_zeros(1, size), self.price.shape[0])
        return self._looks[name].last(self.some(rows))

    def previous(self, name: str, rows: Tensor, value: Tensor) -> Tensor:
        """See `View.previous`."""
        if name not in self._looks:
            self._looks[name] = Remembered(value, self.price.shape[0])
        value, layer = value.detach() if value.requires_grad else value, self.layer_of(rows)
        if layer is None:
            return self._looks[name].look(rows, self.position[rows], value)
        if name not in self._looked:
            self._looked[name] = self._looks[name].look_together(self.some(rows), layer, value)
        return self._looked[name]

    def layer_of(self, rows: Tensor) -> int | None:
        """The layer that the named rows have all just run; None where they are at different ones, or that is not known without looking."""
        return self._visited[0] if self._visited is not None and self._visited[1] is rows else None

    def _know(self, rules: JumpRules) -> None:
        """Reads the features that are the same after every layer: the price, and with the scope "input" those of the hidden state."""
        view, layout = View(self, self.everyone), rules.layout
        parts = [part for part in layout.parts if part.stays or (part.of_state and rules.scope == "input")]
        self._known = {part.name: layout.read_feature(part, view) for part in parts}

    def finish(self, rows: Tensor) -> Tensor:
        """(R, ...), the stack's outputs for the named rows as they are."""
        some = self.some(rows)
        return self._finish(self.carry if some is None else self.carry.take(some))

    def _finish(self, carry: Carry) -> Tensor:
        with self.stack.computing(carry.hidden.device):
            outputs = self.stack.finish(carry)
        return outputs if self.stack.autocast is None else outputs.float()

    def some(self, rows: Tensor) -> Tensor | None:
        """The rows to gather; None where they are all rows."""
        return None if rows.shape[0] == self.price.shape[0] else rows
