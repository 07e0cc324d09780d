"""The policy alone, on what a network that no longer changes says of the training rows."""

from collections.abc import Callable
from typing import Protocol

import torch

from rl_skip.core.policy import JumpPolicy
from rl_skip.learning.averages import Averages
from rl_skip.learning.exact import EntropyBonus, entropy_weight, exact_loss, leaving
from rl_skip.learning.outcomes import SeenExits
from rl_skip.learning.prices import PriceSource

__all__ = ["POLICY_BATCH", "AloneOptions", "learn_alone"]

POLICY_BATCH = 256
"""Rows of one update."""


class AloneOptions(EntropyBonus, Protocol):
    """Options of these passes."""

    @property
    def policy_epochs(self) -> int:
        """How many passes over the rows."""
        ...


def learn_alone(
    policy: JumpPolicy,
    seen: SeenExits,
    prices: PriceSource,
    options: AloneOptions,
    *,
    learning_rate: float,
    generator: torch.Generator,
    passed: Callable[[int, dict[str, float]], None] | None = None,
) -> None:
    """Many passes of the policy over what was seen once; they take seconds. The learning rate falls to a tenth.

    Args:
        policy: which goes on or leaves; it learns in place.
        seen: of the N training rows.
        prices: from which each row's price is drawn anew in each pass.
        options: how many passes, and the entropy bonus over them.
        learning_rate: at the start.
        generator: of the order of the rows and of the prices.
        passed: is told after each pass, from 0 on, the means over it: reward ("ep_rew_mean"), "compute" and "entropy" of a decision.
    """
    device = policy.fc_in.weight.device
    observations, scores, compute = (part.to(device) for part in (seen.observations, seen.score, seen.compute))
    optimizer, averages = torch.optim.Adam(policy.parameters(), lr=learning_rate), Averages(device)
    for epoch in range(options.policy_epochs):
        weight = entropy_weight(options, epoch / options.policy_epochs)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - 0.9 * epoch / options.policy_epochs)
        for rows in torch.randperm(len(scores), generator=generator).to(device).split(POLICY_BATCH):
            price = prices.draw(len(rows), generator).to(device)  # (R,)
            looked = observations[rows].clone()  # (R, L - 1, S)
            looked[..., -1] = policy.rules.layout.scale_price(price).unsqueeze(1)
            leaves = leaving(policy, looked)
            loss, expected = exact_loss(leaves, prices.reward.total(scores[rows], compute[rows], price.unsqueeze(1)), weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            spent = (leaves.probability * compute[rows]).sum(dim=1).mean().detach()
            prices.observe(spent)
            averages.add({"ep_rew_mean": expected.mean(), "compute": spent, "entropy": (leaves.entropy / leaves.decisions).mean()})
        if passed is not None:
            passed(epoch, averages.read())
