"""Rows that leave an attached model early, by the readout of their depth, against models cut there by hand."""

import copy
import inspect
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rl_skip
from rl_skip import HuggingFaceStack, JumpPolicy, JumpRules, ObservationLayout, UserError
from rl_skip.core.features import CONFIDENCES
from rl_skip.core.forward import routed_forward
from rl_skip.core.readouts import POOLING_RANK, Readouts
from tests.rl_skip.huggingface_models import DEPTH, ROWS, WIDTH, batch, build, pruned

transformers = pytest.importorskip("transformers")

PRICE = 0.3
LAYERS = {
    "bert": "bert.encoder.layer",
    "modernbert": "model.layers",
    "vit": "vit.layers",
    "wav2vec2": "wav2vec2.encoder.layers",
    "wav2vec2-stable": "wav2vec2.encoder.layers",
    "llama": "model.layers",
    "gpt2": "transformer.h",
}
AFTER = {  # what each model calls after its layers, read from its source
    "bert": ["bert.pooler", "classifier"],
    "modernbert": ["model.final_norm", "head", "classifier"],
    "vit": ["vit.layernorm", "classifier"],
    "wav2vec2": ["projector", "classifier"],
    "wav2vec2-stable": ["wav2vec2.encoder.layer_norm", "projector", "classifier"],
    "llama": ["model.norm", "lm_head"],
    "gpt2": ["transformer.ln_f", "lm_head"],
}
ONE_TOKEN = ("bert", "modernbert", "vit")
"""Whose heads read the first token, read from their source."""
KINDS = ["copies", "adapters"]
POOLING = ("pooling", "attending")
"""Adapters that know the plain mean over the tokens, as runs of before have, and one that has learned where to look."""
PLANS: dict[str, Any] = {
    "copies": None,
    "adapters": {"rank": 3},
    "pooling": {"rank": 3, "pools": True},
    "attending": {"rank": 3, "pools": True, "groups": 2},
}
EXITS = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)
PARTS = [(family, kind) for family in LAYERS for kind in KINDS] + [(family, kind) for family in ONE_TOKEN for kind in POOLING]
parts = pytest.mark.parametrize(("family", "kind"), PARTS)


def with_readouts(family: str, kind: str, seed: int = 0) -> tuple[nn.Module, Readouts, JumpPolicy]:
    """A model, readouts that differ from its head, and a policy that looks at what they answer and has opinions strong enough for rows to part."""
    model = build(family)
    stack = HuggingFaceStack(model)
    readouts = stack.add_readouts(batch(model), plan=PLANS[kind] or {"modules": AFTER[family]})
    torch.manual_seed(5)
    for parameter in readouts.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=1.0 if kind in POOLING else 0.3)
    torch.manual_seed(seed)
    layout = ObservationLayout(WIDTH, DEPTH, features=CONFIDENCES, readout_flops=readouts.flops)
    policy = JumpPolicy(JumpRules.reaching(layout, allow_exit=True, jumps=False, hidden=16)).eval()
    policy.fc_out.weight.data.normal_(std=2.0)
    return model, readouts, policy


def cut(model: nn.Module, family: str, readouts: Readouts, i: int) -> nn.Module:
    """A copy of the model that ends after layer i: layers deleted, and the weights of the readout put where the head's were."""
    short = pruned(model, LAYERS[family], [layer <= i for layer in range(DEPTH)])
    if i == DEPTH - 1:
        return short
    weights = readouts.each[i].state_dict()
    if "norm.weight" in weights:
        norm, down, up = (partial(call, *(weights[f"{name}.{kind}"] for kind in ("weight", "bias"))) for name, call in POOLS)

        def of_mean(out: Tensor) -> Tensor:
            if "score.weight" not in weights:
                return out.mean(dim=1, keepdim=True)
            scores = _linear(weights["score.weight"], weights["score.bias"], norm(out)).exp()  # (1, T, 2)
            each = (scores / scores.sum(dim=1, keepdim=True)).split(1, dim=2)
            return torch.cat([(half * weight).sum(dim=1, keepdim=True) for half, weight in zip(out.chunk(2, dim=2), each, strict=True)], dim=2)
        short.get_submodule(LAYERS[family])[-1].register_forward_hook(lambda _module, _args, out: out + up(down(norm(of_mean(out))).tanh()))
        return short
    if "down.weight" in weights:
        down, up, bias = (weights[name] for name in ("down.weight", "up.weight", "up.bias"))
        short.get_submodule(LAYERS[family])[-1].register_forward_hook(lambda _module, _args, out: out + out @ down.T @ up.T + bias)
        return short
    for name in AFTER[family]:
        mine = {key.split(".", 2)[2]: tensor for key, tensor in weights.items() if key.split(".")[1] == name.replace(".", "/")}
        short.get_submodule(name).load_state_dict(mine)
    return short


def _linear(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return x @ weight.T + bias


def _normed(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * weight + bias


POOLS = [("norm", _normed), ("down", _linear), ("up", _linear)]


def row_of(inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    return {name: x[row : row + 1] for name, x in inputs.items()}


def alone(inputs: dict[str, Tensor], row: int, kind: str) -> dict[str, Tensor]:
    """A row without its padding, which a model that is cut by hand would take into a mean."""
    keep = inputs["attention_mask"][row].bool() if kind in POOLING and "input_ids" in inputs else slice(None)
    return {name: x[row : row + 1, keep] for name, x in inputs.items()}


def real(logits: Tensor, inputs: dict[str, Tensor], family: str) -> Tensor:
    """Without what a language model says of padding."""
    return logits[inputs["attention_mask"].bool()] if family in ("llama", "gpt2") else logits


@pytest.mark.parametrize("family", AFTER)
def test_what_comes_after_the_layers_is_found(family: str) -> None:
    """It is copied, unless it reads the first token alone, which knows little of the others yet after the first layers."""
    model = build(family)
    readouts = HuggingFaceStack(model).add_readouts(batch(model))
    assert len(readouts.each) == DEPTH - 1
    assert readouts.plan == ({"rank": POOLING_RANK, "pools": True, "groups": 1} if family in ONE_TOKEN else {"modules": AFTER[family]})


@parts
def test_a_row_that_leaves_gets_what_the_cut_model_says(family: str, kind: str) -> None:
    model, readouts, policy = with_readouts(family, kind)
    inputs = batch(model)
    cuts = [cut(model, family, readouts, i) for i in range(DEPTH)]
    with torch.no_grad():
        expected = torch.cat([cuts[int(EXITS[row].sum()) - 1](**alone(inputs, row, kind)).logits for row in range(ROWS)])
        bare = model(**inputs).logits
        handle = rl_skip.attach(model, policy, readouts=readouts)
        with handle.forced(EXITS):
            outputs = model(**inputs)
        assert type(outputs) is type(cuts[0](**inputs))
        torch.testing.assert_close(real(outputs.logits, inputs, family), real(expected, inputs, family), atol=1e-5, rtol=1e-5)
        for row, left in enumerate((EXITS.sum(dim=1) < DEPTH).tolist()):
            answered, before = (logits[row, -1] if logits.dim() == 3 else logits[row] for logits in (outputs.logits, bare))
            assert torch.allclose(answered, before, atol=1e-3) != left
        with handle.forced(torch.ones(DEPTH).bool()):
            assert model(**inputs).logits.equal(bare)
        with handle.disabled():
            assert model(**inputs).logits.equal(bare)
        handle.detach()
        assert model(**inputs).logits.equal(bare)
    assert not any("forward" in vars(part) for part in model.modules())


@parts
def test_the_policy_sees_and_spends_what_it_does_in_a_routed_forward(family: str, kind: str) -> None:
    rows_left = set()
    for seed in range(3):
        model, readouts, policy = with_readouts(family, kind, seed)
        inputs = batch(model)
        stack = HuggingFaceStack(model)
        stack.readouts = readouts
        with torch.no_grad():
            rollout = routed_forward(stack, policy, inputs, price=PRICE)
            handle = rl_skip.attach(model, policy, readouts=readouts)
            handle.price = PRICE
            logits = model(**inputs).logits
        assert handle.last_routes.equal(rollout.route)
        torch.testing.assert_close(handle.last_compute, rollout.compute)
        torch.testing.assert_close(real(logits, inputs, family), real(rollout.outputs, inputs, family), atol=1e-5, rtol=1e-5)
        rows_left |= set(rollout.route.sum(dim=1).tolist())
    assert len(rows_left) > 1


@pytest.mark.parametrize(("family", "kind"), [part for part in PARTS if part[0] in ("bert", "modernbert", "llama", "gpt2")])
def test_a_look_is_at_what_the_cut_model_says_of_the_row_alone(family: str, kind: str) -> None:
    """Of a language model: of the token that follows the prompt."""
    model, readouts, policy = with_readouts(family, kind)
    inputs, seen = batch(model), []
    policy.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    policy.fc_out.bias.data[0] = 1e4  # goes on
    handle = rl_skip.attach(model, policy, readouts=readouts)
    with torch.no_grad():
        model(**inputs)
    handle.detach()
    assert len(seen) == DEPTH - 1
    for i, observation in enumerate(seen):
        short = cut(model, family, readouts, i)
        for row in range(ROWS):
            keep = inputs["attention_mask"][row].bool() if family != "gpt2" else slice(None)  # which counts padding in its positions
            with torch.no_grad():
                logits = short(**{name: x[row : row + 1, keep] for name, x in inputs.items()}).logits[0]
            p = (logits[-1] if logits.dim() == 2 else logits).softmax(dim=0)
            largest = p.sort(descending=True).values
            entropy = -(p * p.log()).sum() / torch.tensor(float(len(p))).log()
            torch.testing.assert_close(observation[row, [0, 2, 4]], torch.stack([entropy, largest[0], largest[0] - largest[1]]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family in ("llama", "gpt2") for kind in KINDS])
def test_each_sequence_generates_what_the_cut_model_does(family: str, kind: str, beams: int) -> None:
    model, readouts, policy = with_readouts(family, kind)
    inputs = batch(model)
    settings: dict[str, Any] = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False, "num_beams": beams, "pad_token_id": 0}
    expected = [cut(model, family, readouts, int(EXITS[row].sum()) - 1).generate(**row_of(inputs, row), **settings) for row in range(ROWS)]
    bare = model.generate(**inputs, **settings)
    handle = rl_skip.attach(model, policy, readouts=readouts)
    with handle.forced(EXITS.repeat_interleave(beams, dim=0)):
        generated = model.generate(**inputs, **settings)
    assert generated.equal(torch.cat(expected))
    assert [row.equal(whole) for row, whole in zip(generated, bare, strict=True)] == [False, True, False, False]
    handle.price = PRICE
    chosen = model.generate(**inputs, **settings)
    routes = handle.last_routes[::beams]
    handle.detach()
    own = [cut(model, family, readouts, int(routes[row].sum()) - 1).generate(**row_of(inputs, row), **settings) for row in range(ROWS)]
    assert chosen.equal(torch.cat(own))
    assert model.generate(**inputs, **settings).equal(bare)


@parts
def test_a_saved_policy_brings_its_readouts_along(family: str, kind: str, tmp_path: Path) -> None:
    model, readouts, policy = with_readouts(family, kind)
    inputs = batch(model)
    with torch.no_grad():
        handle = rl_skip.attach(model, policy, readouts=readouts)
        handle.price = PRICE
        expected, routes = model(**inputs).logits, handle.last_routes
        handle.save_pretrained(tmp_path / "policy")
        handle.detach()
        assert (tmp_path / "policy" / "readouts.safetensors").is_file()
        assert sum(file.stat().st_size for file in (tmp_path / "policy").iterdir()) < 300_000
        again = rl_skip.attach(model, tmp_path / "policy")
        torch.testing.assert_close(model(**inputs).logits, expected)
        assert again.last_routes.equal(routes)
        again.detach()
        loaded = rl_skip.load(tmp_path / "policy", HuggingFaceStack(model))
        torch.testing.assert_close(real(loaded(inputs), inputs, family), real(expected, inputs, family), atol=1e-5, rtol=1e-5)
    (tmp_path / "policy" / "readouts.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no readouts\.safetensors"):
        rl_skip.attach(model, tmp_path / "policy")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_copies_pickles_and_files_of_the_model(family: str, kind: str, tmp_path: Path) -> None:
    model, readouts, policy = with_readouts(family, kind)
    inputs = batch(model)
    with torch.no_grad():
        bare = model(**inputs).logits
        names = list(model.state_dict())
        handle = rl_skip.attach(model, policy, readouts=readouts)
        handle.price = PRICE
        expected, routes = model(**inputs).logits, handle.last_routes
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(handle).model]
        assert list(model.state_dict()) == names
        model.save_pretrained(tmp_path)
        assert type(model).from_pretrained(tmp_path)(**inputs).logits.equal(bare)
        for parameter in (*model.parameters(), *handle.stack.readouts.parameters(), *policy.parameters()):
            parameter.zero_()
        for other in copies:
            assert other(**inputs).logits.equal(expected)
            assert other.forward.handle.last_routes.equal(routes) and not routes.all()
            other.forward.handle.detach()
            assert other(**inputs).logits.equal(bare)


@parts
def test_adapters_in_the_layers_are_merged_under_the_policy(family: str, kind: str) -> None:
    peft = pytest.importorskip("peft")
    targets = {"bert": "query", "modernbert": "Wqkv", "vit": "q_proj", "llama": "q_proj", "gpt2": "c_attn"}.get(family, "q_proj")
    model, readouts, policy = with_readouts(family, kind)
    inputs = batch(model)
    handle = rl_skip.attach(model, policy, readouts=readouts)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=[targets], r=2, init_lora_weights=False))
    with torch.no_grad(), handle.forced(EXITS):
        expected = adapted(**inputs).logits
        merged = adapted.merge_and_unload()
        assert merged is model
        torch.testing.assert_close(merged(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
        handle_free = {row: cut(detached(model), family, readouts, int(EXITS[row].sum()) - 1) for row in range(ROWS)}
        by_hand = torch.cat([handle_free[row](**alone(inputs, row, kind)).logits for row in range(ROWS)])
        torch.testing.assert_close(real(merged(**inputs).logits, inputs, family), real(by_hand, inputs, family), atol=1e-5, rtol=1e-5)


def detached(model: nn.Module) -> nn.Module:
    """A copy without its policy."""
    other = copy.deepcopy(model)
    other.forward.handle.detach()
    return other


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_hidden_states_are_of_the_rows_own_exits(kind: str) -> None:
    model, readouts, policy = with_readouts("bert", kind)
    inputs, labels = batch(model), torch.tensor([0, 1, 1, 0])
    handle = rl_skip.attach(model, policy, readouts=readouts)
    handle.price = PRICE
    with torch.no_grad():
        outputs = model(**inputs, labels=labels, output_hidden_states=True)
    torch.testing.assert_close(outputs.loss, nn.functional.cross_entropy(outputs.logits, labels))
    assert len(outputs.hidden_states) == DEPTH + 1, "looks at what the model would answer leave no states behind"
    for i in range(DEPTH - 1):
        stays = ~handle.last_routes[:, i]
        assert outputs.hidden_states[i + 1][stays].equal(outputs.hidden_states[i][stays])


def test_threads_call_one_model_at_once() -> None:
    model, readouts, policy = with_readouts("bert", "copies")
    inputs = batch(model)
    rl_skip.attach(model, policy, readouts=readouts).price = PRICE

    def logits(row: int) -> Tensor:
        with torch.no_grad():
            return model(**row_of(inputs, row)).logits

    expected = [logits(row) for row in range(ROWS)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(logits, [n % ROWS for n in range(40)]))
    for n, one in enumerate(found):
        torch.testing.assert_close(one, expected[n % ROWS])


def test_what_is_in_front_of_the_layers_runs_once() -> None:
    model, readouts, policy = with_readouts("wav2vec2", "copies")
    calls: list[Tensor] = []
    model.wav2vec2.feature_extractor.conv_layers[0].conv.register_forward_hook(lambda _module, _args, output: calls.append(output))
    inputs = batch(model)
    stack = HuggingFaceStack(model)
    stack.readouts = readouts
    with torch.no_grad():
        routed_forward(stack, policy, inputs, price=PRICE)
        assert len(calls) == 1
        rl_skip.attach(model, policy, readouts=readouts)
        model(**inputs)
    assert len(calls) == 2


def test_operations_of_a_readout() -> None:
    vocabulary, rank = 60, 3
    _, copies, _ = with_readouts("llama", "copies")
    _, adapters, _ = with_readouts("llama", "adapters")
    assert copies.flops == 2 * WIDTH * vocabulary and adapters.flops == 2 * WIDTH * vocabulary + 2 * 2 * WIDTH * rank  # of one token
    model, readouts, policy = with_readouts("llama", "adapters")
    inputs, layer = batch(model), HuggingFaceStack(model).flops
    handle = rl_skip.attach(model, policy, readouts=readouts)
    with torch.no_grad(), handle.forced(EXITS):
        model(**inputs)
    for row, tokens in enumerate(inputs["attention_mask"].sum(dim=1)):
        full = float(layer.of(tokens.view(1)).sum())
        ran = int(EXITS[row].sum())
        expected = ran / DEPTH + (float(tokens) * adapters.flops / full if ran < DEPTH else 0.0)
        assert float(handle.last_compute[row]) == pytest.approx(expected, rel=1e-5)


def test_a_head_that_is_too_large_or_not_its_own_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    assert HuggingFaceStack(_tied()).plan_readouts(batch(_tied())).keys() == {"rank"}
    model = build("wav2vec2")
    copied = sum(p.numel() for name in AFTER["wav2vec2"] for p in model.get_submodule(name).parameters())
    monkeypatch.setattr("rl_skip.core.readouts.LARGEST", 4 * copied - 1)
    assert HuggingFaceStack(model).plan_readouts(batch(model)).keys() == {"rank"}
    monkeypatch.setattr("rl_skip.core.readouts.LARGEST", 4 * copied)
    assert HuggingFaceStack(model).plan_readouts(batch(model)).keys() == {"modules"}


def _tied() -> nn.Module:
    config = transformers.LlamaConfig(**build("llama").config.to_dict() | {"tie_word_embeddings": True})
    return transformers.LlamaForCausalLM(config).eval()


def test_what_cannot_be_answered_is_refused_in_one_line(tmp_path: Path) -> None:
    model, readouts, policy = with_readouts("bert", "copies")
    inputs = batch(model)
    with pytest.raises(UserError, match=r"trained with readouts, which are not here: attach\(model, policy, readouts="):
        rl_skip.attach(model, policy)
    handle = rl_skip.attach(model, policy, readouts=readouts)
    with pytest.raises(UserError, match="looks at what BertForSequenceClassification would answer: call it, and not a part of it"):
        model.bert(**inputs)
    model.classifier = nn.Linear(WIDTH, 2)
    with pytest.raises(UserError, match=r"classifier was replaced after the policy was attached: detach\(\) first"):
        model(**inputs)
    handle.save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match="model_class is BertForSequenceClassification"):
        rl_skip.attach(build("electra"), tmp_path / "policy")

def test_an_encoder_that_rows_leave_early_hands_its_decoder_what_their_adapters_make_of_it() -> None:
    model = build("t5")
    stack = HuggingFaceStack(model)
    readouts = stack.add_readouts(batch(model))
    assert readouts.plan == {"rank": 16}, "what comes after an encoder is a whole decoder"
    for parameter in readouts.parameters():
        nn.init.normal_(parameter, std=0.3)
    inputs = {name: x for name, x in batch(model).items() if name != "decoder_input_ids"}
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    expected = []
    for row in range(ROWS):
        short, left = copy.deepcopy(model), int(EXITS[row].sum()) - 1
        layers = short.encoder.block
        del layers[left + 1 :]
        if left < DEPTH - 1:
            layers[left].register_forward_hook(partial(_adapted, readouts.each[left].state_dict()))
        expected.append(short.generate(**row_of(inputs, row), **settings))
    handle = rl_skip.attach(model, readouts=readouts)
    with handle.forced(EXITS):
        generated = model.generate(**inputs, **settings)
    assert generated.equal(torch.cat(expected))
    handle.detach()
    assert not generated.equal(model.generate(**inputs, **settings))


def _adapted(weights: dict[str, Tensor], _module: nn.Module, _args: Any, out: tuple[Any, ...]) -> tuple[Any, ...]:
    return (out[0] + out[0] @ weights["down.weight"].T @ weights["up.weight"].T + weights["up.bias"], *out[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_and_autocast(kind: str) -> None:
    model, readouts, policy = with_readouts("bert", kind)
    inputs = batch(model)
    handle = rl_skip.attach(model, policy, readouts=readouts)
    with torch.no_grad(), handle.forced(EXITS):
        expected = model(**inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(**inputs).logits.float(), expected, atol=0.1, rtol=0.1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(**inputs).logits.shape == expected.shape
    with torch.no_grad(), handle.forced(EXITS):
        torch.testing.assert_close(model.bfloat16()(**inputs).logits.float(), expected, atol=0.1, rtol=0.1)
    assert all(parameter.dtype is torch.float32 for parameter in readouts.parameters()), "those that were given stay as they are"
    with torch.no_grad():
        assert model(**inputs).logits.dtype is torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_a_policy_is_taken_up_on_a_model_with_adapters_in_its_layers(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, readouts, policy = with_readouts("bert", kind)
    inputs = batch(model)
    with torch.no_grad():
        handle = rl_skip.attach(model, policy, readouts=readouts)
        handle.price = PRICE
        expected = model(**inputs).logits
        handle.save_pretrained(tmp_path / "policy")
        handle.detach()
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"]))  # which begins as the model that it adapts
        again = rl_skip.attach(adapted, tmp_path / "policy")
        torch.testing.assert_close(adapted(**inputs).logits, expected)
        again.save_pretrained(tmp_path / "again")
        again.detach()
        merged = adapted.merge_and_unload()
        rl_skip.attach(merged, tmp_path / "again")
        torch.testing.assert_close(merged(**inputs).logits, expected)


def test_a_model_is_called_as_before() -> None:
    model, readouts, policy = with_readouts("bert", "copies")
    before = inspect.signature(model.forward)
    rl_skip.attach(model, policy, readouts=readouts)
    assert inspect.signature(model.forward) == before
    returned = model(**batch(model), return_dict=False)
    assert isinstance(returned, tuple) and returned[0].shape == (ROWS, 2)


def test_a_backbone_that_was_given_a_head_has_no_logits_to_answer_with(tmp_path: Path) -> None:
    model, policy = build("bert").bert, with_readouts("bert", "copies")[2]
    stack = HuggingFaceStack(model, head=nn.Linear(WIDTH, 2))
    readouts = stack.add_readouts(batch(model))
    assert readouts.plan == {} and readouts.flops == 2 * WIDTH * 2
    layout = ObservationLayout(WIDTH, DEPTH, features=CONFIDENCES, readout_flops=readouts.flops)
    policy = JumpPolicy(JumpRules.reaching(layout, allow_exit=True, jumps=False))
    rl_skip.save(tmp_path / "policy", policy, stack=stack, weights=False, price=PRICE)
    for attached in (tmp_path / "policy", policy):
        with pytest.raises(UserError, match=r"copies of a head that is not the model's own .*: rl_skip\.load\(") as refused:
            rl_skip.attach(model, attached, readouts=readouts if attached is policy else None)
        assert "\n" not in str(refused.value)
    assert not any("forward" in vars(part) for part in model.modules())
    loaded = rl_skip.load(tmp_path / "policy", HuggingFaceStack(model, head=stack.head))
    assert loaded(batch(model)).shape == (ROWS, 2)
