"""Heads that are put beside a model from transformers that has none of its own."""

import torch
from torch import Tensor, nn

from rl_skip.core.means import attended_mean, groups_of, masked_mean

__all__ = ["AttentionHead", "answer", "mean_head"]


def mean_head(width: int, classes: int, dropout: float = 0.0) -> nn.Module:
    """A norm and two linear layers on the mean over the real tokens, (B, D) → (B, classes)."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, classes))


class AttentionHead(nn.Module):
    """Two linear layers on a mean over the real tokens that has learned where to look, (B, T, D) → (B, classes).

    Each group of 32 channels is averaged with weights of its own, the softmax over the tokens of one linear score, see `attended_mean`. All scores
    begin at zero, so that it begins with the plain mean.

    Args:
        width: D.
        classes: C.
        dropout: between the two linear layers.
    """

    def __init__(self, width: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm, self.score = nn.LayerNorm(width), nn.Linear(width, groups_of(width))
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.deep, self.dropout, self.out = nn.Linear(width, width), nn.Dropout(dropout), nn.Linear(width, classes)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """The outputs; `mask` (B, T) says which tokens are real, None: all."""
        tokens = self.norm(hidden)
        pooled = attended_mean(tokens, self.score(tokens), mask)
        outputs: Tensor = self.out(self.dropout(torch.tanh(self.deep(pooled))))
        return outputs


def answer(head: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """What a head beside a model says of the hidden state (B, T, D), whose real tokens `mask` (B, T) names, None: all."""
    outputs: Tensor = head(hidden, mask) if isinstance(head, AttentionHead) else head(masked_mean(hidden, mask))
    return outputs
