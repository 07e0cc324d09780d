"""Networks and policies that take a known time, by a clock that they move themselves."""

import pytest
import torch
from torch import Tensor, nn

from rl_skip.core.policy import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.nets.module_stack import ModuleStack

WIDTH = 4


class Clock:
    """Stands still but where it is moved."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def move(self, milliseconds: float) -> None:
        """Later by so much."""
        self.seconds += 1e-3 * milliseconds


def measured_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which rl_skip measures."""
    found = Clock()
    monkeypatch.setattr("rl_skip.core.clock.time.perf_counter", lambda: found.seconds)
    return found


class TimedLayer(nn.Module):
    """A layer of so many milliseconds."""

    def __init__(self, clock: Clock, milliseconds: float) -> None:
        super().__init__()
        self.clock, self.milliseconds = clock, milliseconds

    def forward(self, hidden: Tensor) -> Tensor:
        self.clock.move(self.milliseconds)
        return hidden + 1.0


class LeavingAfter(JumpPolicy):
    """Leaves after a layer, and takes so many milliseconds to decide."""

    def __init__(self, clock: Clock, depth: int, layer: int, milliseconds: float = 0.0) -> None:
        super().__init__(JumpRules.reaching(ObservationLayout(WIDTH, depth), allow_exit=True, jumps=False))
        self.clock, self.layer, self.milliseconds = clock, layer, milliseconds

    def forward(self, observation: Tensor) -> Tensor:  # type: ignore[override]
        self.clock.move(self.milliseconds)
        leaves = self.rules.layout.layer_of(observation) >= self.layer
        return torch.stack([~leaves, *[leaves] * self.rules.max_jump], dim=1).float()


def timed_stack(clock: Clock, *milliseconds: float) -> ModuleStack:
    """A stack with a layer for each."""
    layers = [TimedLayer(clock, taken) for taken in milliseconds]
    return ModuleStack(nn.Identity(), layers, nn.Linear(WIDTH, 2), width=WIDTH, layer_flops=[1.0] * len(layers)).eval()
