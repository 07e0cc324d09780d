"""Tensors of which each process holds a part, where a network is split over several: their parts, their whole, and the norm of their gradients."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from rl_skip.core.processes import talking, together

__all__ = ["clip_gradient", "gathered", "gathered_state", "is_split", "scattered_state", "split_like", "split_state", "whole", "whole_copy"]

Path = tuple[str | int, ...]
"""The keys that lead to a tensor in nested dictionaries."""


def is_split(tensor: Tensor | None) -> bool:
    """Whether each process holds a part of it."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process; the processes call it together."""
    with talking():
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """A tensor that every process has whole, split as `like` is; as it is where that is not split, or has another shape, which its taker refuses."""
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor) or tensor.shape != like.shape:
        return tensor
    own = tensor.to(like.device, like.dtype)
    return distribute_tensor(own, like.device_mesh, like.placements, src_data_rank=None)


def split_state(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A state of a module, each tensor split as the module's own is."""
    own = module.state_dict()
    return {name: split_like(tensor, own.get(name)) for name, tensor in state.items()}


def gathered_state(state: Any) -> Any:
    """A state with its split tensors whole in the first process, on the CPU, and left out in the others: one at a time, so that no device holds all.

    The processes call it together.
    """
    if isinstance(state, dict):
        return {name: gathered_state(value) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(gathered_state(value) for value in state)
    if not isinstance(state, DTensor):
        return state
    full = whole(state.detach())
    return full.cpu() if together().first else None


def scattered_state(state: Any, likes: Mapping[Path, Tensor]) -> Any:
    """What `gathered_state` made, in all processes, with those tensors split again: they are sent one at a time, so that nobody else holds all.

    The processes call it together.

    Args:
        state: in the first process; the others' is not looked at.
        likes: how tensors are to be split, by where they are.
    """
    sent = {path: tensor for path, tensor in _leaves(state) if path in likes and tensor.shape == likes[path].shape} if together().first else {}
    rest, shapes = together().from_first((_without(state, sent.keys()), {path: (tensor.shape, tensor.dtype) for path, tensor in sent.items()}))
    for path, (shape, dtype) in shapes.items():
        full = sent.pop(path) if together().first else torch.empty(shape, dtype=dtype)
        together().copy_first(iter([full]))
        place = rest
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = split_like(full, likes[path])
    return rest


def _leaves(state: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(state, dict):
        for name, value in state.items():
            yield from _leaves(value, (*path, name))
    elif isinstance(state, Tensor):
        yield path, state


def _without(state: Any, paths: Collection[Path], path: Path = ()) -> Any:
    if not isinstance(state, dict):
        return state
    return {name: _without(value, paths, (*path, name)) for name, value in state.items() if (*path, name) not in paths}


def whole_copy(module: nn.Module) -> nn.Module:
    """A copy of a module with all of its weights, in every process."""
    copy = deepcopy(module)
    for part in copy.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and is_split(parameter):
                part._parameters[name] = nn.Parameter(whole(parameter.detach()), requires_grad=parameter.requires_grad)
    return copy


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Within it the first process has all weights of a module, on the CPU, to be written; elsewhere nothing changes. All enter it together."""
    named = ((part, name, weight) for part in module.modules() for name, weight in part._parameters.items())
    places = [(part, name, weight) for part, name, weight in named if weight is not None and is_split(weight)]
    full: dict[int, nn.Parameter] = {}  # by whose they are: a weight may have several places
    for _, _, weight in places:
        if id(weight) not in full and (own := gathered_state(weight)) is not None:
            full[id(weight)] = nn.Parameter(own, requires_grad=weight.requires_grad)
    try:
        for part, name, weight in places:
            part._parameters[name] = full.get(id(weight), weight)
        yield
    finally:
        for part, name, weight in places:
            part._parameters[name] = weight


def clip_gradient(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scales gradients down to a norm of `limit` over all of them, split ones too. Returns the norm that they had, a scalar, the same everywhere."""
    every = list(parameters)
    split, own = ([parameter for parameter in every if is_split(parameter) == wanted] for wanted in (True, False))
    if not split:
        return nn.utils.clip_grad_norm_(own, limit)
    kinds = [[parameter for parameter in kind if parameter.grad is not None] for kind in (split, own)]
    norms = [whole(nn.utils.get_total_norm([parameter.grad for parameter in kind if parameter.grad is not None])) for kind in kinds]
    norm = torch.stack([part.to(split[0].device) for part in norms]).norm()
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, limit, norm)
    return norm
