"""Decisions of an attached policy against a slow loop that takes one row at a time, without padding, layer by layer."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rl_skip
from rl_skip import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.core.dial import PriceTable
from tests.rl_skip.huggingface_models import DEPTH, WIDTH, batch, build, pruned

transformers = pytest.importorskip("transformers")


def make_policy(seed: int = 0, width: int = WIDTH, **options: Any) -> JumpPolicy:
    """Opinions strong enough for rows to part."""
    torch.manual_seed(seed)
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(width, DEPTH), hidden=16, **options)).eval()
    policy.fc_out.weight.data.normal_(std=2.0)
    return policy


def _one_row_at_a_time(model: nn.Module, path: str, policy: JumpPolicy, inputs: dict[str, Tensor], price: float) -> list[list[bool]]:
    """The routes, from the hidden states of the bare model's growing beginnings."""
    routes, rules = [], policy.rules
    for b in range(len(inputs["input_ids"])):
        real = inputs["attention_mask"][b].bool()
        row = {"input_ids": inputs["input_ids"][b : b + 1, real], "attention_mask": torch.ones(1, int(real.sum()), dtype=torch.long)}
        ran = [True, *[False] * (DEPTH - 1)]
        i, compute = 0, 1 / DEPTH
        while i < DEPTH - 1:
            seen: list[Tensor] = []
            shortened = pruned(model, path, ran)
            shortened.get_submodule(path)[-1].register_forward_hook(lambda _module, _args, output, seen=seen: seen.append(output))
            with torch.no_grad():
                shortened(**row)
                if rules.choices[i]:
                    where = torch.tensor([i / DEPTH, compute])
                    price_seen = rules.layout.scale_price(torch.tensor([price]))
                    observation = torch.cat([seen[0][0].mean(dim=0), where, price_seen]).unsqueeze(0)
                    jump = int(policy(observation).argmax())
                else:
                    jump = 0
            compute += 1 / DEPTH + (_decision_share(rules, int(real.sum())) if rules.choices[i] else 0)
            i = min(i + 1 + jump, DEPTH - 1)
            ran[i] = True
        routes.append(ran)
    return routes


def _decision_share(rules: JumpRules, tokens: int) -> float:
    layer = tokens * (4 * 2 * WIDTH * WIDTH + 2 * 2 * WIDTH * 48) + tokens * tokens * 4 * WIDTH
    return rules.decision_flops / (DEPTH * layer)


def test_decisions_equal_those_of_a_slow_loop() -> None:
    model, policy, price = build("bert"), make_policy(7), 0.3
    inputs = batch(model)
    expected = _one_row_at_a_time(model, "bert.encoder.layer", policy, inputs, price)
    assert len({tuple(route) for route in expected}) > 1
    handle = rl_skip.attach(model, policy)
    handle.price = price
    with torch.no_grad():
        logits = model(**inputs).logits
    assert handle.last_routes.tolist() == expected
    with handle.forced(handle.last_routes), torch.no_grad():
        assert model(**inputs).logits.equal(logits)
    with torch.no_grad():
        model(**inputs)
    decisions = torch.tensor(expected)[:, :-2].sum(dim=1)  # after the last layer but one there is nothing left to decide
    shares = torch.tensor([_decision_share(policy.rules, int(mask.sum())) for mask in inputs["attention_mask"]])
    compute = torch.tensor(expected).sum(dim=1) / DEPTH + decisions * shares
    torch.testing.assert_close(handle.last_compute, compute, atol=1e-5, rtol=1e-5)


def test_the_route_of_a_sequence_comes_from_its_prompt_alone() -> None:
    model = build("llama")
    handle = rl_skip.attach(model, make_policy(7))
    handle.price = 0.3
    inputs = batch(model)
    with torch.no_grad():
        model(**inputs)
        prompt_routes = handle.last_routes
        assert len(prompt_routes.unique(dim=0)) > 1
        for beams in (1, 2):
            model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=beams == 1, num_beams=beams, pad_token_id=0)
            assert len(handle.last_routes) == 4 * beams
            assert handle.last_routes.equal(prompt_routes.repeat_interleave(beams, dim=0))
        handle.detach()
        # With the prompt's length known, what follows the prompt changes nothing.
        handle = rl_skip.attach(model, make_policy(7), prompt_tokens=4)
        handle.price = 0.3
        model(**inputs)
        routes = handle.last_routes
        later = inputs["attention_mask"].cumsum(dim=1) > 4
        model(input_ids=torch.where(later, 7, inputs["input_ids"]), attention_mask=inputs["attention_mask"])
        assert handle.last_routes.equal(routes)


def test_the_rows_of_a_cache_keep_their_routes_when_they_move() -> None:
    model = build("llama")
    inputs = batch(model)
    route = torch.tensor([[1, 0, 1, 0, 0], [1, 1, 0, 0, 1], [1, 0, 0, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    following, order = torch.tensor([[5], [6], [7], [8]]), torch.tensor([2, 0, 3, 3])
    handle = rl_skip.attach(model)
    with handle.forced(route), torch.no_grad():
        cache = model(**inputs).past_key_values
        copied = copy.deepcopy(cache)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(following)], dim=1)
        plain = model(input_ids=following, attention_mask=mask, past_key_values=cache).logits
        copied.reorder_cache(order)
        moved = model(input_ids=following[order], attention_mask=mask[order], past_key_values=copied).logits
    assert handle.last_routes.equal(route[order])
    torch.testing.assert_close(moved, plain[order], atol=1e-5, rtol=1e-5)


def test_generation_equals_that_on_the_routes_of_the_prompts() -> None:
    model = build("gpt2")
    inputs = batch(model)
    handle = rl_skip.attach(model, make_policy(7))
    handle.price = 0.3
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    generated, routes = model.generate(**inputs, **options), handle.last_routes
    handle.detach()
    rows = [model_of_row.generate(**{name: x[b : b + 1] for name, x in inputs.items()}, **options)
            for b, model_of_row in enumerate(pruned(model, "transformer.h", route.tolist()) for route in routes)]  # fmt: skip
    assert len(routes.unique(dim=0)) > 1
    assert generated.equal(torch.cat(rows))


@pytest.mark.parametrize(("family", "path"), [("llama", "model.layers"), ("gpt2", "transformer.h")])
def test_layers_that_are_named_route_as_those_that_are_found(family: str, path: str) -> None:
    model, cache = build(family), transformers.DynamicCache()
    inputs = batch(model)
    with torch.no_grad():
        found = rl_skip.attach(model, make_policy(7))
        found.price = 0.3
        expected, routes, compute = model(**inputs).logits, found.last_routes, found.last_compute
        found.detach()
        named = rl_skip.attach(model, make_policy(7), layers=path)
        named.price = 0.3
        assert model(**inputs, past_key_values=cache).logits.equal(expected)
    assert named.last_routes.equal(routes) and named.last_compute.equal(compute)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


def test_counting_the_cost_of_layers_leaves_their_cache_alone() -> None:
    """Where the layers are not those that are found, their cost is counted on the first call."""
    model, cache = build("gpt2"), transformers.DynamicCache()
    model.transformer.parts = nn.ModuleList([model.transformer.h])
    inputs = batch(model)
    handle = rl_skip.attach(model, layers="transformer.parts.0")
    with handle.forced([True, False, True, True, False]), torch.no_grad():
        model(**inputs, past_key_values=cache)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]
    assert handle.last_compute.allclose(torch.tensor(0.6))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_rows_without_a_real_token(family: str) -> None:
    model = build(family)
    inputs = batch(model)
    inputs["attention_mask"][1] = 0
    with torch.no_grad():
        handle = rl_skip.attach(model, make_policy(7))
        handle.price = 0.3
        model(**inputs)
    assert handle.last_compute.isfinite().all()
    others = torch.tensor([0, 2, 3])
    with torch.no_grad():
        alone = model(**{name: value[others] for name, value in inputs.items()}).logits
        torch.testing.assert_close(model(**inputs).logits[others], alone)


def test_the_dial_sets_the_price() -> None:
    model = build("bert")
    handle = rl_skip.attach(model, make_policy())
    handle.table = PriceTable.monotone([(0.01, 0.8, 0.9), (1.0, 0.4, 0.8)])
    handle.budget = 0.6
    assert handle.price == pytest.approx(0.1)
    assert handle.budget == pytest.approx(0.6)
    with pytest.raises(rl_skip.UserError, match="below the smallest compute"):
        handle.budget = 0.3


def test_layers_that_the_model_itself_drops_do_not_stop_a_row() -> None:
    model = build("wav2vec2").train()
    model.config.layerdrop, model.config.apply_spec_augment = 0.5, False
    outputs, routes = [], []
    for attached in (False, True):
        torch.manual_seed(2)
        handle = rl_skip.attach(model) if attached else None
        with torch.no_grad() if handle is None else handle.forced(torch.ones(DEPTH, dtype=torch.bool)):
            outputs.append(model(**batch(model)).logits.detach())
        routes += [] if handle is None else handle.last_routes.tolist()
    assert outputs[1].equal(outputs[0])
    assert any(routes[0]) and not all(routes[0])


def test_a_policy_composes_with_lora() -> None:
    peft = pytest.importorskip("peft")
    model = build("bert")
    inputs = batch(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "value"], init_lora_weights=False)).eval()
    handle = rl_skip.attach(adapted, make_policy())
    handle.price = 0.3
    with torch.no_grad():
        logits, routes = adapted(**inputs).logits, handle.last_routes
        with adapted.disable_adapter():
            assert (adapted(**inputs).logits - logits).abs().max() > 1e-4
        handle.detach()
        merged = adapted.merge_and_unload()
        again = rl_skip.attach(merged)
        with again.forced(routes):
            torch.testing.assert_close(merged(**inputs).logits, logits, atol=1e-5, rtol=1e-5)


def test_bfloat16_models_are_observed_in_single_precision() -> None:
    model, policy = build("bert").bfloat16(), make_policy()
    seen: list[Tensor] = []
    policy.register_forward_hook(lambda _module, args, _output: seen.append(args[0]))
    handle = rl_skip.attach(model, policy)
    handle.price = 0.3
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(**batch(model)).logits.dtype == torch.bfloat16
    assert seen and all(observation.dtype == torch.float32 for observation in seen)
    assert not handle.last_routes.all()


def test_quantised_models_take_a_policy() -> None:
    model = build("bert")
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    route = torch.tensor([True, False, True, False, True])
    inputs = batch(model)
    handle, whole = rl_skip.attach(quantised), rl_skip.attach(model)
    with handle.forced(route), whole.forced(route), torch.no_grad():
        assert (quantised(**inputs).logits - model(**inputs).logits).abs().max() < 0.1
    assert handle.last_routes.equal(route.expand(4, DEPTH))
    assert handle.last_compute.tolist() == pytest.approx([0.6] * 4)
