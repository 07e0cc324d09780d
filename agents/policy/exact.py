"""The exact gradient of when to leave: one pass through all layers shows what every exit earns, so nothing has to be sampled."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rl_skip.core.policy import JumpPolicy

__all__ = ["Leaving", "leaving"]


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
    reached = torch.cat([torch.zeros_like(stay[:, :1]), stay.cumsum(dim=1)], dim=1)  # (B, L), log-probability to come to each layer
    probability = (reached + torch.cat([leave, torch.zeros_like(leave[:, :1])], dim=1)).exp()
    chance = reached[:, :-1].exp().detach()
    entropy = -(stay.exp() * stay + leave.exp() * leave)  # (B, L - 1)
    return Leaving(probability, (chance * entropy).sum(dim=1), chance.sum(dim=1))
