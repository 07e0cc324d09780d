"""The exact gradient of when to leave: one pass through all layers shows what every exit earns, so nothing has to be sampled."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from rl_skip.core.policy import JumpPolicy
from rl_skip.core.task import score_key

__all__ = ["EntropyBonus", "Leaving", "entropy_weight", "exact_loss", "exit_metrics", "leaving"]

ANNEALED_AT = 0.8


class EntropyBonus(Protocol):
    """Options that say how much uncertain decisions are rewarded."""

    @property
    def entropy_start(self) -> float:
        """Weight at the start."""
        ...

    @property
    def entropy_end(self) -> float:
        """Weight from four fifths of the run on."""
        ...


@dataclass(frozen=True)
class Leaving:
    """How likely rows are to leave after each layer."""

    probability: Tensor
    """(B, L), p_k = q_k · Π_{j<k} (1 − q_j), with q_k the policy's probability to leave after layer k; sums to 1."""
    entropy: Tensor
    """(B,), the entropy of the decisions, each weighted by the chance to come to it."""
    decisions: Tensor
    """(B,), how many decisions a row is expected to take."""


def leaving(policy: JumpPolicy, observations: Tensor) -> Leaving:
    """The distribution over exits of a policy without jumps, with its gradient.

    The gradient of the expected reward J = Σ_k p_k · reward_k is exact: an all-action policy gradient of optimal stopping
    (Venkata & Bhattacharyya 2023, "Deep Recurrent Optimal Stopping").

    Args:
        policy: which goes on or leaves.
        observations: (B, L - 1, S), after each layer but the last.
    """
    B, K, S = observations.shape
    log_probs = torch.log_softmax(policy(observations.reshape(B * K, S)), dim=1).view(B, K, -1)  # (B, L - 1, J + 1)
    stay = log_probs[..., 0]  # (B, L - 1)
    place = (K - torch.arange(K, device=stay.device)).expand(B, K).unsqueeze(2)  # leaving after layer i is a jump of L - 1 - i
    leave = log_probs.gather(2, place).squeeze(2)  # (B, L - 1)
    reached = pad(stay.cumsum(dim=1), (1, 0))  # (B, L), log-probability to come to each layer
    probability = (reached + pad(leave, (0, 1))).exp()
    chance = reached[:, :-1].exp().detach()
    entropy = -(stay.exp() * stay + leave.exp() * leave)  # (B, L - 1)
    return Leaving(probability, (chance * entropy).sum(dim=1), chance.sum(dim=1))


def exact_loss(leaves: Leaving, reward: Tensor, entropy_weight: float) -> tuple[Tensor, Tensor]:
    """The policy's loss over all exits at once.

    Args:
        leaves: of B rows.
        reward: (B, L), of leaving after each layer.
        entropy_weight: of the bonus for decisions that are not certain.

    Returns:
        The loss, a scalar: less the mean of the expected rewards, less the bonus. And the expected rewards, (B,).
    """
    expected = (leaves.probability * reward).sum(dim=1)
    return -expected.mean() - entropy_weight * leaves.entropy.mean(), expected


def entropy_weight(config: EntropyBonus, progress: float) -> float:
    """Weight of the entropy bonus: falls geometrically from its start to its end, reached after four fifths of the run."""
    return config.entropy_start * (config.entropy_end / config.entropy_start) ** min(progress / ANNEALED_AT, 1.0)


def exit_metrics(leaves: Leaving, expected: Tensor, score: Tensor, score_name: str, compute: Tensor, price: Tensor) -> dict[str, Tensor]:
    """What one pass over all exits shows, as scalars on the device; all but the price in expectation over when rows leave.

    Args:
        leaves: of B rows.
        expected: (B,), the reward.
        score: (B, L), of each exit.
        score_name: what the task calls it.
        compute: (B, L), the relative compute of each exit.
        price: (B,).
    """
    chance = leaves.probability.detach()  # (B, L)
    ran = chance.flip(1).cumsum(dim=1).flip(1).mean(dim=0)  # (L,), of those that leave after a layer all ran it
    return {
        "rollout/ep_rew_mean": expected.mean(),
        "rollout/ep_len_mean": leaves.decisions.mean(),
        f"rollout/{score_key(score_name)}": (chance * score).sum(dim=1).mean(),
        "rollout/compute": (chance * compute).sum(dim=1).mean(),
        "policy/entropy": (leaves.entropy / leaves.decisions).mean(),
        "price": price.mean(),
        **{f"layers/run_rate_{i}": rate for i, rate in enumerate(ran)},
    }
