"""A policy for the layers of an `nn.TransformerEncoder`: handwritten digits, each row of pixels a token.

    python examples/transformer_encoder.py

Run it from the checkout, where `agents` is. It takes seconds, so the network is not trained to its end.
"""

import torch
from torch import Tensor, nn

import rl_skip
from agents import ScheduleConfig, TrainConfig, train
from rl_skip import load_task

WIDTH, LAYERS = 64, 6


class Embed(nn.Module):
    """Images (B, 8, 8) → a token for each row of pixels, (B, 8, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.place = nn.Linear(8, WIDTH), nn.Parameter(0.2 * torch.randn(8, WIDTH))

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images) + self.place


torch.manual_seed(0)
task = load_task("digits")
layer = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Flatten(), nn.Linear(8 * WIDTH, 10))

stack = rl_skip.ModuleStack.from_modules(Embed(), encoder.layers, head, example=task.load("train").take(slice(2)).inputs)
config = TrainConfig(out="runs/transformer-encoder", overwrite=True, schedule=ScheduleConfig(warmup_epochs=2, epochs=4))
run = train(config, task=task, stack=stack)  # prints accuracy, compute and time beside full depth

model = rl_skip.load(run / "policy", stack, budget=0.6)
logits = model(task.load("test").inputs)
print(f"a digit of the test data ran {model.last.route.sum(dim=1).float().mean():.1f} of {LAYERS} layers")
