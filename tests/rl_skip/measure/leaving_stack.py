"""A small stack with readouts, a task on it and a policy that leaves at different depths, for tests of what leaving gives."""

import torch
from torch import nn

from rl_skip import Examples, Feature, JumpPolicy, JumpRules, ModuleStack, ObservationLayout
from rl_skip.core.features import CONFIDENCES
from rl_skip.core.task import Split, Task

WIDTH, DEPTH, ROWS, CLASSES = 6, 5, 60, 3


def make_stack() -> ModuleStack:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH)]
    stack = ModuleStack(nn.Linear(4, WIDTH), layers, nn.Linear(WIDTH, CLASSES), width=WIDTH, layer_flops=[20000.0] * DEPTH)
    nn.init.normal_(stack.head.weight, std=2.0)  # type: ignore[arg-type]
    for readout in stack.add_readouts(torch.randn(2, 4)).each:
        readout.weight.data += torch.randn(CLASSES, WIDTH)  # type: ignore[union-attr, operator]
    return stack.eval()


def make_task() -> Task:
    generator = torch.Generator().manual_seed(1)
    examples = Examples(torch.randn(ROWS, 4, generator=generator), torch.randint(CLASSES, (ROWS,), generator=generator))

    def load(split: Split) -> Examples:
        return examples

    return Task("leaving", ("a", "b", "c"), load, lambda width: nn.Linear(4, width), 1)


def make_policy(stack: ModuleStack, *features: Feature, jumps: bool = False) -> JumpPolicy:
    torch.manual_seed(4)
    assert stack.readouts is not None
    layout = ObservationLayout(WIDTH, DEPTH, 0.01, 1.0, features or CONFIDENCES, stack.readouts.flops)
    policy = JumpPolicy(JumpRules.reaching(layout, allow_exit=True, jumps=jumps, hidden=32)).eval()
    policy.fc_in.weight.data *= 4
    policy.fc_out.weight.data.normal_(std=1.0)
    policy.fc_out.bias.data[0] = 3.0
    return policy
