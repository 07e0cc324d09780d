"""The dial of a policy that leaves from layer 0 at every price that it was trained for."""

import pytest
import torch
from torch import Tensor

from rl_skip.core.policy import ILLEGAL, JumpPolicy, JumpRules, ObservationLayout
from rl_skip.learning.calibration import calibrate
from rl_skip.learning.outcomes import SeenExits
from rl_skip.learning.prices import PriceRange

DEPTH, ROWS = 4, 500


class Sure(JumpPolicy):
    """Likes leaving better than going on by what the first number of the observation says, whatever the price."""

    def forward(self, observation: Tensor) -> Tensor:
        layer = self.rules.layout.layer_of(observation)
        logits = torch.zeros(len(observation), self.rules.max_jump + 1)
        logits[:, 1:] = observation[:, :1]
        return logits.masked_fill(~self.legal[layer], ILLEGAL)


def _saturated() -> tuple[JumpPolicy, SeenExits]:
    """All rows leave after layer 0 by 4 to 20, the surer the row; the least sure tenth is wrong there, and the surest is never right."""
    policy = Sure(JumpRules.reaching(ObservationLayout(1, DEPTH, 0.01, 1.0), allow_exit=True, jumps=False))
    sure = torch.linspace(4, 20, ROWS)
    observations = torch.zeros(ROWS, DEPTH - 1, policy.rules.layout.size)
    observations[..., 0] = sure.unsqueeze(1)
    observations[..., -3] = torch.arange(DEPTH - 1) / DEPTH
    right = torch.ones(ROWS, DEPTH)
    right[: ROWS // 10, 0] = 0
    right[-ROWS // 10 :] = 0
    return policy, SeenExits(observations, right, ((torch.arange(DEPTH) + 1) / DEPTH).expand(ROWS, DEPTH))


def test_below_its_range_the_dial_reaches_more_compute() -> None:
    policy, seen = _saturated()
    within, _ = calibrate(policy, PriceRange(0.01, 1.0), lambda _: lambda price: seen.point(policy, price), "accuracy")
    assert [point.compute for point in within.points] == [0.25]
    table, price = calibrate(policy, PriceRange(0.01, 1.0), lambda _: lambda price: seen.point(policy, price), "accuracy", below=True)
    assert table.points[0] == within.points[0] and table.points[-1].score == pytest.approx(0.9)
    assert table.points[-1].compute < 0.4  # nobody need go further
    for budget in (0.26, 0.28, 0.3, 0.32):
        assert seen.point(policy, table.price_for(budget)).compute == pytest.approx(budget, abs=0.01)
    assert seen.point(policy, price).score >= 0.895
