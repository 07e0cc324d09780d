"""Options that suit a task: what `train.py --task` takes where a flag is not given."""

from dataclasses import replace
from typing import Any

from agents.config import PolicyConfig, PriceConfig, ReinforceConfig, ScheduleConfig, TrainConfig
from rl_skip.network import NetworkConfig
from rl_skip.tasks.options import NO_MODEL, TaskOptions

__all__ = ["PARTLY_TUNED", "PRESETS", "PRETRAINED", "for_task"]


def _hops(layers: int, width: int, warmup_epochs: int, epochs: int) -> dict[str, Any]:
    """A network of tied layers, each of which follows one pointer; frozen then, unless it is told to learn on."""
    return {
        "network": NetworkConfig(layers, width=width, heads=2, tied=True),
        "policy": PolicyConfig(allow_exit=True, policy_hidden=64),
        "pricing": PriceConfig(price_range=(0.01, 0.1)),
        "schedule": ScheduleConfig(
            warmup_epochs=warmup_epochs,
            epochs=epochs,
            batch_size=128,
            learning_rate=3e-3,
            policy_learning_rate=3e-3,
            eval_epochs=1,
            distillation_weight=0.0,  # where the network learns on, it is wrong about most rows at full depth for long
            tune="none",
        ),
        "reinforce": ReinforceConfig(routes_per_input=4, baseline="value", imitation_weight=0.3),
    }


PRESETS: dict[str, dict[str, Any]] = {
    "hops": _hops(8, 32, 1, 2),
    "hops-16": _hops(16, 48, 2, 4),
    "speech": {"schedule": ScheduleConfig(warmup_epochs=8, epochs=12)},
    "text": {
        "network": NetworkConfig(layers=6, width=128, dropout=0.1),
        "pricing": PriceConfig(price_range=(0.01, 1.0)),
        "schedule": ScheduleConfig(warmup_epochs=4, epochs=8, eval_epochs=2),
    },
    "language": {
        "network": NetworkConfig(layers=8, width=128),
        "options": TaskOptions(max_tokens=128, prompt_tokens=32),
        "pricing": PriceConfig(price_range=(0.003, 0.3)),
        "reinforce": ReinforceConfig(score="probability"),
        "schedule": ScheduleConfig(warmup_epochs=4, epochs=6, batch_size=32, eval_epochs=2),
    },
}
"""For each task that has some, the parts of `TrainConfig` that differ from its defaults."""

PRETRAINED: dict[str, Any] = {
    "schedule": ScheduleConfig(
        warmup_epochs=2, epochs=4, batch_size=32, learning_rate=5e-5, policy_learning_rate=1e-3, random_route_keep=0.3, eval_epochs=1
    )
}
"""For a model that is given, whatever the task: it knows much already, and forgets it at the learning rate of one that knows nothing."""
EPOCHS_TO_LEARN_ON = 6
"""Of hops, where the network learns on: it needs more than a policy alone; and a price at which it pays to follow several pointers at once."""
PARTLY_TUNED = 5e-4
"""Learning rate where a part of a given model learns alone."""


def for_task(task: str | None, model: str | None = None, tune: str | None = None) -> TrainConfig:
    """The options of a task before any flag is read; None: of the task that is the default.

    Args:
        task: its name.
        model: the model that is given, None or "none" without one.
        tune: what of it learns, as `--tune` says.

    Example:
        >>> for_task("digits") == TrainConfig(task="digits")
        True
    """
    config = TrainConfig() if task is None else replace(TrainConfig(task=task), **PRESETS.get(task, {}))
    if task in ("hops", "hops-16") and tune == "all":
        schedule = replace(config.schedule, epochs=EPOCHS_TO_LEARN_ON)
        config = replace(config, pricing=PriceConfig(price_range=(0.01, 0.5)), schedule=schedule)
    if model in (None, NO_MODEL):
        return config
    config = replace(config, **PRETRAINED)
    if tune in ("head", "norms", "lora"):
        config = replace(config, schedule=replace(config.schedule, learning_rate=PARTLY_TUNED))
    return config
