"""Operations of the layers of an attached model."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.attached.calls import LayerCall
from rl_skip.attached.returns import Form, split_returned
from rl_skip.core.costs import attention_pair_flops, count_flops, counting, linear_flops
from rl_skip.core.errors import UserError

__all__ = ["LayerFlops", "counted_flops", "shares_of", "transformer_flops"]

NOMINAL_TOKENS = 128


class LayerFlops:
    """Operations of L layers for a row of n tokens: per_token · n + per_pair · n² + fixed, each (L,)."""

    def __init__(self, per_token: list[float], per_pair: list[float], fixed: list[float]) -> None:
        self.terms = torch.tensor([fixed, per_token, per_pair], dtype=torch.float32).T  # (L, 3)
        self._of_one: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def of(self, tokens: Tensor) -> Tensor:
        """(R, L), for rows of `tokens` (R,) real tokens each."""
        powers = tokens.float().unsqueeze(1) ** torch.arange(3, device=tokens.device)  # (R, 3)
        return powers @ self.terms.to(tokens.device).T

    def of_one(self, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """`shares_of` for one row of so many tokens, made once for each length."""
        if (tokens, device) not in self._of_one:
            with torch.inference_mode(False):  # in which it would serve no later call that learns
                self._of_one[tokens, device] = shares_of(self.of(torch.tensor([tokens], device=device)))
        return self._of_one[tokens, device]

    def shares(self) -> list[float]:
        """L shares of the layers in the operations of all, for a row of nominal length."""
        nominal = self.nominal()
        return (nominal / nominal.sum()).tolist()

    def nominal(self) -> Tensor:
        """(L,), for a row of nominal length."""
        return self.of(torch.tensor([NOMINAL_TOKENS]))[0]


def shares_of(flops: Tensor) -> tuple[Tensor, Tensor]:
    """Operations (R, L) of the layers as (R, L) shares of all of a row's, and these, (R, 1)."""
    full = flops.sum(dim=1, keepdim=True)
    return flops / full, full


def transformer_flops(config: Any, layers: Sequence[nn.Module], width: int) -> LayerFlops:
    """Of the layers of a transformer: all its linear maps for each token, scores and weighted values for each pair."""
    heads, head_width = (getattr(config, name, None) for name in ("num_attention_heads", "head_dim"))
    attention_width = heads * head_width if isinstance(heads, int) and isinstance(head_width, int) else width
    per_token = [float(_linear_maps(layer)) for layer in layers]
    L = len(layers)
    return LayerFlops(per_token, [float(attention_pair_flops(attention_width))] * L, [0.0] * L)


def counted_flops(
    layers: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]], forms: Sequence[Form | None], hidden: Tensor, call: LayerCall
) -> LayerFlops:
    """Of any layers, counted on the first row of a call that all of them can take, and without its cache, which stays as it is.

    Raises:
        UserError: if they cost nothing, or do not give back what they take.
    """
    first = torch.zeros(1, dtype=torch.long, device=hidden.device)
    single = call.without_caches()
    single = single.take(first) if single.row_count > 1 else single
    row = hidden[:1].detach()
    counted = []
    for i, (layer, forward, form) in enumerate(zip(layers, forwards, forms, strict=True)):
        returned: list[Any] = []
        with counting(layer):
            counted.append(count_flops(partial(_run, single, forward, row, returned)))
        shape = split_returned(layer, returned[0], form)[0].shape
        if shape != row.shape:
            raise UserError(f"layer {i} makes {tuple(shape)} of {tuple(row.shape)}: a layer that can be skipped gives back the shape that it takes")
    if sum(counted) == 0:
        raise UserError("the layers cost nothing, there is no matrix product in them: skipping them would save nothing")
    L = len(layers)
    return LayerFlops([0.0] * L, [0.0] * L, counted)


def _run(call: LayerCall, forward: Callable[..., Any], hidden: Tensor, returned: list[Any]) -> None:
    returned.append(call.run(forward, hidden))


def _linear_maps(module: nn.Module) -> int:
    """Operations of the linear maps inside a module for one token, adapters and quantised ones included."""
    inside = sum(_linear_maps(child) for child in module.children())
    if inside:
        return inside
    for inputs, outputs in (("in_features", "out_features"), ("nx", "nf")):  # the latter in the Conv1D of GPT-2
        sizes = getattr(module, inputs, None), getattr(module, outputs, None)
        if isinstance(sizes[0], int) and isinstance(sizes[1], int):
            return linear_flops(sizes[0], sizes[1])
    return 0
