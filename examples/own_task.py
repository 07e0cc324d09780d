"""A task of one's own with defaults of its own: `python train.py --task examples/own_task.py:longest_run`."""

import torch
from torch import Tensor

from rl_skip import Examples, Split, Task

ROWS = {"train": 4000, "validation": 1000, "test": 1000}
LENGTH = 12


def longest(bits: Tensor) -> Tensor:
    """(N, T) of 0 and 1 → (N,), how long the longest run of ones is."""
    run = best = torch.zeros(len(bits), dtype=torch.long)
    for column in bits.long().unbind(dim=1):
        run = (run + 1) * column
        best = torch.maximum(best, run)
    return best


def longest_run(path: str | None) -> Task:
    """Whether the longest run of ones has at least four; `path` is what --data says."""

    def load(split: Split) -> Examples:
        bits = torch.randint(2, (ROWS[split], LENGTH), generator=torch.Generator().manual_seed(len(split)))
        position = torch.eye(LENGTH).expand(len(bits), -1, -1)
        return Examples(torch.cat([bits.float().unsqueeze(2), position], dim=2), (longest(bits) >= 4).long())

    defaults = {"layers": 6, "width": 32, "warmup_epochs": 4, "epochs": 8, "price_range": (0.01, 1.0), "score": "probability"}
    return Task("longest run", ("short", "long"), load, lambda width: torch.nn.Linear(LENGTH + 1, width), LENGTH, defaults=defaults)
