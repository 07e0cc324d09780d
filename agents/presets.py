"""Options that suit a task: what `train.py --task` takes where a flag is not given."""

from dataclasses import replace
from typing import Any

from agents.config import PolicyConfig, PpoConfig, PriceConfig, ReinforceConfig, ScheduleConfig, TrainConfig
from rl_skip.network import NetworkConfig

__all__ = ["PRESETS", "for_task"]


def _hops(layers: int, warmup_epochs: int, epochs: int) -> dict[str, Any]:
    """A frozen network of tied layers, each of which follows one pointer."""
    return {
        "network": NetworkConfig(layers, width=32, heads=2, tied=True),
        "policy": PolicyConfig(allow_exit=True, policy_hidden=64),
        "pricing": PriceConfig(price_range=(0.01, 0.1)),
        "schedule": ScheduleConfig(
            warmup_epochs=warmup_epochs,
            epochs=epochs,
            batch_size=128,
            learning_rate=3e-3,
            policy_learning_rate=3e-3,
            eval_epochs=1,
            tune="none",
        ),
        "reinforce": ReinforceConfig(routes_per_input=4, imitation_weight=0.3),
        "ppo": PpoConfig(steps=8),
    }


PRESETS: dict[str, dict[str, Any]] = {"hops": _hops(8, 1, 1), "hops-16": _hops(16, 2, 4)}
"""For each task that has some, the parts of `TrainConfig` that differ from its defaults."""


def for_task(task: str | None) -> TrainConfig:
    """The options of a task before any flag is read; None: of the task that is the default.

    Example:
        >>> for_task("digits") == TrainConfig(task="digits")
        True
    """
    return TrainConfig() if task is None else replace(TrainConfig(task=task), **PRESETS.get(task, {}))
