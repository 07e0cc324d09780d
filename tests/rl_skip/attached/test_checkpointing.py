"""Gradient checkpointing of an attached model, against the gradients without it."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rl_skip
from tests.rl_skip.attached.test_attach_policy import make_policy
from tests.rl_skip.huggingface_models import DEPTH, batch, build

ROUTE = torch.tensor([[1, 0, 1, 0, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
PATHS = {"bert": "bert.encoder.layer", "llama": "model.layers", "gpt2": "transformer.h", "t5": "encoder.block", "vit": "vit.layers"}


def in_training(family: str) -> nn.Module:
    model = build(family).train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return model


def switch_on(model: Any, **options: Any) -> None:
    renamed = hasattr(model, "activation_checkpointing_enable")  # gradient_checkpointing_enable is its older name
    (model.activation_checkpointing_enable if renamed else model.gradient_checkpointing_enable)(options)


def gradients(model: nn.Module, within: Any) -> list[Tensor | None]:
    """Of a loss on the logits, computed where the route is not known any more."""
    with within:
        logits = model(**batch(model)).logits
    logits.square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


def calls_of_layers(model: nn.Module, path: str) -> list[int]:
    """How often each layer runs; it grows."""
    calls = [0] * DEPTH

    def watch(i: int) -> Any:
        def count(*_: Any) -> None:
            calls[i] += 1

        return count

    for i, layer in enumerate(model.get_submodule(path)):
        next(part for part in layer.modules() if isinstance(part, nn.Linear | nn.LayerNorm)).register_forward_hook(watch(i))
    return calls


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("family", "policy"), [*((family, False) for family in PATHS), ("bert", True), ("llama", True)])
def test_checkpointing_changes_no_gradient(family: str, policy: bool, reentrant: bool) -> None:
    plain, checkpointed = in_training(family), in_training(family)
    handles = [rl_skip.attach(model, make_policy(7) if policy else None, layers=PATHS[family]) for model in (plain, checkpointed)]
    within = [nullcontext() if policy else handle.forced(ROUTE) for handle in handles]
    expected = gradients(plain, within[0])
    with torch.no_grad(), nullcontext() if policy else handles[1].forced(ROUTE):
        checkpointed(**batch(checkpointed))  # the first call finds where the rows are in the layers' arguments, by calls of its own
    calls = calls_of_layers(checkpointed, PATHS[family])
    switch_on(checkpointed, use_reentrant=reentrant)
    layers = checkpointed.get_submodule(PATHS[family])
    if reentrant and type(layers[0]).__call__ is not nn.Module.__call__:  # transformers before 5.23
        with pytest.raises(rl_skip.UserError, match="use_reentrant"):
            gradients(checkpointed, within[1])
        return
    got = gradients(checkpointed, within[1])
    ran = handles[1].last_routes.any(dim=0).tolist()
    assert handles[1].last_routes.equal(handles[0].last_routes) and not handles[1].last_routes.all()
    assert calls == [2 if runs else 0 for runs in ran]  # forward and, again, backward
    for layer, runs in zip(layers, ran, strict=True):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters()) == runs
    for before, after in zip(expected, got, strict=True):
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            torch.testing.assert_close(after, before)


class Checkpointed(nn.Module):
    """Puts each layer, or all of them, into a checkpoint of PyTorch's, or nothing."""

    def __init__(self, what: str, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(DEPTH))
        self.what, self.reentrant = what, reentrant

    def all_layers(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=self.reentrant) if self.what == "each" else layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.all_layers, x, use_reentrant=self.reentrant) if self.what == "all" else self.all_layers(x)

    def gradients(self) -> list[Tensor | None]:
        """Within a route that parts the rows."""
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with rl_skip.attach(self, layers="layers").forced(ROUTE):
            self(x).square().sum().backward()
        return [x.grad, *(parameter.grad for parameter in self.parameters())]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_around_all_layers_changes_no_gradient_and_one_around_each_is_refused(reentrant: bool) -> None:
    for plain, checkpointed in zip(*(Checkpointed(what, reentrant).gradients() for what in ("none", "all")), strict=True):
        assert (plain is None) == (checkpointed is None)
        if plain is not None and checkpointed is not None:
            torch.testing.assert_close(checkpointed, plain)
    with pytest.raises(rl_skip.UserError, match="layer 4 again"):
        Checkpointed("each", reentrant).gradients()
