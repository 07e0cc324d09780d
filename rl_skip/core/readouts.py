"""Readouts: what a network answers where a row leaves early, a head of its own after each layer but the last."""

from collections.abc import Callable
from copy import deepcopy

from torch import Tensor, nn

from rl_skip.core.costs import count_flops, counting

__all__ = ["Readouts"]


class Readouts(nn.Module):
    """A copy of a stack's own head after each layer but the last, whose head is the stack's own.

    Args:
        head: what turns the hidden state after any layer into outputs.
        depth: L.
        flops: operations of one readout for one row; 0: not counted yet.
    """

    def __init__(self, head: nn.Module, depth: int, flops: float = 0.0) -> None:
        super().__init__()
        self.each = nn.ModuleList(deepcopy(head).requires_grad_(True) for _ in range(depth - 1))
        self.flops = flops

    def begin_as(self, head: nn.Module) -> None:
        """Gives all readouts the weights of `head`."""
        for readout in self.each:
            readout.load_state_dict(head.state_dict())

    def count(self, call: Callable[[nn.Module], Tensor], rows: int) -> None:
        """Counts the operations of one readout for one row, on `call(readout)` for so many rows."""
        with counting(self):
            self.flops = count_flops(lambda: call(self.each[0])) / rows
