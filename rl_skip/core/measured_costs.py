"""Measured time in the place of counted operations: what layers, readouts and decisions cost by the clock."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rl_skip.core.costs import CostModel
from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields

__all__ = ["BatchTimes", "MeasuredCosts"]


@dataclass(frozen=True)
class BatchTimes:
    """What the parts of a routed pass take at one batch size, in milliseconds for each row."""

    batch_size: int
    layers: tuple[float, ...]
    """Of each of the L layers."""
    decision: float
    """Of looking at the state, a readout included where the policy looks at one, deciding, and sending the rows on."""
    readout: float
    """Of answering rows that leave; 0 without readouts."""

    @property
    def full(self) -> float:
        """Of all layers."""
        return sum(self.layers)

    @property
    def break_even(self) -> float:
        """The share of the layers up to which deciding after each layer that runs is faster than running all of them and deciding nothing.

        Example:
            >>> BatchTimes(1, (0.9, 0.9), decision=0.1, readout=0.0).break_even
            0.9
        """
        return self.full / (self.full + len(self.layers) * self.decision)


class MeasuredCosts(CostModel):
    """Relative compute in time: the share of the time of all layers, at one batch size on one machine.

    A row that is longer than another spends the more in a layer, as its operations say; a decision and a readout take the same for every row.

    Args:
        batches: what was measured, a batch size each.
        shares: (L,), the share of each layer in the operations of all.
        batch_size: at which time is charged, one of those measured; None: the first.
        machine: where it was measured, in words.

    Raises:
        UserError: if that batch size was not measured.

    Example:
        >>> costs = MeasuredCosts([BatchTimes(1, (3.0, 1.0), decision=0.2, readout=0.1)], (0.5, 0.5))
        >>> costs.layer(0, torch.tensor([0.5])).item(), costs.part("decision", torch.tensor([0.01])).item()
        (0.75, 0.05000000074505806)
    """

    def __init__(self, batches: Sequence[BatchTimes], shares: Sequence[float], *, batch_size: int | None = None, machine: str = "") -> None:
        self.batches, self.shares, self.machine = tuple(batches), tuple(shares), machine
        chosen = self.batches[0].batch_size if batch_size is None else batch_size
        found = [times for times in self.batches if times.batch_size == chosen]
        if not found:
            measured = ", ".join(str(times.batch_size) for times in self.batches)
            raise UserError(f"time was measured for batches of {measured} rows, not of {chosen}; measure it, or set --cost-batch to one of them")
        self.charged = found[0]
        """The times that count."""

    def layer(self, i: int, counted: Tensor) -> Tensor:
        return counted * (self.charged.layers[i] / self.charged.full / self.shares[i])

    def part(self, name: str, counted: Tensor) -> Tensor:
        taken = {"decision": self.charged.decision, "readout": self.charged.readout}.get(name)
        return counted if taken is None else torch.full_like(counted, taken / self.charged.full)

    def in_words(self) -> str:
        """One clause, for reports."""
        where = f" on {self.machine}" if self.machine else ""
        return f"time at batches of {self.charged.batch_size}, {self.charged.full:.3g} ms for each row at full depth{where}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, from which `read` makes the same."""
        batches = [asdict(times) | {"layers": list(times.layers)} for times in self.batches]
        return {"batches": batches, "shares": list(self.shares), "batch_size": self.charged.batch_size, "machine": self.machine}

    @classmethod
    def read(cls, fields: Fields, depth: int) -> "MeasuredCosts":
        """From JSON, checked field by field."""
        batches = []
        for one in fields.objects("batches"):
            layers = one.numbers("layers", depth)
            if not sum(layers) > 0:
                raise one.wrong("layers", "times above 0")
            batches.append(BatchTimes(one.integer("batch_size"), layers, one.number("decision"), one.number("readout")))
        if not batches:
            raise fields.wrong("batches", "a list of what was measured")
        shares = fields.numbers("shares", depth)
        if not all(share > 0 for share in shares):
            raise fields.wrong("shares", "shares above 0")
        return cls(batches, shares, batch_size=fields.integer("batch_size"), machine=fields.text("machine"))
