"""Training stops where a number is no longer finite, and says at which module that began and what to change."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agents.run.checkpoints import CHECKPOINTS
from agents.run.learner import Learner
from rl_skip.core.finite import NotFinite, found_in, not_finite
from rl_skip.core.forward import routed_forward
from rl_skip.learning.prices import seen_range

__all__ = ["output_not_finite", "stopped_at", "weight_not_finite"]


def weight_not_finite(modules: dict[str, nn.Module]) -> str | None:
    """A sentence on the first weight of modules, which are given by name, that is not finite; None where all are."""
    return next((f"the weight {name}.{weight} is not finite" for name, module in modules.items() if (weight := found_in(module)) is not None), None)


def output_not_finite(update: int, learner: Learner) -> str | None:
    """A sentence on the first module whose output is not finite, on the update's batch with all layers, then on the routes of the policy."""
    found: list[str] = []

    def look(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        if not found and not_finite(("", part) for part in parts if isinstance(part, Tensor)) is not None:
            found.append(name)

    parts = {"network": learner.stack, "policy": learner.policy}
    modules = {f"{part}.{name}": module for part, whole in parts.items() for name, module in whole.named_modules() if name}
    handles = [module.register_forward_hook(partial(look, name)) for name, module in modules.items()]
    inputs, price = learner.batch(update).inputs, seen_range(learner.config.pricing)[0]
    try:
        with torch.no_grad(), learner.stack.computing_in(learner.precision):
            routed_forward(learner.stack, learner.full_route, inputs)
            routed_forward(learner.stack, learner.policy, inputs, price=price)
    except (RuntimeError, ValueError):
        pass  # it follows from what is looked for, and was told already
    finally:
        for handle in handles:
            handle.remove()
    return f"the output of {found[0]} is not finite" if found else None


def stopped_at(update: int, learner: Learner, said: str) -> NotFinite:
    """What a run ends with that cannot go on.

    Args:
        update: the number of the update, from 0.
        learner: as it stands.
        said: what is not finite.
    """
    schedule, checkpoints = learner.config.schedule, learner.config.folder / CHECKPOINTS
    kept = f"{checkpoints} keeps what was before; " if any(checkpoints.glob("*.pt")) else ""
    rates = f"lower --learning-rate ({schedule.learning_rate:g}) or --policy-learning-rate ({schedule.policy_learning_rate:g})"
    precise = "" if learner.precision is None else ", or set --precision no"
    return NotFinite(f"training stopped at update {update + 1} of {learner.updates}: {said}; {kept}{rates}{precise}, in a new run")
