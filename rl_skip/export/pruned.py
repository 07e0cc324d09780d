"""A network without the layers that one fixed route leaves out: no policy and no routing, in memory and in a folder."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields
from rl_skip.core.finite import refuse_not_finite
from rl_skip.core.inputs import Inputs
from rl_skip.core.kinds import kind_of, read_network
from rl_skip.core.readouts import adapter_of, read_groups
from rl_skip.core.seal import check_sealed
from rl_skip.core.stack import LayerStack
from rl_skip.export.weights import build, read_weights

__all__ = ["CARD", "DESCRIPTION", "FORMAT_VERSION", "WEIGHTS", "PrunedNetwork", "checked_layers", "load_pruned"]

FORMAT_VERSION = 1
DESCRIPTION, WEIGHTS, CARD = "pruned.json", "pruned.safetensors", "README.md"
MODEL = "model"
"""Where in the folder a model from transformers is, for its own `from_pretrained`."""


class PrunedNetwork(nn.Module):
    """The layers of one route, run one after the other by every row: inputs → outputs.

    Args:
        stack: the whole network, which must not be used afterwards: the other layers are taken out of it.
        layers: the layers that stay, ascending, layer 0 first.
        plan: what an adapter before the head is, which is loaded afterwards, as `adapter_of` takes it; None: the stack's own readout, if it is one,
            where the route leaves early.

    Example:
        >>> from rl_skip.nets.module_stack import ModuleStack
        >>> stack = ModuleStack(nn.Linear(3, 8), [nn.Linear(8, 8) for _ in range(4)], nn.Linear(8, 2), width=8, layer_flops=[1.0] * 4)
        >>> network = PrunedNetwork(stack, [0, 3])
        >>> len(network.stack.layers), network(torch.zeros(5, 3)).shape
        (2, torch.Size([5, 2]))
    """

    def __init__(self, stack: LayerStack, layers: Sequence[int], plan: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.layers = checked_layers(layers, stack.depth)
        self.jumps = [following - layer - 1 for layer, following in pairwise([*self.layers, stack.depth])]
        """After each layer, how many were taken out: a stack that marks its jumps goes on marking them."""
        answering = stack.take_readout(self.layers[-1])
        self.adapter = answering if plan is None else adapter_of(stack.width, plan, stack.channel_dim)
        self.stack = stack.keep(self.layers)

    def forward(self, inputs: Inputs) -> Tensor:
        carry = self.stack.begin(inputs)
        for i, jump in enumerate(self.jumps):
            self.stack.run(i, carry, None)
            if jump > 0:
                rows = torch.arange(carry.hidden.shape[0], device=carry.hidden.device)
                self.stack.on_jump(carry, rows, torch.full_like(rows, jump))
        if self.adapter is not None:
            carry.hidden = self.adapter(carry.hidden, carry.mask)
        return self.stack.finish(carry)


def checked_layers(layers: Sequence[int], depth: int) -> tuple[int, ...]:
    """The layers of a route, if they are ascending, lie in 0..depth - 1, and begin with layer 0.

    Raises:
        UserError: if they do not.
    """
    text = ",".join(map(str, layers))
    if any(not 0 <= layer < depth for layer in layers):
        raise UserError(f"the layers are numbered 0 to {depth - 1}, got {text}; set --layers, or layers=")
    if any(layer >= following for layer, following in pairwise(layers)):
        raise UserError(f"the layers of a route ascend, got {text}; set --layers, or layers=")
    if not layers or layers[0] != 0:
        raise UserError(f"layer 0 runs on every route, got {text or 'no layers'}; set --layers, or layers=, to 0 and what follows")
    return tuple(layers)


def load_pruned(folder: Path | str, stack: LayerStack | None = None, *, device: torch.device | str = "cpu") -> PrunedNetwork:
    """The network that `python -m rl_skip prune RUN DIR` wrote, in evaluation mode.

    Args:
        folder: DIR.
        stack: the whole network, for a folder that does not describe it because its embedding, or the stack, is one's own.
        device: where to run.

    Raises:
        UserError: if a file is missing or not as it was written, a field is wrong, or the weights or the stack do not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name a pruned network, the folder with a {DESCRIPTION}")
    fields = Fields.read(folder / DESCRIPTION, FORMAT_VERSION)
    depth = fields.integer("depth")
    layers = _read_layers(fields, depth)
    plan = _read_plan(fields) if "adapter_rank" in fields.values else None
    network = _built(fields, folder, stack, depth, layers, plan)
    refuse_not_finite(network, folder, "prune the run again")
    check_sealed(folder, DESCRIPTION, WEIGHTS, whole=True)
    return network.to(device).eval()


def _read_plan(fields: Fields) -> dict[str, Any]:
    """What the adapter before the head is; a file of before knows no groups."""
    groups = read_groups(fields, "adapter_groups", fields.integer("width")) if "adapter_groups" in fields.values else 0
    return {"rank": fields.integer("adapter_rank"), "pools": fields.values.get("adapter_pools") is True, "groups": groups}


def _built(
    fields: Fields, folder: Path, stack: LayerStack | None, depth: int, layers: tuple[int, ...], plan: dict[str, Any] | None
) -> PrunedNetwork:
    if stack is not None:
        if stack.depth != depth:
            raise UserError(f"{fields.source}: depth is {depth}, the given stack has {stack.depth}; pass the network that was pruned")
        network = PrunedNetwork(stack, layers, plan)
        network.load_state_dict(read_weights(folder / WEIGHTS, network.state_dict(), same_dtype=True))
        return network
    if fields.get("network") is None:
        raise UserError(f"{folder} does not describe its network; pass the whole network that was pruned: load_pruned(folder, stack)")
    described = read_network(fields.object("network"), fields.integer("width"), depth)
    kind = kind_of(described)
    if kind.read_model is not None:
        if not (folder / MODEL).is_dir():
            raise UserError(f"{folder} has no folder {MODEL}, in which its model was; prune the run again")
        whole = kind.read_model(folder / MODEL, described)
        if whole.depth != len(layers):
            raise fields.wrong("layers", f"the {whole.depth} layers of the model beside it")
        network = PrunedNetwork(whole, range(whole.depth), plan)
        network.layers = layers
        if network.adapter is not None:
            network.adapter.load_state_dict(read_weights(folder / WEIGHTS, network.adapter.state_dict()))
        return network
    if (missing := kind.missing(described)) is not None:
        raise UserError(f"{folder} {missing}")
    return build(folder / WEIGHTS, lambda: PrunedNetwork(kind.build(described), layers, plan), DESCRIPTION)


def _read_layers(fields: Fields, depth: int) -> tuple[int, ...]:
    layers = fields.get("layers")
    try:
        if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
            raise UserError("not whole numbers")
        return checked_layers(layers, depth)
    except UserError:
        raise fields.wrong("layers", f"ascending layers in 0..{depth - 1}, 0 among them") from None
