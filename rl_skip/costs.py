"""Operations of the parts, from closed formulas; one multiply-add counts as two operations.

Only matrix products are counted, as `torch.utils.flop_counter` does, and the tests hold each formula against it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["attention_block_flops", "attention_pair_flops", "attention_token_flops", "count_flops", "linear_flops"]


def linear_flops(inputs: int, outputs: int) -> int:
    """Operations of a linear layer for one token."""
    return 2 * inputs * outputs


def attention_token_flops(width: int, mlp_ratio: int = 4) -> int:
    """Operations of an attention block that grow with the tokens: four projections and the MLP, for one token."""
    return 4 * linear_flops(width, width) + 2 * linear_flops(width, mlp_ratio * width)


def attention_pair_flops(width: int) -> int:
    """Operations of an attention block for each pair of tokens: scores and weighted values."""
    return 2 * linear_flops(width, 1)


def attention_block_flops(tokens: int | Tensor, width: int, mlp_ratio: int = 4) -> int | Tensor:
    """Operations of an attention block for one row of `tokens` tokens."""
    return tokens * attention_token_flops(width, mlp_ratio) + tokens * tokens * attention_pair_flops(width)


def count_flops(call: Callable[[], object], module: nn.Module) -> float:
    """Operations of one call, counted on the operators that run.

    Fused attention and the fast path of `nn.TransformerEncoderLayer` count as zero, so the call is made with the math
    backend and with `module` in training mode, where the fast path does not apply.
    """
    training = {part: part.training for part in module.modules()}
    module.train()
    try:
        with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            call()
    finally:
        for part, mode in training.items():
            part.training = mode
    return float(counter.get_total_flops())
