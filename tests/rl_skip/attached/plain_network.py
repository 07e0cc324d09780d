"""A network of plain PyTorch modules."""

import torch
from torch import Tensor, nn


class Mlp(nn.Module):
    """A plain network, whose layers are worth more than the decisions between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(3, 32)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 512), nn.Tanh(), nn.Linear(512, 32)) for _ in range(3))
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)
