"""Operations of networks and policies, from closed formulas; one multiply-add counts as two operations.

Only matrix products are counted, as `torch.utils.flop_counter` does, and the tests hold each formula against it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["CostModel", "attention_block_flops", "attention_pair_flops", "attention_token_flops", "count_flops", "counting", "linear_flops"]


class CostModel:
    """Relative compute of the parts of a routed network, their share of the operations of all layers at full depth: as counted.

    For another measure, such as measured time, subclass it: each method takes the counted share, (R,) for R rows, and returns
    what the part costs instead.
    """

    def layer(self, i: int, counted: Tensor) -> Tensor:
        """(R,), the cost of running layer `i`."""
        return counted

    def part(self, name: str, counted: Tensor) -> Tensor:
        """(R,), the cost of what is not a layer: a "decision" of a policy, a "gate", a "readout"."""
        return counted


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


@contextmanager
def counting(module: nn.Module) -> Iterator[None]:
    """Within it, calls of `module` run the operators that can be counted, and leave no trace in the module.

    Fused attention and the fast path of `nn.TransformerEncoderLayer` count as zero, so both are off. Evaluation mode keeps
    batch norm from taking the example into its running statistics, and dropout from drawing random numbers.
    """
    training, fast = {child: child.training for child in module.modules()}, torch.backends.mha.get_fastpath_enabled()
    module.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for child, mode in training.items():
            child.training = mode


def count_flops(call: Callable[[], object]) -> float:
    """Operations of one call, counted on the operators that run; to be called within `counting`."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
