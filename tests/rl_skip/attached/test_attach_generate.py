"""Generation with a cache, each sequence on its own route, against models of one row with layers physically deleted."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rl_skip
from tests.rl_skip.huggingface_models import batch, build, pruned

transformers = pytest.importorskip("transformers")

DECODERS = {"llama": "model.layers", "qwen2": "model.layers", "gpt2": "transformer.h", "gpt-neox": "gpt_neox.layers", "opt": "model.decoder.layers"}
ROUTES = torch.tensor([[1, 0, 1, 1, 0], [1, 0, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 0]], dtype=torch.bool)  # nobody runs layer 1
NEW_TOKENS = 32


def _generate(model: nn.Module, inputs: dict[str, Tensor], beams: int, **options: Any) -> Tensor:
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    return model.generate(**inputs, **settings | options)[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", DECODERS)
def test_each_row_generates_what_its_pruned_model_does(family: str, beams: int) -> None:
    model = build(family)
    inputs = batch(model)
    expected = [
        _generate(pruned(model, DECODERS[family], route.tolist()), {name: x[b : b + 1] for name, x in inputs.items()}, beams)
        for b, route in enumerate(ROUTES)
    ]
    bare = _generate(model, inputs, beams)
    handle = rl_skip.attach(model)
    with handle.forced(ROUTES.repeat_interleave(beams, dim=0)):
        generated = _generate(model, inputs, beams)
    assert generated.equal(torch.cat(expected))
    assert not any(row.equal(whole) for row, whole in zip(generated, bare, strict=True))
    handle.detach()
    assert _generate(model, inputs, beams).equal(bare)
