"""A reward of one's own, a price of energy in place of one of compute.

    python train.py --reward examples/own_reward.py:Energy --out runs/energy
    python -m rl_skip eval runs/energy --allow-code

A device that is woken for an input takes a fixed energy, and then the more for each layer the warmer it gets. A full pass
takes 1, so that a price means at full depth what it meant before: at 0.1, a full pass is worth ten points of accuracy.
"""

from torch import Tensor

from rl_skip import Reward

WAKING = 0.2
"""Share of a full pass's energy that is spent as soon as anything runs."""
WARMTH = 1.5
"""The power of compute with which the rest rises; 1 would be a device that stays cold."""


class Energy(Reward):
    """Reward = score − price · energy."""

    formula = f"score − price · ({WAKING} + {1 - WAKING} · compute^{WARMTH})"

    def penalty(self, compute: Tensor, price: Tensor | float) -> Tensor:
        return price * (WAKING * (compute > 0) + (1 - WAKING) * compute**WARMTH)
