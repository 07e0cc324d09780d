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
    places: tuple[Tensor, Tensor]
    """Which rows of the task's splits they are, in order; of validation and of test."""
    whole: tuple[int, int]
    """How many rows the splits have."""

    @classmethod
    def load(cls, task: Task, device: torch.device | str, limit: int | None = None) -> "Rows":
        """All rows of both splits, or at most `limit` of each, drawn at random but always the same.

        Raises:
            UserError: if they are too few to compare anything on.
        """
        splits: tuple[Split, Split] = ("validation", "test")
        parts = [task.load(split) for split in splits]
        for split, part in zip(splits, parts, strict=True):
            if min(len(part), limit or len(part)) < 2:
                raise UserError(f"a comparison needs at least 2 {split} rows, and there are {min(len(part), limit or 2)}; set --data or --rows")
        generator = torch.Generator().manual_seed(0)
        places = tuple(torch.randperm(len(part), generator=generator)[:limit].sort().values for part in parts)
        validation, test = (part.take(chosen).to(device) for part, chosen in zip(parts, places, strict=True))
        return cls(validation, test, (places[0], places[1]), (len(parts[0]), len(parts[1])))

    def both(self) -> tuple[Examples, Examples]:
        """Validation first."""
        return self.validation, self.test
