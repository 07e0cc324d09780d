"""Training a network on data whose task says how many layers each row needs."""

import torch
from torch import Tensor

from rl_skip.errors import UserError
from rl_skip.policy import JumpRules
from rl_skip.tasks import Examples, Task

__all__ = ["KnownDepth"]

SOLVED = 0.95


class KnownDepth:
    """Batches and routes on which each row runs just as many layers as it needs, the first ones, and leaves.

    What many layers do in a row is learned from what few do: so it begins with the rows that need the fewest, and takes in
    those that need one more as soon as 95% of a batch are right (Bengio et al. 2009, "Curriculum Learning"). With all rows
    at once, a network settles on answers that are right by chance.

    Args:
        task: with `needed`.
        train: the rows.
        rules: what the policy may do; rows that leave early must be allowed to.
        batch_size: rows of a batch.
        seed: decides the batches.

    Raises:
        UserError: if the rows need more layers than there are, or may not leave.
    """

    def __init__(self, task: Task, train: Examples, rules: JumpRules, batch_size: int, seed: int) -> None:
        assert task.needed is not None
        self.task, self.train, self.batch_size, self.seed = task, train, batch_size, seed
        self.depth, self.needed = rules.layout.depth, task.needed(train)
        self.most = int(self.needed.max())
        self.taken_in = int(self.needed.min())
        """Rows that need more layers wait."""
        if (obstacle := self.obstacle(task, train, rules)) is not None:
            raise UserError(f"{obstacle}, or --tune all")

    @staticmethod
    def obstacle(task: Task, train: Examples, rules: JumpRules) -> str | None:
        """Why the rows cannot run just as many layers as they need, or None."""
        assert task.needed is not None
        if not rules.allow_exit:
            return f"the rows of the task {task.name!r} leave after the layers that they need; set --allow-exit"
        most, depth = int(task.needed(train).max()), rules.layout.depth
        return f"a row of the task {task.name!r} needs {most} layers, the network has {depth}; set --layers" if most > depth else None

    def batch(self, update: int) -> Examples:
        """Rows drawn from those that are taken in; which, depends on the seed and the update's number besides."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + update)
        rows = (self.needed <= self.taken_in).nonzero().squeeze(1)
        return self.train.take(rows[torch.randint(len(rows), (self.batch_size,), generator=generator).to(rows.device)])

    def routes(self, batch: Examples) -> Tensor:
        """(B, L) bool."""
        assert self.task.needed is not None
        needed = self.task.needed(batch)
        return torch.arange(self.depth, device=needed.device) < needed.unsqueeze(1)

    def saw(self, accuracy: Tensor) -> None:
        """Is told the accuracy on each batch, a scalar."""
        if self.taken_in < self.most and float(accuracy) >= SOLVED:
            self.taken_in += 1
