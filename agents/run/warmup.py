"""The warm-up: how a network learns before the policy starts."""

from typing import Any, Protocol

from torch import Tensor

from agents.run.gradients import Part
from agents.run.known_depth import KnownDepth
from agents.run.learner import Learner
from agents.run.telemetry import score_metric
from rl_skip.core.beside import routed_beside_full

__all__ = ["RandomRoutes", "WarmUp", "warm_up_for"]


class WarmUp(Protocol):
    """How a network learns before the policy starts; called once for each update."""

    def update(self, update: int) -> dict[str, Tensor]:
        """One supervised update; returns its metrics as scalars on the device."""
        ...

    def shortfall(self) -> str | None:
        """What was not learned because the warm-up was too short, with advice; None where all was."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What it needs beside the learner to go on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        ...


class RandomRoutes:
    """All layers and random routes at once: the network has seen routes of every kind before the policy samples one."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner

    def update(self, update: int) -> dict[str, Tensor]:
        """One update on the loss at full depth, and on random routes."""
        learner, rows = self.learner, self.learner.batch_rows(update)
        weight = learner.config.schedule.random_route_weight if learner.rules.jumps else 0.0  # without jumps there is one way to all layers
        routes = learner.random_routes(len(rows)) if weight > 0 else None  # (B, L)

        def loss(part: Part) -> tuple[Tensor, dict[str, Tensor]]:
            if routes is None:
                mean, full = learner.full_depth_loss(part.batch)
            else:
                outputs, full = routed_beside_full(learner.stack, part.of(routes), part.batch.inputs)
                of_full, of_routes = (learner.task.loss(said, part.batch.labels).mean() for said in (full, outputs))
                mean = of_full + weight * of_routes
            return mean, {"train/supervised_loss": mean} | score_metric(learner.task, "warmup", full, part.batch.labels)

        learner.prepare(learns=True)
        return learner.learn(update, rows, loss)

    def shortfall(self) -> str | None:
        return None

    def state_dict(self) -> dict[str, Any]:
        """Nothing: all that it needs to go on is the learner's."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to go back to."""


def warm_up_for(learner: Learner) -> WarmUp:
    """Random routes; or each row's required depth, where the task knows it and the rows can run it.

    Raises:
        UserError: if the network does not learn on, and the rows cannot run just as many layers as they need.
    """
    if learner.task.required_depth is None or (learner.tunes and KnownDepth.obstacle(learner) is not None):
        return RandomRoutes(learner)
    return KnownDepth(learner)
