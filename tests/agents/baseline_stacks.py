"""Stacks of every kind that the baselines are tried on, with inputs, and a network that is one route and nothing else."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from rl_skip.core.inputs import Inputs
from rl_skip.core.stack import LayerStack
from rl_skip.export.pruned import PrunedNetwork
from rl_skip.nets.blocks import AttentionBlock, ClassifierHead, FrameEmbedding
from rl_skip.nets.gated import AttentionBody, GatedStack, HeadedStack
from rl_skip.nets.module_stack import ModuleStack

KINDS = ("blocks", "masked", "tied", "unequal", "skip-layer")
DEPTH, WIDTH, CLASSES, TOKENS, ROWS = 5, 8, 3, 6, 16


def build(kind: str) -> tuple[LayerStack, Inputs]:
    """A stack in evaluation mode, and inputs for it."""
    torch.manual_seed(0)
    frames = 2 * torch.randn(ROWS, 1, 3) + torch.randn(ROWS, TOKENS, 3)  # rows differ by more than their tokens do
    x: Inputs = frames
    embed: nn.Module = nn.Linear(3, WIDTH)
    if kind in ("masked", "skip-layer"):
        x = {"frames": frames, "mask": torch.arange(TOKENS) < torch.randint(2, TOKENS + 1, (ROWS, 1))}
        embed = FrameEmbedding(frames=TOKENS, features=3, stride=1).build(WIDTH)
    head = ClassifierHead(WIDTH, CLASSES)
    if kind == "skip-layer":
        trunk = GatedStack(WIDTH, 2, DEPTH, body=lambda i: AttentionBody(WIDTH, 2), tokens=TOKENS)
        return HeadedStack(embed, trunk, head).eval(), x
    layers: list[nn.Module] = [AttentionBlock(WIDTH, 2) for _ in range(DEPTH)]
    layers = [layers[0]] * DEPTH if kind == "tied" else layers
    flops = [1e5 * (1 + (kind == "unequal") * i) for i in range(DEPTH)]
    return ModuleStack(embed, layers, head, width=WIDTH, layer_flops=flops, layers_take_mask=True).eval(), x


def alone(stack: LayerStack, route: Tensor, row: Inputs) -> Tensor:
    """The outputs of one row in a network that has no other layers than those of its route."""
    return PrunedNetwork(deepcopy(stack), route.nonzero().squeeze(1).tolist())(row)


class Calls:
    """Counts the rows that each body of a stack is called with, (L,)."""

    def __init__(self, stack: LayerStack) -> None:
        bodies = stack.trunk.bodies if isinstance(stack, HeadedStack) else stack.layers
        assert isinstance(bodies, nn.ModuleList)
        self.rows, self.times = [0] * len(bodies), [0] * len(bodies)
        for i, body in enumerate(bodies):
            body.register_forward_hook(lambda _module, arguments, _output, i=i: self.count(i, len(arguments[0])))

    def count(self, i: int, rows: int) -> None:
        self.rows[i] += rows
        self.times[i] += 1
