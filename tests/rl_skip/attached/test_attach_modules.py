"""Attaching to plain modules: a transformer encoder, a convolution stage, a mixer."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import rl_skip
from rl_skip import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.core.costs import count_flops, counting

ROUTES = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, padding: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(self.embed(x), mask=mask, src_key_padding_mask=padding)[:, 0])


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(2, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(*(Residual(8) for _ in range(4))), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _without(model: nn.Module, path: str, route: Tensor) -> nn.Module:
    copied = copy.deepcopy(model)
    parent, _, name = path.rpartition(".")
    layers = copied.get_submodule(path)
    kept = [layer for layer, runs in zip(layers, route.tolist(), strict=True) if runs]
    setattr(copied.get_submodule(parent), name, type(layers)(*kept) if isinstance(layers, nn.Sequential) else nn.ModuleList(kept))
    return copied


def _policy(seed: int = 0) -> JumpPolicy:
    torch.manual_seed(seed)
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(8, 4), hidden=16)).eval()
    policy.fc_out.weight.data.normal_(std=2.0)
    return policy


@pytest.mark.parametrize("kind", ["encoder", "convolutions"])
def test_routes_equal_modules_with_layers_deleted(kind: str) -> None:
    torch.manual_seed(0)
    model, path, x = (Encoder(), "encoder.layers", torch.randn(3, 5, 3)) if kind == "encoder" else (_convolutions(), "1", torch.randn(3, 3, 6, 6))
    model.eval()
    with torch.no_grad():
        bare = model(x)
        expected = torch.cat([_without(model, path, route)(x[b : b + 1]) for b, route in enumerate(ROUTES)])
        handle = rl_skip.attach(model, layers=path)
        with handle.forced(ROUTES):
            torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
        assert (bare - expected)[[0, 2]].abs().amax(dim=1).min() > 1e-3
        handle.detach()
        assert model(x).equal(bare)


def test_masks_of_an_encoder_and_its_padding() -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    x, padding = torch.randn(3, 3, 3), torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 1]], dtype=torch.bool)
    mask = nn.Transformer.generate_square_subsequent_mask(3)  # (T, T), with as many tokens as rows
    handle = rl_skip.attach(model, _policy(), layers="encoder.layers")
    handle.price = 0.3
    with torch.no_grad():
        model(x, padding, mask)
        assert handle.last_routes.shape == (3, 4)
        routes = handle.last_routes
        model(x.masked_fill(padding.unsqueeze(-1), 9.0), padding, mask)
        assert handle.last_routes.equal(routes)  # decisions do not see padding
        with handle.forced(ROUTES):
            routed = model(x, padding, mask)
        handle.detach()
        for b, route in enumerate(ROUTES):
            n = int((~padding[b]).sum())
            alone = _without(model, "encoder.layers", route)(x[b : b + 1, :n], mask=mask[:n, :n])
            torch.testing.assert_close(routed[b], alone[0], atol=1e-5, rtol=1e-5)


class _Turned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden: Tensor, cos: Tensor) -> Tensor:
        return self.linear(hidden * cos)


class _WithTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Turned() for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        cos = torch.arange(hidden.shape[1] * 8.0).view(-1, 8).cos()  # (T, D), the same for all rows
        for block in self.blocks:
            hidden = block(hidden, cos)
        return hidden


def test_a_table_as_long_as_the_batch_is_not_taken_for_rows() -> None:
    model = _WithTable()
    hidden = torch.randn(4, 4, 8)
    route = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1], [1, 0, 1, 0], [1, 1, 0, 0]]).bool()
    handle = rl_skip.attach(model, layers="blocks")
    with torch.no_grad():
        with handle.forced(route):
            together = model(hidden)
        for b in range(4):
            with handle.forced(route[b]):
                torch.testing.assert_close(together[b : b + 1], model(hidden[b : b + 1]))


def test_policies_on_images_and_their_cost(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _convolutions().eval()
    handle = rl_skip.attach(model, _policy(9), layers="1", channel_dim=1)
    handle.price = 0.3
    x = torch.randn(6, 3, 6, 6)
    with torch.no_grad():
        model(x)
        route = handle.last_routes
        decisions = 1 + route[:, 1].float()  # none is left after the last layer but one
        with counting(model[1]), handle.disabled():
            layer = count_flops(lambda: model[1][0](torch.zeros(1, 8, 6, 6)))
    assert len(route.unique(dim=0)) > 1
    assert layer == 36 * 2 * 8 * 8 * 9
    expected = route.sum(dim=1) / 4 + decisions * handle.policy.rules.decision_flops / (4 * layer)
    torch.testing.assert_close(handle.last_compute, expected)
    handle.save_pretrained(tmp_path / "policy")
    handle.detach()
    again = rl_skip.attach(model, tmp_path / "policy")
    with torch.no_grad():
        model(x)
    assert again.last_routes.equal(route)
