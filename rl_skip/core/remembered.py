"""What a policy saw of each row when it last looked at it, for features that compare."""

import torch
from torch import Tensor

__all__ = ["NEVER", "Remembered"]

NEVER = -1
"""The layer after which a row was last looked at, where it never was."""


class Remembered:
    """Values of B rows, (B, K): what was given at the last look, and at the one before.

    Rows that have just run a layer together, and are looked at for the first time since, take one gather and one write, and none at all where they
    are all rows. Who looks at rows after different layers, as an environment does, finds for each whether it has moved.

    Args:
        like: (R, K), values of a look.
        rows: B.
    """

    def __init__(self, like: Tensor, rows: int) -> None:
        self._now = like.new_zeros(rows, *like.shape[1:])
        self._before = self._now
        self._at = torch.full((rows,), NEVER, dtype=torch.long, device=like.device)  # the layer after which each was last looked at
        self._unwritten: list[tuple[Tensor | None, Tensor, int]] = []  # looks that `_before` and `_at` do not know yet: rows, before, layer

    def last(self, rows: Tensor | None) -> Tensor:
        """(R, K), what was given at the last look at rows (None: all)."""
        return self._now if rows is None else self._now.index_select(0, rows)

    def look_together(self, rows: Tensor | None, layer: int, value: Tensor) -> Tensor:
        """Takes `value` (R, K) of rows (None: all) that were not looked at since they ran `layer`. Returns what was given before, (R, K)."""
        before = self.last(rows)
        # Not in place: what was given may be somebody else's.
        self._now = value if rows is None else self._now.index_copy(0, rows, value)
        if rows is None:
            self._unwritten.clear()
        self._unwritten.append((rows, before, layer))
        return before

    def look(self, rows: Tensor, layers: Tensor, value: Tensor) -> Tensor:
        """Takes `value` (R, K) of rows after their `layers` (R,). Returns what was given after an earlier layer, (R, K)."""
        self._write()
        moved = self._at[rows] != layers
        fresh = rows[moved]
        self._before = self._before.index_copy(0, fresh, self._now[fresh])
        self._now = self._now.index_copy(0, rows, value)
        self._at[rows] = layers
        return self._before[rows]

    def forget(self, rows: Tensor) -> None:
        """The named rows begin anew."""
        self._write()
        self._now, self._before = (values.index_fill(0, rows, 0.0) for values in (self._now, self._before))
        self._at[rows] = NEVER

    def fork(self) -> "Remembered":
        """A copy that can take other looks."""
        self._write()
        other = Remembered.__new__(Remembered)
        other._now, other._before, other._at, other._unwritten = self._now, self._before, self._at.clone(), []
        return other

    def _write(self) -> None:
        for rows, before, layer in self._unwritten:
            if rows is None:
                self._before = before
                self._at.fill_(layer)
            else:
                self._before = self._before.index_copy(0, rows, before)
                self._at.index_fill_(0, rows, layer)
        self._unwritten.clear()
