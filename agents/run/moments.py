"""Going back to the state of an optimiser, known to fit: PyTorch takes whatever it is given, and fails at the next step."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from agents.run.split_tensors import split_like

__all__ = ["MOMENTS", "load_moments"]

MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
"""What Adam and AdamW (Kingma & Ba 2015, Loshchilov & Hutter 2019) keep of a parameter."""
CALLS = {"foreach", "fused"}
"""Settings that say in how many calls an optimiser steps, and not where to: they stay its own."""


def load_moments(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Goes back to where `optimizer.state_dict()` was taken, of Adam or AdamW; the moments of a parameter that is split over processes are split too.

    Raises:
        ValueError: if a moment is missing or has another shape, or a setting is of another type.
    """
    for own, given in zip(optimizer.state_dict()["param_groups"], state["param_groups"], strict=True):
        other = next((name for name in own if name not in CALLS and (name not in given or not _alike(given[name], own[name]))), None)
        if other is not None or given["params"] != own["params"]:
            raise ValueError(f"the optimiser's {other or 'params'} is missing or of another kind")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    fitting: dict[int, dict[str, Tensor]] = {}
    for number, moments in state["state"].items():
        if number not in range(len(parameters)) or set(moments) != MOMENTS:
            raise ValueError(f"the moments of parameter {number} are {', '.join(map(str, moments))}")
        for name, moment in moments.items():
            shape = () if name == "step" else parameters[number].shape
            if not isinstance(moment, Tensor) or moment.shape != shape or not moment.is_floating_point():
                raise ValueError(f"{name} of parameter {number} is no tensor of shape {tuple(shape)}")
        fitting[number] = {name: split_like(moment, parameters[number]) for name, moment in moments.items()}
    calls = [{name: group[name] for name in CALLS & group.keys()} for group in optimizer.param_groups]
    groups = [group | own for group, own in zip(state["param_groups"], calls, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups, "state": fitting})


def _alike(given: object, own: object) -> bool:
    """Whether a setting is of the kind that the optimiser itself has; what may be None may be given."""
    if isinstance(own, list | tuple) and isinstance(given, list | tuple):
        return len(given) == len(own) and all(map(_alike, given, own))
    return own is None or type(given) is type(own)
