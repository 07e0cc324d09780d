"""Training on a known depth: a warm-up for tasks that say how many layers each row needs."""

from typing import Any

import torch
from torch import Tensor

from agents.run.gradients import Part
from agents.run.learner import Learner
from agents.run.telemetry import score_metric
from rl_skip.core.errors import UserError
from rl_skip.core.forward import routed_forward
from rl_skip.core.task import Examples, score_key

__all__ = ["KnownDepth"]

SOLVED = 0.95


class KnownDepth:
    """A warm-up in which each row runs its required depth, the first layers, and leaves.

    The curriculum begins at the level of the rows that need the fewest layers, and rises to those that need one more as soon as 95%
    of a batch are right (Bengio et al. 2009, "Curriculum Learning"). With all rows at once, a network learns no more than chance.

    Args:
        learner: whose task has `required_depth`, and whose rows are allowed to leave early.

    Raises:
        UserError: if the rows need more layers than there are, or may not leave.
    """

    def __init__(self, learner: Learner) -> None:
        assert learner.task.required_depth is not None
        self.learner, self.required_depth = learner, learner.task.required_depth(learner.train)
        self.deepest = int(self.required_depth.max())
        self.level = int(self.required_depth.min())
        """Of the curriculum: rows that require more layers wait."""
        if (obstacle := self.obstacle(learner)) is not None:
            raise UserError(f"{obstacle}, or --tune all")

    @staticmethod
    def obstacle(learner: Learner) -> str | None:
        """Why the rows cannot run just as many layers as they need, or None."""
        task, rules = learner.task, learner.rules
        assert task.required_depth is not None
        if not rules.allow_exit:
            return f"the rows of the task {task.name!r} leave after the layers that they need; set --allow-exit"
        most, depth = int(task.required_depth(learner.train).max()), rules.layout.depth
        return f"a row of the task {task.name!r} needs {most} layers, the network has {depth}; set --layers" if most > depth else None

    def update(self, update: int) -> dict[str, Tensor]:
        """One update on the known depth."""
        learner = self.learner
        learner.prepare(learns=True)
        metrics = learner.learn(update, self.batch_rows(update), self._loss)
        self.observe_accuracy(metrics[f"warmup/{score_key(learner.task.score_name)}"])
        return metrics

    def _loss(self, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        task, batch = self.learner.task, part.batch
        outputs = routed_forward(self.learner.stack, self.routes(batch), batch.inputs).outputs
        mean = task.loss(outputs, batch.labels).mean()
        return mean, {"train/supervised_loss": mean} | score_metric(task, "warmup", outputs, batch.labels)

    def batch_rows(self, update: int) -> Tensor:
        """(B,) long, drawn from the training rows at or below the level; which, depends on the seed and the update's number besides."""
        config = self.learner.config
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + update)
        rows = (self.required_depth <= self.level).nonzero().squeeze(1)
        return rows[torch.randint(len(rows), (config.schedule.batch_size,), generator=generator).to(rows.device)]

    def routes(self, batch: Examples) -> Tensor:
        """(B, L) bool."""
        assert self.learner.task.required_depth is not None
        required_depth = self.learner.task.required_depth(batch)
        return torch.arange(self.learner.stack.depth, device=required_depth.device) < required_depth.unsqueeze(1)

    def observe_accuracy(self, accuracy: Tensor) -> None:
        """Raises the level where the accuracy on a batch, a scalar, is high enough."""
        if self.level < self.deepest and float(accuracy) >= SOLVED:
            self.level += 1

    def shortfall(self) -> str | None:
        """Which rows the curriculum did not reach, with advice."""
        if self.level == self.deepest:
            return None
        return f"rows that need more than {self.level} layers were not learned in the warm-up; raise --warmup-epochs"

    def state_dict(self) -> dict[str, Any]:
        """How far the curriculum has come."""
        return {"level": self.level}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.level = state["level"]
