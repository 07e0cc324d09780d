"""A policy for the blocks of an MLP-Mixer (Tolstikhin et al. 2021): handwritten digits, 16 patches of 2 x 2 pixels.

    python examples/mlp_mixer.py

Run it from the checkout, where `agents` is. It takes seconds, so the network is not trained to its end.
"""

import torch
from torch import Tensor, nn

import rl_skip
from agents import ScheduleConfig, TrainConfig, train
from rl_skip import load_task

TOKENS, WIDTH, BLOCKS = 16, 64, 6


def mlp(size: int, hidden: int) -> nn.Sequential:
    """Two linear layers with a GELU between them."""
    return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))


class MixerBlock(nn.Module):
    """An MLP over the tokens of each channel, then one over the channels of each token, (B, T, D) → (B, T, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_tokens, self.norm_channels = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix_tokens, self.mix_channels = mlp(TOKENS, 2 * TOKENS), mlp(WIDTH, 4 * WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.mix_tokens(self.norm_tokens(hidden).transpose(1, 2)).transpose(1, 2)
        return hidden + self.mix_channels(self.norm_channels(hidden))


class Patches(nn.Module):
    """Images (B, 8, 8) → a token for each patch of 2 x 2 pixels, (B, 16, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(1, WIDTH, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images.unsqueeze(1)).flatten(2).transpose(1, 2)


torch.manual_seed(0)
task = load_task("digits")
blocks = nn.ModuleList([MixerBlock() for _ in range(BLOCKS)])
head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Flatten(), nn.Linear(TOKENS * WIDTH, 10))

stack = rl_skip.ModuleStack.from_modules(Patches(), blocks, head, example=task.load("train").take(slice(2)).inputs)
config = TrainConfig(out="runs/mlp-mixer", overwrite=True, schedule=ScheduleConfig(warmup_epochs=2, epochs=4))
run = train(config, task=task, stack=stack)  # prints accuracy, compute and time beside full depth

model = rl_skip.load(run / "policy", stack, budget=0.6)
logits = model(task.load("test").inputs)
print(f"a digit of the test data ran {model.last.route.sum(dim=1).float().mean():.1f} of {BLOCKS} blocks")
