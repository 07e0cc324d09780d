"""A network of fewer layers, trained from scratch: the baseline without any routing."""

import torch
from torch import Tensor

from agents.agent import AGENTS
from agents.baselines.baseline import Baseline, Setting, Unsuited
from agents.run.learner import Learner
from agents.run.report import SEARCH_ROWS
from rl_skip.core.batches import deployed
from rl_skip.core.forward import routed_forward
from rl_skip.core.routing import Decision, Router, RoutingState
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.style import PURPLE

__all__ = ["Shallow"]

SLACK = 0.005
"""How much more than the budget may be spent, as where a policy is calibrated to one."""


class FirstLayers(Router):
    """The first layers, one after the other, without a marked jump after them, as if there were no others."""

    def __init__(self, layers: int) -> None:
        self.layers = layers

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        if i + 1 < self.layers:
            return Decision(torch.full_like(rows, i + 1))
        return Decision(torch.full_like(rows, state.stack.depth), answers=state.finish(rows))


class Shallow(Baseline):
    """The first layers of the network as it was given, as many as the budget allows, trained alone for as many updates as the policy's network.

    The other layers are never called and never change. Compute stays in units of the whole stack.
    There is no warm-up: layers that first learned to be followed by others are worse. Its updates go to the plain loss, unless the policy's network
    begins again too. Beside a run with readouts it learns from that run's teacher.
    """

    warms_up = False
    record = BaselineRecord(
        "shallow",
        "shallower network",
        about="the first layers alone, trained for as many updates as the policy's network; with readouts, by the policy's teacher too",
        advice="train it with train.py --agent shallow",
        trained=True,
        per_budget=True,
        colour=PURPLE,
        marker="v",
        line=":",
    )
    routed = False

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner)
        if not learner.tunes:
            raise Unsuited("a frozen network cannot be trained with fewer layers; leave --agent shallow out, or train the network too")
        self.layers = self._affordable()

    def _affordable(self) -> int:
        """The largest number of layers within the budget on validation data, at least 1."""
        learner = self.learner
        with deployed(learner.stack):
            rollout = routed_forward(learner.stack, learner.full_route, learner.validation.some(SEARCH_ROWS).inputs)
        spent = rollout.spent.mean(dim=0).cumsum(dim=0)  # (L,)
        return max(int((spent <= self.budget + SLACK).sum()), 1)

    def update(self, update: int) -> dict[str, Tensor]:
        """One supervised update of the layers that there are."""
        return self.learn_from_labels(update, FirstLayers(self.layers))

    def settings(self) -> list[Setting]:
        """The one network."""
        return [Setting(f"{self.layers} layer{'s' * (self.layers > 1)}", FirstLayers(self.layers))]


AGENTS.register("shallow", Shallow)
