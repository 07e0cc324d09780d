"""A policy for the blocks of a ResNet stage: handwritten digits, convolutions.

    python examples/resnet_stage.py

Run it from the checkout, where `agents` is. It takes seconds, so the network is not trained to its end. The channels are
dimension 1. A block that rows skip must not normalise over the rows of a batch: GroupNorm here in place of batch norm.
"""

import torch
from torch import Tensor, nn

import rl_skip
from agents import ScheduleConfig, TrainConfig, train
from rl_skip import load_task

CHANNELS, BLOCKS = 32, 6


class Block(nn.Module):
    """Two convolutions and a short cut, (B, C, H, W) → (B, C, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        first = [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.GroupNorm(4, CHANNELS), nn.ReLU()]
        second = [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False), nn.GroupNorm(4, CHANNELS)]
        self.body = nn.Sequential(*first, *second)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.relu(hidden + self.body(hidden))


torch.manual_seed(0)
task = load_task("digits")
stem = nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv2d(1, CHANNELS, 3, padding=1), nn.ReLU())
stage = nn.Sequential(*[Block() for _ in range(BLOCKS)])
head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * CHANNELS, 10))

stack = rl_skip.ModuleStack.from_modules(stem, stage, head, channel_dim=1, example=task.load("train").take(slice(2)).inputs)
config = TrainConfig(out="runs/resnet-stage", overwrite=True, schedule=ScheduleConfig(warmup_epochs=2, epochs=3))
run = train(config, task=task, stack=stack)  # prints accuracy, compute and time beside full depth

model = rl_skip.load(run / "policy", stack, budget=0.6)
logits = model(task.load("test").inputs)
print(f"a digit of the test data ran {model.last.route.sum(dim=1).float().mean():.1f} of {BLOCKS} blocks")
