"""The options of `reset`: which environments begin an episode, with which example, at which price."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from envs.core import Beginning, SkipCore

__all__ = ["beginning_of", "beginning_of_each"]

OPTIONS = ("example", "price", "reset_mask")


def beginning_of(options: Mapping[str, Any] | None, core: SkipCore) -> Beginning:
    """What `reset(options=...)` asks for.

    Args:
        options: "example": a row of the examples, or one for each environment; "price": likewise; "reset_mask": (N,) bool, the environments that
            begin an episode, the others go on.

    Raises:
        ValueError: if there are other options, or a value is out of range.
        UserError: if the observation cannot show a price.
    """
    options = dict(options or {})
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ValueError(f"reset has no option {unknown[0]!r}; its options are {', '.join(OPTIONS)}")
    rows = None
    if options.get("reset_mask") is not None:
        mask = np.asarray(options["reset_mask"])
        if mask.shape != (core.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(f"reset_mask must be {core.num_envs} truth values, at least one of them true, got {options['reset_mask']!r}")
        rows = torch.as_tensor(mask.nonzero()[0], device=core.everyone.device)
    examples = _for_each("example", options.get("example"), core)
    if examples is not None and (examples.dtype.kind not in "iu" or examples.min() < 0 or examples.max() >= len(core.examples)):
        raise ValueError(f"example must be a whole number in 0..{len(core.examples) - 1}, got {options['example']!r}")
    prices = _for_each("price", options.get("price"), core)
    if prices is not None:
        if prices.dtype.kind not in "iuf" or not all(0 <= price < math.inf for price in prices.tolist()):
            raise ValueError(f"price must be a number of at least 0, got {options['price']!r}")
        for price in prices.tolist():
            core.check_price(price)
    chosen = slice(None) if rows is None else rows
    return Beginning(
        rows,
        None if examples is None else torch.as_tensor(examples.astype(np.int64))[chosen],
        None if prices is None else torch.as_tensor(prices.astype(np.float32))[chosen],
    )


def beginning_of_each(options: Sequence[Mapping[str, Any]], core: SkipCore) -> Beginning:
    """The same of a dictionary for each environment, as Stable-Baselines3 keeps them; all must have the same options."""
    names = {name for one in options for name in one}
    for name in sorted(names):
        if not all(name in one for one in options):
            raise ValueError(f"the reset option {name!r} is given for some environments only; give it for all {core.num_envs}")
    if "reset_mask" in names:
        raise ValueError("Stable-Baselines3 begins all episodes at once; leave out reset_mask")
    return beginning_of({name: [one[name] for one in options] for name in names}, core)


def _for_each(name: str, value: Any, core: SkipCore) -> np.ndarray[Any, Any] | None:
    """(N,), one value for each environment; None where none is given."""
    if value is None:
        return None
    values = np.asarray(value)
    if values.shape not in ((), (core.num_envs,)):
        raise ValueError(f"{name} must be one number, or one for each of {core.num_envs} environments, got shape {values.shape}")
    return np.broadcast_to(values, (core.num_envs,))
