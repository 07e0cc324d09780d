"""An attached policy on models of many families against the same models with layers physically deleted."""

import pytest
import torch
from torch import Tensor, nn

import rl_skip
from tests.rl_skip.huggingface_models import CASES, DEPTH, batch, build, pruned

PATHS = {
    "bart": "model.encoder.layers",
    "bert": "bert.encoder.layer",
    "deberta-v2": "deberta.encoder.layer",
    "deit": "deit.layers",
    "dinov2": "dinov2.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "electra": "electra.encoder.layer",
    "gemma2": "model.layers",
    "gpt-neox": "gpt_neox.layers",
    "gpt2": "transformer.h",
    "gptj": "transformer.h",
    "hubert": "hubert.encoder.layers",
    "llama": "model.layers",
    "mistral": "model.layers",
    "modernbert": "model.layers",
    "opt": "model.decoder.layers",
    "qwen2": "model.layers",
    "roberta": "roberta.encoder.layer",
    "t5": "encoder.block",
    "vit": "vit.layers",
    "wav2vec2": "wav2vec2.encoder.layers",
    "wav2vec2-stable": "wav2vec2.encoder.layers",
    "whisper": "encoder.layers",
}
ROUTES = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 0]], dtype=torch.bool)


def _logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def _real(logits: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """The logits at real tokens: what stands at padding nobody reads."""
    mask = inputs.get("attention_mask")
    return logits[mask.bool()] if logits.dim() == 3 and mask is not None and mask.shape == logits.shape[:2] else logits


def _attributes(model: nn.Module) -> dict[str, set[str]]:
    return {name: set(vars(part)) for name, part in model.named_modules()}


@pytest.mark.parametrize(("family", "attention"), CASES)
def test_routes_equal_models_with_layers_deleted(family: str, attention: str) -> None:
    model = build(family, attn_implementation=attention)
    inputs = batch(model)
    bare, attributes, names = _logits(model, inputs), _attributes(model), list(model.state_dict())
    expected = [
        _logits(pruned(model, PATHS[family], route.tolist()), {name: x[b : b + 1] for name, x in inputs.items()}) for b, route in enumerate(ROUTES)
    ]

    handle = rl_skip.attach(model)
    assert handle.path == PATHS[family]
    assert list(model.state_dict()) == names
    with handle.forced(torch.ones(DEPTH, dtype=torch.bool)):
        torch.testing.assert_close(_logits(model, inputs), bare, atol=1e-6, rtol=0)
    with handle.forced(ROUTES):
        routed = _logits(model, inputs)
    assert handle.last_routes.equal(ROUTES)
    torch.testing.assert_close(_real(routed, inputs), _real(torch.cat(expected), inputs), atol=1e-5, rtol=1e-5)
    assert (routed - bare)[1].abs().max() < 1e-5 and all((routed - bare)[b].abs().max() > 1e-4 for b in (0, 2, 3))
    with handle.disabled():
        assert _logits(model, inputs).equal(bare)
    handle.detach()
    assert _logits(model, inputs).equal(bare)
    assert _attributes(model) == attributes


def test_no_row_computes_a_layer_that_it_skips() -> None:
    model = build("bert")
    seen: list[int] = []
    for layer in model.get_submodule(PATHS["bert"]):
        layer.attention.register_forward_hook(lambda _module, args, _output: seen.append(args[0].shape[0]))
    with rl_skip.attach(model).forced(ROUTES):
        _logits(model, batch(model))
    assert seen == ROUTES.sum(dim=0).tolist()
