"""A network without the layers that one fixed route leaves out: no policy and no routing, in memory and in a folder."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from rl_skip.errors import UserError
from rl_skip.fields import Fields
from rl_skip.gated import GatedStack, HeadedStack
from rl_skip.inputs import Inputs
from rl_skip.network import network_from_json
from rl_skip.network_fields import read_network
from rl_skip.stack import LayerStack, ModuleStack
from rl_skip.weights import build, read_weights

__all__ = ["CARD", "DESCRIPTION", "FORMAT_VERSION", "WEIGHTS", "PrunedNetwork", "checked_layers", "load_pruned"]

FORMAT_VERSION = 1
DESCRIPTION, WEIGHTS, CARD = "pruned.json", "pruned.safetensors", "README.md"
MODEL = "model"
"""Where in the folder a model from transformers is, for its own `from_pretrained`."""


class PrunedNetwork(nn.Module):
    """The layers of one route, run one after the other by every row: inputs → outputs.

    Args:
        stack: the whole network. It is taken over: what the route leaves out is taken out of it.
        layers: the layers that stay, ascending, layer 0 first.

    Example:
        >>> stack = ModuleStack(nn.Linear(3, 8), [nn.Linear(8, 8) for _ in range(4)], nn.Linear(8, 2), width=8, layer_flops=[1.0] * 4)
        >>> network = PrunedNetwork(stack, [0, 3])
        >>> len(network.stack.layers), network(torch.zeros(5, 3)).shape
        (2, torch.Size([5, 2]))
    """

    def __init__(self, stack: LayerStack, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = checked_layers(layers, stack.depth)
        self.jumps = [following - layer - 1 for layer, following in pairwise([*self.layers, stack.depth])]
        """After each layer, how many were taken out: a stack that marks its jumps goes on marking them."""
        self.stack = _keep(stack, self.layers)

    def forward(self, inputs: Inputs) -> Tensor:
        carry = self.stack.begin(inputs)
        for i, jump in enumerate(self.jumps):
            self.stack.run(i, carry, None)
            if jump > 0:
                rows = torch.arange(carry.hidden.shape[0], device=carry.hidden.device)
                self.stack.on_jump(carry, rows, torch.full_like(rows, jump))
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
        stack: the whole network, for a folder that does not describe it because its embedding is a function of one's own.
        device: where to run.

    Raises:
        UserError: if a file is missing, a field is wrong, or the weights or the stack do not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name a pruned network, the folder with a {DESCRIPTION}")
    fields = Fields.read(folder / DESCRIPTION, FORMAT_VERSION)
    depth = fields.integer("depth")
    layers = _read_layers(fields, depth)
    if stack is not None:
        if stack.depth != depth:
            raise UserError(f"{fields.source}: depth is {depth}, the given stack has {stack.depth}; pass the network that was pruned")
        network = PrunedNetwork(stack, layers)
        network.load_state_dict(read_weights(folder / WEIGHTS, network.state_dict(), same_dtype=True))
        return network.to(device).eval()
    if fields.get("network") is None:
        raise UserError(f"{folder} does not describe its network; pass the whole network that was pruned: load_pruned(folder, stack)")
    described = read_network(fields.object("network"), fields.integer("width"), depth)
    if described.get("kind") == "attached":
        from rl_skip.attached.pretrained import load_model

        whole = load_model(str(folder / MODEL))
        network = PrunedNetwork(whole, range(whole.depth))
        network.layers = layers
        return network.to(device).eval()
    return build(folder / WEIGHTS, lambda: PrunedNetwork(network_from_json(described), layers), DESCRIPTION).to(device)


def _read_layers(fields: Fields, depth: int) -> tuple[int, ...]:
    layers = fields.get("layers")
    try:
        if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
            raise UserError("not whole numbers")
        return checked_layers(layers, depth)
    except UserError:
        raise fields.wrong("layers", f"ascending layers in 0..{depth - 1}, 0 among them") from None


def _keep(stack: LayerStack, layers: tuple[int, ...]) -> LayerStack:
    trunk = stack.trunk if isinstance(stack, HeadedStack) else stack
    flops = trunk.layer_flops[list(layers)]
    if not isinstance(trunk, ModuleStack | GatedStack):
        from rl_skip.attached.huggingface import HuggingFaceStack
        from rl_skip.attached.pretrained import without_layers

        if isinstance(trunk, HuggingFaceStack):
            return without_layers(trunk, layers)
    if isinstance(trunk, ModuleStack):
        trunk.layers = nn.ModuleList(trunk.layers[i] for i in layers)
    elif isinstance(trunk, GatedStack):
        trunk.bodies = nn.ModuleList(trunk.bodies[i] for i in layers)
        trunk.gates = None if trunk.gates is None else nn.ModuleList(trunk.gates[i] for i in layers)
    else:
        raise UserError(f"a {type(trunk).__name__} cannot be pruned: only a ModuleStack or a GatedStack knows which of its weights are a layer's")
    trunk.layer_flops = flops
    trunk.depth = stack.depth = len(layers)
    return stack
