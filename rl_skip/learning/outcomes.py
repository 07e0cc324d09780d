"""What leaving after each layer gives, of many rows: with it a policy is trained and measured at any price without the network."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rl_skip.core.dial import PricePoint
from rl_skip.core.exits import left_at
from rl_skip.core.policy import JumpPolicy

__all__ = ["SeenExits"]


@dataclass(frozen=True)
class SeenExits:
    """What a policy sees after each layer, and what leaving there gives, for each of N rows."""

    observations: Tensor
    """(N, L - 1, S), with some price."""
    score: Tensor
    """(N, L)."""
    compute: Tensor
    """(N, L), decisions and readouts included."""

    @torch.no_grad()
    def left(self, policy: JumpPolicy, price: float) -> Tensor:
        """(N,) long, after which layer each row leaves at a price, as the likeliest decisions say; by a policy that sees what these were made for."""
        observations, device = self.observations.clone(), policy.fc_in.weight.device
        observations[..., -1] = policy.rules.layout.scale_price(torch.tensor(price))
        logits = policy(observations.flatten(0, 1).to(device))
        jumps = policy.likeliest(logits, torch.full(logits.shape[:1], price, device=device))
        return left_at(jumps.cpu().view(observations.shape[:2]) > 0)

    def point(self, policy: JumpPolicy, price: float) -> PricePoint:
        """The mean compute and score that the policy has at a price."""
        layer = self.left(policy, price).unsqueeze(1)  # (N, 1)
        return PricePoint(price, float(self.compute.gather(1, layer).double().mean()), float(self.score.gather(1, layer).double().mean()))

    def some(self, rows: int) -> "SeenExits":
        """At most that many rows, drawn at random but always the same."""
        chosen = torch.randperm(len(self.score), generator=torch.Generator().manual_seed(0))[:rows]
        return SeenExits(self.observations[chosen], self.score[chosen], self.compute[chosen])
