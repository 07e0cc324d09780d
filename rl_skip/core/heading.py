"""Which layer each row of a batch runs next, known where the rows are and on the host."""

from copy import copy

import torch
from torch import Tensor

from rl_skip.core.devices import apart, uploaded

__all__ = ["WAITING", "Heading"]

WAITING = -1
"""In the place of a layer: the row waits for a decision."""


class Heading:
    """The next layer of each of B rows, on their device and, where that is apart from the host, on the host too.

    Rows are searched for on the host, so that a layer waits for the device once, for the decisions about its rows, and not once for each search.

    Args:
        everyone: (B,) long, 0 to B − 1, on the rows' device.
    """

    def __init__(self, everyone: Tensor) -> None:
        self._everyone, self._apart = everyone, apart(everyone.device)
        self._each: Tensor | int = 0  # of each row, or of all
        self._host: Tensor | None = None  # `each` where it is apart; None: it must be read
        on_host = torch.arange(everyone.shape[0]) if self._apart else everyone
        self._due = self._sent = everyone, on_host  # rows due last, and where some were sent, each there and on the host

    @property
    def each(self) -> Tensor:
        """(B,) long, the next layer of each row, `WAITING`, or L where it left."""
        if isinstance(self._each, int):
            self._each = torch.full_like(self._everyone, self._each)
        return self._each

    @property
    def of_all(self) -> int | None:
        """The next layer of all rows; None where that is not one number, or not known to be."""
        return self._each if isinstance(self._each, int) else None

    def due(self, i: int) -> Tensor | None:
        """(R,), the rows whose next layer is `i`; None where there are none."""
        if isinstance(self._each, int):
            return self._everyone if self._each == i else None
        here = (self._on_host() == i).nonzero().squeeze(1)
        if here.shape[0] == 0:
            return None
        self._due = uploaded(here, self._everyone.device), here
        return self._due[0]

    def on_host(self, rows: Tensor) -> Tensor:
        """(R,) long, the same rows on the host, which knows those that were due last."""
        return self._due[1] if rows is self._due[0] else rows.cpu()

    def send(self, rows: Tensor | None, following: Tensor | int) -> Tensor | int:
        """Notes the next layer of `rows` (R,) or, None, of all, (R,) on either device or one for them. Returns it, on their device."""
        host = following
        if isinstance(following, Tensor):
            host = following.cpu()  # the one wait for the rows' device
            following = uploaded(following, self._everyone.device) if following is host else following
            self._sent = following, host
        if rows is None:
            self._each = following.clone() if isinstance(following, Tensor) else following
            self._host = host.clone() if self._apart and isinstance(host, Tensor) else None
            return following
        _put(self.each, rows, following)
        if self._host is not None:
            if rows is self._due[0]:
                _put(self._host, self._due[1], host)
            else:
                self._host = None
        return following

    def sent_to(self, following: Tensor, layer: int) -> Tensor:
        """(R,) bool on the host, which rows of `following` (R,), as it was sent last, head for a layer."""
        return (self._sent[1] if self._sent[0] is following else following.cpu()) == layer

    def pass_over(self, i: int) -> None:
        """Moves rows whose next layer lies before `i` on to `i`."""
        self._each, self._host = self.each.clamp(min=i), None

    def fork(self) -> "Heading":
        """A copy that can go elsewhere."""
        other = copy(self)
        other._each, other._host = self.each.clone(), None if self._host is None else self._host.clone()
        return other

    def _on_host(self) -> Tensor:
        """(B,) long, `each`."""
        if not self._apart:
            return self.each
        if self._host is None:
            self._host = self.each.to("cpu", copy=True)
        return self._host


def _put(where: Tensor, rows: Tensor, following: Tensor | int) -> None:
    if isinstance(following, int):
        where.index_fill_(0, rows, following)
    else:
        where.index_copy_(0, rows, following)
