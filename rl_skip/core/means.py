"""Means over the tokens of a row."""

import torch
from torch import Tensor

__all__ = ["attended_mean", "groups_of", "masked_mean"]

GROUP = 32
"""Channels that share the weights of their mean; as many as a head of attention has in small models."""
FAR = -1e4
"""The score of a token that is not real, within the numbers of half precision."""


def masked_mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the tokens of (B, T, D) that `mask` (B, T) calls real. Returns (B, D)."""
    if mask is None:
        return hidden.mean(dim=1)
    weight = mask.to(hidden.dtype).unsqueeze(-1)  # (B, T, 1)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)


def groups_of(width: int) -> int:
    """How many groups of channels `attended_mean` is to weigh for themselves: of 32 each, or one of all where the width does not divide."""
    return width // GROUP if width % GROUP == 0 else 1


def attended_mean(hidden: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the real tokens that knows where to look: each group of channels by the softmax over the tokens of a score of its own.

    It is a single layer of what Lin et al. 2017, "A Structured Self-attentive Sentence Embedding", have; with scores that are all alike it is the
    plain mean.

    Args:
        hidden: (B, T, D).
        scores: (B, T, G), of G groups of D / G channels each.
        mask: (B, T), which tokens are real; None: all. A row without any has a mean of 0.

    Returns:
        (B, D).
    """
    if mask is None:
        weights = scores.softmax(dim=1)
    else:
        padding = ~mask.bool().unsqueeze(-1)  # (B, T, 1)
        weights = scores.masked_fill(padding, FAR).softmax(dim=1).masked_fill(padding, 0.0)  # the latter for rows without a real token
    weighted = hidden.unflatten(-1, (scores.shape[-1], -1)) * weights.unsqueeze(-1)  # (B, T, G, D / G)
    return torch.flatten(weighted.sum(dim=1), 1)
