"""Readouts: what a network answers where a row leaves early, one after each layer but the last."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.core.costs import count_flops, counting
from rl_skip.core.fields import Fields
from rl_skip.core.means import attended_mean, masked_mean

__all__ = ["LARGEST", "POOLING_RANK", "RANK", "Adapter", "PoolingAdapter", "Readouts", "adapter_of", "read_groups", "too_large"]

RANK, POOLING_RANK = 16, 128
LARGEST = 4_000_000
"""Numbers that the readouts of all depths may hold together as copies of the network's own head, 16 MB in single precision; beyond, they are
adapters: they are saved with every policy."""


class Adapter(nn.Module):
    """A readout that is small whatever the head: hidden + up(down(hidden)), which the network's own head then reads (Houlsby et al. 2019).

    It begins as the identity, so it answers at first as the head would.

    Args:
        width: D.
        rank: the width between the two maps.
        channel_dim: where the D channels of the hidden state are.
    """

    def __init__(self, width: int, rank: int = RANK, channel_dim: int = -1) -> None:
        super().__init__()
        self.down, self.up, self.channel_dim = nn.Linear(width, rank, bias=False), nn.Linear(rank, width), channel_dim
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """A hidden state → one of the same shape; `mask` (B, T) says which tokens are real, None: all."""
        moved: Tensor = self.up(self.down(hidden.movedim(self.channel_dim, -1)))
        return hidden + moved.movedim(-1, self.channel_dim)


class PoolingAdapter(Adapter):
    """An adapter for a head that reads one token, such as BERT's first: every token gets to know a mean over all, hidden + f(mean).

    After the first layers the token that the head reads knows little of the others yet.

    Args:
        width, rank, channel_dim: as `Adapter` takes them.
        groups: G, of channels whose mean has learned where to look, see `attended_mean`; it begins as the plain mean. 0: it stays that.
    """

    def __init__(self, width: int, rank: int = POOLING_RANK, channel_dim: int = -1, groups: int = 0) -> None:
        super().__init__(width, rank, channel_dim)
        self.norm, self.down = nn.LayerNorm(width), nn.Linear(width, rank)
        self.groups, self.score = groups, nn.Linear(width, groups) if groups else None
        if self.score is not None:
            nn.init.zeros_(self.score.weight)
            nn.init.zeros_(self.score.bias)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """A hidden state → one of the same shape; `mask` (B, T) says which tokens are real, None: all."""
        channels_last = hidden.movedim(self.channel_dim, -1)
        tokens, real = channels_last.flatten(1, -2), None if mask is None else mask.flatten(1)  # (B, T, D), (B, T)
        mean = masked_mean(tokens, real) if self.score is None else attended_mean(tokens, self.score(self.norm(tokens)), real)
        moved: Tensor = self.up(torch.tanh(self.down(self.norm(mean))))
        return hidden + moved.view(moved.shape[0], *(1,) * (channels_last.dim() - 2), -1).movedim(-1, self.channel_dim)


def adapter_of(width: int, plan: dict[str, Any], channel_dim: int = -1) -> Adapter:
    """The adapter that a plan describes: {"rank": …}; with {"pools": True} one that knows the mean over the tokens, and with {"groups": G} besides
    a mean that has learned where to look."""
    if plan.get("pools"):
        return PoolingAdapter(width, plan["rank"], channel_dim, plan.get("groups", 0))
    return Adapter(width, plan["rank"], channel_dim)


def read_groups(fields: Fields, name: str, width: int) -> int:
    """How many groups of channels the mean of an adapter weighs for itself, of a file; a `UserError` where the width does not divide."""
    if width % (groups := fields.integer(name)) != 0:
        raise fields.wrong(name, f"a divisor of the width {width}")
    return groups


def too_large(copied: Sequence[nn.Module], depth: int) -> bool:
    """Whether copies of these modules for all depths but the last of L = `depth` hold too much to be saved with a policy."""
    return sum(parameter.numel() for module in copied for parameter in module.parameters()) * (depth - 1) > LARGEST


class Readouts(nn.Module):
    """A readout after each layer but the last, whose answer is the stack's own.

    Args:
        first: what each is a copy of: the stack's own head, or an adapter.
        depth: L.
        plan: what they are, in plain JSON, from which `LayerStack.make_readout` makes one anew.
        flops: operations of looking at what one of them answers, for one row; 0: not counted yet.
    """

    def __init__(self, first: nn.Module, depth: int, plan: dict[str, Any] | None = None, flops: float = 0.0) -> None:
        super().__init__()
        self.each = nn.ModuleList(deepcopy(first).requires_grad_(True) for _ in range(depth - 1))
        self.plan, self.flops = plan or {}, flops
        self.classes = 0
        """How many classes one of them tells apart for each row; 0: not counted yet, or they answer something else."""

    def begin_as(self, first: nn.Module) -> None:
        """Gives all readouts the weights of `first`."""
        for readout in self.each:
            readout.load_state_dict(first.state_dict())

    def count(self, call: Callable[[nn.Module], Tensor], rows: int) -> None:
        """Counts the operations of one readout for one row, and the classes, on `call(readout)` for so many rows; to be called within `counting`."""
        answers: list[Tensor] = []
        with counting(self):
            self.flops = count_flops(lambda: answers.append(call(self.each[0]))) / rows
        self.classes = answers[0].shape[1] if answers[0].dim() == 2 else 0
