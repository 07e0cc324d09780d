"""Means of what updates measured."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["Averages"]


class Averages:
    """Means of metrics over several updates, kept on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Adds one update's scalars."""
        for name, value in metrics.items():
            value = value.detach().to(self.device, torch.float32)
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means as numbers, from one transfer; then starts anew."""
        if not self._sums:
            return {}
        means = torch.stack([self._sums[name] / self._counts[name] for name in self._sums]).tolist()
        averages = dict(zip(self._sums, means, strict=True))
        self._sums, self._counts = {}, {}
        return averages

    def state_dict(self) -> dict[str, Any]:
        """What was added since the last reading."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        self._sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])
