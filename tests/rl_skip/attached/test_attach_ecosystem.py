"""What people do with a model goes on working with a policy attached: Trainer, pipelines, hooks, copies, files, hidden states."""

import copy
import gc
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rl_skip
from tests.rl_skip.attached.test_attach_policy import make_policy
from tests.rl_skip.huggingface_models import DEPTH, batch, build, pruned

transformers = pytest.importorskip("transformers")
ROUTES = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 0]], dtype=torch.bool)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a"]


def test_the_trainer_trains_the_layers_that_run(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = build("bert")
    rows = [{"input_ids": torch.randint(3, 60, (6,)), "labels": n % 2} for n in range(8)]
    handle = rl_skip.attach(model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    options = {"output_dir": tmp_path, "max_steps": 2, "per_device_train_batch_size": 4, "report_to": [], "disable_tqdm": True, "use_cpu": True}
    trainer = transformers.Trainer(model, transformers.TrainingArguments(**options, save_strategy="no"), train_dataset=rows)
    with handle.forced(torch.tensor([True, False, True, True, False])):
        trainer.train()
    moved = {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}
    assert {int(name.split(".")[3]) for name in moved if "encoder.layer." in name} == {0, 2, 3}


def test_a_pipeline_routes(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    model = build("bert")
    pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    handle = rl_skip.attach(model, make_policy(7))
    handle.price = 0.3
    assert len(pipeline(["a good film", "bad"], batch_size=2)) == 2
    assert handle.last_routes.shape == (2, DEPTH)


def test_saving_and_copying_a_model_leaves_the_policy_out_or_takes_it_along(tmp_path: Path) -> None:
    model = build("bert")
    inputs = batch(model)
    with torch.no_grad():
        bare = model(**inputs).logits
        handle = rl_skip.attach(model, make_policy(7))
        handle.price = 0.3
        routed = model(**inputs).logits
        model.save_pretrained(tmp_path)
        assert type(model).from_pretrained(tmp_path)(**inputs).logits.equal(bare)
        copied = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.zero_()
        assert copied(**inputs).logits.equal(routed)


def test_a_model_is_copied_and_pickled_after_it_was_trained() -> None:
    """What a call leaves behind holds no graph, no cache and no method that a pickle would look up by its name."""
    model = build("bert")
    inputs = batch(model)
    handle = rl_skip.attach(model, make_policy(7))
    handle.price = 0.3
    model.train()(**inputs).logits.sum().backward()
    model.eval()
    with torch.no_grad():
        expected = model(**inputs).logits
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert other(**inputs).logits.equal(expected)
            other.bert.encoder.layer[0].forward.handle.detach()
            with handle.disabled():
                assert other(**inputs).logits.equal(model(**inputs).logits)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache)), "file"])
def test_a_cache_of_rows_on_routes_is_copied_pickled_and_saved(way: Any, tmp_path: Path) -> None:
    model, following = build("llama"), torch.tensor([[5], [6], [7], [8]])
    inputs = batch(model)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(following)], dim=1)
    with rl_skip.attach(model).forced(ROUTES), torch.no_grad():
        cache = model(**inputs).past_key_values
        if way == "file":
            torch.save(cache, tmp_path / "cache.pt")
            other = torch.load(tmp_path / "cache.pt", weights_only=False)
        else:
            other = way(cache)
        expected = model(input_ids=following, attention_mask=mask, past_key_values=cache).logits
        assert other.get_seq_length() == 9 and isinstance(other, transformers.DynamicCache)
        assert model(input_ids=following, attention_mask=mask, past_key_values=other).logits.equal(expected)


def test_nothing_of_a_call_is_kept() -> None:
    model = build("llama")
    rl_skip.attach(model, make_policy(7))
    cache = weakref.ref(model(**batch(model)).past_key_values)
    gc.collect()
    assert cache() is None


def test_threads_call_one_model_at_once() -> None:
    model = build("bert")
    inputs = batch(model)
    rl_skip.attach(model, make_policy(7)).price = 0.3

    def logits(row: int) -> torch.Tensor:
        with torch.no_grad():
            return model(**{name: value[row : row + 1] for name, value in inputs.items()}).logits

    expected = [logits(row) for row in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(logits, [n % 4 for n in range(80)]))
    for n, one in enumerate(found):
        torch.testing.assert_close(one, expected[n % 4])


def test_hidden_states_are_those_of_each_rows_own_route() -> None:
    model = build("bert")
    inputs = batch(model)
    with rl_skip.attach(model).forced(ROUTES), torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == DEPTH + 1
    for i in range(DEPTH):
        stays = ~ROUTES[:, i]
        assert states[i + 1][stays].equal(states[i][stays])
        assert all(not after.equal(before) for after, before in zip(states[i + 1][~stays], states[i][~stays], strict=True))


def test_a_forward_that_somebody_replaced_before_is_called_and_comes_back() -> None:
    model = build("bert")
    layer, calls = model.bert.encoder.layer[2], []
    original = layer.forward

    def watched(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append(args[0].shape[0])
        return original(*args, **kwargs)

    layer.forward = watched
    handle = rl_skip.attach(model)
    with handle.forced(ROUTES), torch.no_grad():
        model(**batch(model))
    assert calls == [int(ROUTES[:, 2].sum())]
    handle.detach()
    assert layer.forward is watched


def test_layers_that_accelerate_hooked_are_routed() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    model = build("bert")
    inputs = batch(model)
    with rl_skip.attach(model).forced(ROUTES), torch.no_grad():
        expected = model(**inputs).logits
    model = build("bert")
    for layer in model.bert.encoder.layer:
        hooks.add_hook_to_module(layer, hooks.AlignDevicesHook("cpu"))
    handle = rl_skip.attach(model)
    with handle.forced(ROUTES), torch.no_grad():
        assert model(**inputs).logits.equal(expected)


@pytest.mark.parametrize(("family", "path"), [("t5", "encoder.block"), ("bart", "model.encoder.layers")])
def test_the_encoder_of_an_encoder_decoder_routes_while_it_generates(family: str, path: str) -> None:
    model = build(family)
    inputs = {name: x for name, x in batch(model).items() if name != "decoder_input_ids"}
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "num_beams": 2, "do_sample": False}
    expected = [
        pruned_model.generate(**{name: x[b : b + 1] for name, x in inputs.items()}, **options)
        for b, pruned_model in enumerate(_pruned_encoders(model, path))
    ]
    bare = model.generate(**inputs, **options)
    with rl_skip.attach(model).forced(ROUTES):
        generated = model.generate(**inputs, **options)
    assert generated.equal(torch.cat(expected))
    assert not generated.equal(bare)


def _pruned_encoders(model: nn.Module, path: str) -> list[nn.Module]:
    """Encoders with layers deleted; the decoders keep the depth that their cache is made for."""
    models = [pruned(model, path, route.tolist()) for route in ROUTES]
    for one in models:
        one.config.num_hidden_layers = DEPTH
    return models
