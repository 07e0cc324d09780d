"""What layers return beside the hidden state: named by a person, passed on to later layers, and collected by the model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rl_skip
from benchmarks.small_models import DEPTH, FAMILIES, batch, build, without_layers
from rl_skip import JumpPolicy, JumpRules, ObservationLayout, UserError
from rl_skip.attached.returns import returned_parts

pytest.importorskip("transformers")
ROUTES = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 1], [1, 0, 0, 1], [1, 0, 1, 0]], dtype=torch.bool)


class _WithMemory(nn.Module):
    """A layer with a memory that it changes and hands on, and weights that the model collects."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, memory: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = (memory @ hidden.transpose(1, 2)).softmax(dim=-1)
        return weights, hidden + self.linear(weights @ hidden), memory + 0.1 * hidden


class _HiddenFirst(_WithMemory):
    def forward(self, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        return super().forward(memory, hidden)


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_HiddenFirst() for _ in range(DEPTH))

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        memory, collected = hidden.flip(1), []
        for block in self.blocks:
            weights, hidden, memory = block(hidden, memory=memory)
            collected.append(weights)
        return hidden, memory, collected


RETURNS = (None, "hidden", "memory")


def test_parts_that_a_person_names() -> None:
    """A row that skips a layer keeps the memory that it had, and has zeros where weights would be."""
    torch.manual_seed(0)
    model, hidden = _Model().eval(), torch.randn(4, 5, 8)
    handle = rl_skip.attach(model, layers="blocks")
    with pytest.raises(UserError, match="HiddenFirst returns a tuple whose parts are not known"), handle.forced(ROUTES):
        model(hidden)
    handle.detach()
    handle = rl_skip.attach(model, layers="blocks", returns=RETURNS)
    with torch.no_grad():
        with handle.forced(ROUTES):
            routed = model(hidden)
        with handle.forced([True, False, False, True]):
            nobody = model(hidden)[2]
        handle.detach()
        for b, route in enumerate(ROUTES):
            x, memory = hidden[b : b + 1], hidden[b : b + 1].flip(1)
            for i, runs in enumerate(route.tolist()):
                weights = torch.zeros(1, 5, 5)
                if runs:
                    weights, x, memory = model.blocks[i](x, memory=memory)
                torch.testing.assert_close(routed[2][i][b], weights[0])
            torch.testing.assert_close(routed[0][b], x[0])
            torch.testing.assert_close(routed[1][b], memory[0])
    assert [weights.any().item() for weights in nobody] == [True, False, False, True]


def test_the_names_of_parts_go_with_a_saved_policy(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, hidden = _Model().eval(), torch.randn(4, 5, 8)
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(8, DEPTH), hidden=16)).eval()
    handle = rl_skip.attach(model, policy, layers="blocks", returns=RETURNS)
    with torch.no_grad():
        expected = model(hidden)[0]
        handle.save_pretrained(tmp_path / "policy")
        handle.detach()
        rl_skip.attach(model, tmp_path / "policy")
        assert model(hidden)[0].equal(expected)


@pytest.mark.parametrize("returns", [("hidden", "hidden"), (None,), "hidden", (0, "hidden")])
def test_forms_that_do_not_say_where_the_hidden_state_is(returns: Any) -> None:
    with pytest.raises(UserError, match=r"returns=.* does not say which part of a layer's output is the hidden state"):
        rl_skip.attach(_Model(), layers="blocks", returns=returns)


def test_what_the_code_of_a_layer_says_that_it_returns() -> None:
    class Sum(nn.Module):
        def forward(self, hidden: Tensor, more: bool = False) -> tuple[Tensor, ...]:
            outputs = (hidden,)
            if more:
                outputs += (hidden,)
            return outputs

    class Either(nn.Module):
        def forward(self, hidden: Tensor, more: bool = False) -> Any:
            return (hidden, hidden) if more else hidden

    class Inner(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            def pair() -> tuple[Tensor, Tensor]:
                return hidden, hidden

            return pair()[0]

    assert [returned_parts(layer) for layer in (Sum(), Either(), Inner(), nn.Linear(2, 2))] == ["tuple", None, None, None]


@pytest.mark.parametrize("family", ["FalconForCausalLM", "BloomForCausalLM", "CodeGenForCausalLM", "MptForCausalLM", "GPTNeoForCausalLM"])
def test_decoders_whose_layers_return_tuples_generate(family: str) -> None:
    model = build(family)
    inputs = batch(model)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    handle = rl_skip.attach(model)
    with handle.forced(ROUTES):
        generated = model.generate(**inputs, **options)
    handle.detach()
    for b, route in enumerate(ROUTES):
        cut = without_layers(model, handle.path, route.tolist())
        assert generated[b : b + 1].equal(cut.generate(**{name: x[b : b + 1] for name, x in inputs.items()}, **options))


@pytest.mark.parametrize("family", ["BertModel", "FalconForCausalLM", "LlamaForCausalLM", "DebertaV2Model"])
def test_attention_weights_of_rows_that_skip_a_layer_are_zeros(family: str) -> None:
    model = build(family, attn_implementation="eager")
    inputs = batch(model)
    handle = rl_skip.attach(model, layers=FAMILIES[family][0])
    with torch.no_grad():
        with handle.forced(ROUTES):
            attentions = model(**inputs, output_attentions=True).attentions
        with handle.forced(torch.tensor([1, 0, 0, 1])):
            nobody = model(**inputs, output_attentions=True).attentions
        with handle.disabled():
            bare = model(**inputs, output_attentions=True).attentions
        handle.detach()
        assert [weights.shape for weights in attentions] == [weights.shape for weights in nobody] == [weights.shape for weights in bare]
        assert [weights.any().item() for weights in nobody] == [True, False, False, True]
        for b, route in enumerate(ROUTES):
            cut = without_layers(model, handle.path, route.tolist())
            own = iter(cut(**{name: x[b : b + 1] for name, x in inputs.items()}, output_attentions=True).attentions)
            for weights, runs in zip(attentions, route.tolist(), strict=True):
                torch.testing.assert_close(weights[b], next(own)[0] if runs else torch.zeros_like(weights[b]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["MixtralForCausalLM", "Qwen2MoeForCausalLM", "OlmoeForCausalLM"])
def test_router_logits_are_of_all_rows_or_refused(family: str) -> None:
    model = build(family)
    inputs = batch(model)
    labels = inputs["input_ids"]
    bare = model(**inputs, labels=labels, output_router_logits=True)
    handle = rl_skip.attach(model)
    with handle.forced(torch.ones(DEPTH)):
        whole = model(**inputs, labels=labels, output_router_logits=True)
    assert whole.loss.equal(bare.loss) and whole.aux_loss.equal(bare.aux_loss)
    for route in (ROUTES, torch.tensor([1, 0, 1, 1])):
        with handle.forced(route), pytest.raises(UserError, match=r"router_logits are collected .* balances experts .* output_router_logits=False"):
            model(**inputs, labels=labels, output_router_logits=True)
    with handle.forced(ROUTES):
        model(**inputs, labels=labels).loss.backward()
