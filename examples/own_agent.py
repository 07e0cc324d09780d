"""An agent of one's own, REINFORCE with a moving-average baseline: `python train.py --agent examples/own_agent.py:MovingAverage --decay 0.9`."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from agents import Reinforce, ReinforceConfig
from rl_skip import Rollout


@dataclass(frozen=True)
class MovingAverageConfig(ReinforceConfig):
    """REINFORCE with a moving-average baseline."""

    decay: float = 0.95
    """How much of the average stays at each update. More is steadier, and slower to follow; 0.9 to 0.99."""


class MovingAverage(Reinforce):
    """A route is as good as it earns more than routes have earned of late."""

    config_class = MovingAverageConfig
    config: MovingAverageConfig
    average: Tensor | float = 0.0

    def advantage(self, rollout: Rollout, reward: Tensor, to_go: Tensor) -> Tensor:
        advantage = reward - self.average
        self.average = self.config.decay * self.average + (1 - self.config.decay) * reward.mean()
        return advantage.unsqueeze(1)  # (B G, 1), the same for all decisions of a route

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.average = state["average"]
