"""The settings of an environment as its attributes: those that may change reach the core, the others refuse."""

from dataclasses import fields
from typing import Any

from envs.core import SkipCore
from envs.options import EnvOptions

__all__ = ["CHANGEABLE", "FIXED", "Settings", "change"]

CHANGEABLE = ("price", "price_range", "reward", "score")
"""What may be set between steps: the price counts for episodes that begin later, reward and score from the next step on."""
FIXED = frozenset(field.name for field in fields(EnvOptions)) - {*CHANGEABLE, "seed"}  # Stable-Baselines3 has a method of that name


def change(core: SkipCore, name: str, value: Any) -> None:
    """Sets one of `CHANGEABLE` for all environments of a core.

    Raises:
        UserError: if the observation cannot show the price, or there is no such reward or score.
    """
    if name == "price_range" or (name == "price" and isinstance(value, list)):
        value = tuple(value)
    if name in ("price", "price_range"):
        core.check_price(value)
    setattr(core, name, value)


class Settings:
    """What makes `env.price = 0.2`, `set_wrapper_attr` and `set_attr` reach the core, and attributes that would change nothing raise."""

    core: SkipCore

    def __getattr__(self, name: str) -> Any:
        if name in CHANGEABLE:
            return getattr(self.core, name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIXED:
            raise AttributeError(f"{name} is fixed once an environment is made; make another with {name}=…, or set {', '.join(CHANGEABLE)}")
        if name in CHANGEABLE:
            change(self.core, name, value)
        else:
            super().__setattr__(name, value)
