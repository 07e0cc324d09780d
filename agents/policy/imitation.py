"""Self-imitation (Oh et al. 2018) of random routes: routes that earn more than expected are made likelier."""

from collections.abc import Callable

from torch import Tensor

from agents.run.learner import Learner
from rl_skip.core.forward import routed_forward
from rl_skip.core.reward import Reward
from rl_skip.core.routers import PolicyRouter
from rl_skip.core.task import Examples

__all__ = ["imitation_loss", "imitation_weight"]

ENDS_AT = 0.8


def imitation_weight(start: float, progress: float) -> float:
    """Falls evenly to nothing, reached after four fifths of the run: what it teaches is biased towards routes that are right by luck."""
    return start * max(1 - progress / ENDS_AT, 0.0)


def imitation_loss(
    learner: Learner, reward: Reward, batch: Examples, price: Tensor, route: Tensor, worth: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """−log π of the decisions on a random route, times what the route earned more than the critic expected, where it did.

    A policy samples what it holds likely. Where a route pays only if it is right in every layer, and a short one is right by
    luck half of the time, the long one is never sampled. Among random routes every number of layers is equally frequent.

    Args:
        reward: what a route earns.
        batch: B rows, each of which runs one random route.
        price: (B,).
        route: (B, L) bool.
        worth: outputs and labels → score, (B,).

    Returns:
        A scalar.
    """
    rollout = routed_forward(learner.stack, PolicyRouter(learner.policy, route=route), batch.inputs, price=price, critic=learner.critic)
    score = worth(rollout.outputs, batch.labels)
    surprise = (reward.to_go(score, rollout.spent, price) - rollout.values).clamp(min=0).detach()  # (B, L)
    loss: Tensor = -(rollout.log_probs * surprise * rollout.decided).sum(dim=1).mean()
    return loss
