"""The rows that everything in a comparison is measured on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rl_skip.core.errors import UserError
from rl_skip.core.task import Examples, Split, Task

__all__ = ["Rows"]


@dataclass(frozen=True)
class Rows:
    """The rows that everything is measured on."""

    validation: Examples
    test: Examples
    indices: tuple[Tensor, Tensor]
    """Which rows of the task's splits they are, in order; of validation and of test."""
    totals: tuple[int, int]
    """How many rows the splits have."""

    @classmethod
    def load(cls, task: Task, device: torch.device | str, limit: int | None = None) -> "Rows":
        """All rows of both splits, or at most `limit` of each, drawn at random but always the same.

        Raises:
            UserError: if they are too few to compare anything on.
        """
        splits: tuple[Split, Split] = ("validation", "test")
        loaded = [task.load(split) for split in splits]
        for split, examples in zip(splits, loaded, strict=True):
            if min(len(examples), limit or len(examples)) < 2:
                raise UserError(f"a comparison needs at least 2 {split} rows, and there are {min(len(examples), limit or 2)}; set --data or --rows")
        generator = torch.Generator().manual_seed(0)
        indices = tuple(torch.randperm(len(examples), generator=generator)[:limit].sort().values for examples in loaded)
        validation, test = (examples.take(chosen).to(device) for examples, chosen in zip(loaded, indices, strict=True))
        return cls(validation, test, (indices[0], indices[1]), (len(loaded[0]), len(loaded[1])))

    def both(self) -> tuple[Examples, Examples]:
        """Validation first."""
        return self.validation, self.test
