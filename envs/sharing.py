"""What the environments of a process share: rows that are the same to the last bit, and the network of a run. So 64 single ones hold them once.

Both are known by their content, so data or runs that changed on the disk are not taken for what they were. Nothing is kept that no
environment holds any more.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples

__all__ = ["shared_examples", "shared_network"]

_EXAMPLES: WeakValueDictionary[tuple[str, torch.device], Examples] = WeakValueDictionary()
_NETWORKS: WeakValueDictionary[tuple[Path, torch.device], LayerStack] = WeakValueDictionary()


def shared_examples(examples: Examples, device: torch.device) -> Examples:
    """The rows on a device: those that another environment shows there, if they are the same, else `examples`."""
    inputs = examples.inputs if isinstance(examples.inputs, dict) else {"": examples.inputs}
    key = _digest(inputs | {"labels of the rows": examples.labels}), device
    held = _EXAMPLES.get(key)
    if held is None:
        held = _EXAMPLES[key] = examples.to(device)
    return held


def shared_network(stack: LayerStack, run: str | Path, device: torch.device) -> LayerStack:
    """The network of a run on a device: the one that another environment uses there, if weights and costs are still the run's, else `stack`."""
    key = Path(run).resolve(), device
    held = _NETWORKS.get(key)
    if held is None or not _same(held, stack):
        held = _NETWORKS[key] = stack.to(device)
    return held


def _same(one: LayerStack, other: LayerStack) -> bool:
    """Whether two networks have the same weights, and charge the same for their layers."""
    if type(one) is not type(other) or type(one.costs) is not type(other.costs) or vars(one.costs) != vars(other.costs):
        return False
    return _digest(one.state_dict() | dict(one.named_buffers())) == _digest(other.state_dict() | dict(other.named_buffers()))


def _digest(tensors: Mapping[str, Any]) -> str:
    """SHA-256 of tensors with their names, in hexadecimal; what a module keeps besides tensors counts as it is written."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name} {value!r} ".encode())
    return digest.hexdigest()
