"""What cannot work is refused in one line that names the thing and the way out."""

import pytest
import torch
from torch import nn

import rl_skip
from rl_skip import UserError
from tests.rl_skip.attached.test_attach_policy import make_policy
from tests.rl_skip.huggingface_models import DEPTH, VISION, batch, build

transformers = pytest.importorskip("transformers")
ROUTE = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 0]], dtype=torch.bool)


class Pair(nn.Module):
    """A layer that returns something beside its hidden state."""

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden, hidden


class OfPairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Pair() for _ in range(DEPTH))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden = block(hidden)[0]
        return hidden


def test_layers_that_are_not_found() -> None:
    with pytest.raises(UserError, match=r"OfPairs has no configuration to find its layers by; name their path"):
        rl_skip.attach(OfPairs())
    with pytest.raises(UserError, match=r"OfPairs has nothing at 'layers'; its lists of modules are: blocks"):
        rl_skip.attach(OfPairs(), layers="layers")
    with pytest.raises(UserError, match=r"'blocks.0' is a Pair, expected a ModuleList or Sequential"):
        rl_skip.attach(OfPairs(), layers="blocks.0")
    squeezed = transformers.SqueezeBertModel(transformers.SqueezeBertConfig(**{**VISION, "embedding_size": 32, "vocab_size": 60}))
    with pytest.raises(UserError, match=r"no list of 5 layers was found in SqueezeBertModel; its lists are: encoder.layers \(5\)"):
        rl_skip.attach(squeezed)
    with pytest.raises(UserError, match=r"SqueezeBertModule returns a dict, expected its hidden state, or a tuple with it"):
        rl_skip.attach(squeezed, layers="encoder.layers")


def test_two_candidates() -> None:
    bert = transformers.BertConfig(hidden_size=32, num_hidden_layers=DEPTH, num_attention_heads=4, intermediate_size=48, vocab_size=60)
    both = transformers.EncoderDecoderModel(transformers.EncoderDecoderConfig.from_encoder_decoder_configs(bert, bert))
    both.config.num_hidden_layers = DEPTH
    with pytest.raises(UserError, match=r"has 2 lists of 5 layers: encoder.encoder.layer, decoder.bert.encoder.layer; name one"):
        rl_skip.attach(both)
    rl_skip.attach(both, layers="encoder.encoder.layer").detach()


@pytest.mark.parametrize(("kind", "sentence"), [("Albert", "no list of layers to skip"), ("Swin", "shrinks from stage to stage")])
def test_families_that_cannot_skip(kind: str, sentence: str) -> None:
    small = {"hidden_size": 32, "embedding_size": 16, "num_attention_heads": 4} if kind == "Albert" else {"embed_dim": 8, "num_heads": [1, 2, 2, 4]}
    with pytest.raises(UserError, match=sentence):
        rl_skip.attach(getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**small)))


def test_a_policy_of_another_width_or_depth() -> None:
    with pytest.raises(UserError, match=r"the policy's width is 16, that of bert.encoder.layer is 32"):
        rl_skip.attach(build("bert"), make_policy(width=16))
    model = build("bert")
    model.bert.encoder.layer = model.bert.encoder.layer[:4]
    with pytest.raises(UserError, match=r"the policy's depth is 5, that of bert.encoder.layer is 4"):
        rl_skip.attach(model, make_policy(), layers="bert.encoder.layer")
    handle = rl_skip.attach(OfPairs(), make_policy(), layers="blocks", returns=("hidden", None))
    with pytest.raises(UserError, match=r"width 32, that of blocks has 8"):
        handle.model(torch.zeros(2, 3, 8))


def test_a_model_that_is_attached_already() -> None:
    model = build("bert")
    handle = rl_skip.attach(model)
    with pytest.raises(UserError, match=r"bert.encoder.layer is attached already; call detach\(\)"):
        rl_skip.attach(model)
    handle.detach()
    rl_skip.attach(model)


def test_a_forward_that_was_replaced_after_attaching_is_not_lost() -> None:
    model = build("bert")
    handle = rl_skip.attach(model)
    model.bert.encoder.layer[2].forward = lambda *args, **kwargs: args[0]
    with pytest.raises(UserError, match=r"the forward of layer 2 was replaced after"):
        handle.detach()


class _Unreadable(Pair):
    """Layers whose code is not to be had tell what they return when they are called."""

    def forward(self, *args: torch.Tensor) -> object:  # noqa: D102
        return super().forward(*args)


@pytest.mark.parametrize("kind", [Pair, _Unreadable])
def test_a_layer_that_returns_an_unknown_tuple(kind: type[nn.Module]) -> None:
    model = OfPairs()
    model.blocks = nn.ModuleList(kind() for _ in range(DEPTH))
    with pytest.raises(UserError, match=r'returns a tuple whose parts are not known: .* attach\(…, returns=\("hidden", None\)\)'):
        with rl_skip.attach(model, layers="blocks").forced(ROUTE):
            model(torch.zeros(4, 3, 8))
        assert kind is not Pair


def test_caches_without_rows_to_leave_out() -> None:
    model = build("llama")
    inputs = batch(model)
    handle = rl_skip.attach(model)
    filled = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(**inputs, past_key_values=filled)
    with handle.forced(ROUTE):
        with pytest.raises(UserError, match=r"a StaticCache has no rows that some layers may leave out: use a DynamicCache"):
            model.generate(**inputs, max_new_tokens=4, cache_implementation="static", pad_token_id=0)
        with pytest.raises(UserError, match=r"the cache was filled while no policy was attached"):
            model(input_ids=inputs["input_ids"][:, :1], past_key_values=filled)


def test_routes_that_cannot_be() -> None:
    model = build("bert")
    handle = rl_skip.attach(model)
    with pytest.raises(UserError, match="no call was routed yet"):
        _ = handle.last_routes
    for route, sentence in (
        (ROUTE[:, :4], r"has shape \(5,\) or \(rows, 5\), got \(4, 4\)"),
        (~ROUTE, "layer 0 always runs"),
        ([1, 2, 2, 0, 1], "of True and False"),
    ):
        with pytest.raises(UserError, match=sentence), handle.forced(route):
            pass
    with handle.forced(ROUTE[:2]), pytest.raises(ValueError, match=r"must have shape \(5,\) or \(4, 5\)"):
        model(**batch(model))
    with handle.forced([True, False, True, False, False]), torch.no_grad():
        model(**batch(model))
    assert handle.last_routes[3].tolist() == [True, False, True, False, False]


def test_copies_of_the_layers_on_another_device() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Sequential(*(nn.Linear(8, 8) for _ in range(DEPTH))))
    with rl_skip.attach(model, layers="1").forced(ROUTE[0]), pytest.raises(UserError, match=r"on cpu and were called on meta: .* nn.DataParallel"):
        model[1][0](torch.zeros(2, 8, device="meta"))


def test_detaching_twice() -> None:
    handle = rl_skip.attach(build("bert"))
    handle.detach()
    with pytest.raises(UserError, match="was detached from bert.encoder.layer already"):
        handle.detach()


def test_a_cache_goes_on_as_it_was_begun() -> None:
    """What was read while rows skipped layers is of no use to the bare model, or on another route."""
    model, following = build("llama"), torch.tensor([[5], [6], [7], [8]])
    inputs = batch(model)
    handle = rl_skip.attach(model)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(following)], dim=1)
    with torch.no_grad():
        with handle.forced(ROUTE):
            cache = model(**inputs).past_key_values
        with handle.disabled(), pytest.raises(UserError, match="filled while rows skipped layers"):
            model(input_ids=following, attention_mask=mask, past_key_values=cache)
        with handle.forced(ROUTE[1]), pytest.raises(UserError, match="filled on another route"):
            model(input_ids=following, attention_mask=mask, past_key_values=cache)
        with handle.forced(torch.ones(DEPTH)):
            whole = model(**inputs).past_key_values
        with handle.disabled():
            model(input_ids=following, attention_mask=mask, past_key_values=whole)


@pytest.mark.parametrize("beams", [1, 2])
def test_caches_of_other_kinds_of_attention(beams: int) -> None:
    """The state that linear attention keeps is one for all tokens: such a cache stays empty, and nothing goes on from it."""
    options = {"hidden_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    kinds = ["conv", "full_attention", "conv", "full_attention", "conv"]
    config = transformers.Lfm2Config(vocab_size=60, pad_token_id=0, bos_token_id=1, eos_token_id=2, layer_types=kinds, **options)
    model = transformers.Lfm2ForCausalLM(config).eval()
    inputs = batch(build("llama"))
    handle = rl_skip.attach(model)
    with handle.forced(ROUTE.repeat_interleave(beams, dim=0)):
        with pytest.raises(UserError, match="has no rows that some layers may leave out: use use_cache=False"):
            model.generate(**inputs, max_new_tokens=3, num_beams=beams)
        model.generate(**inputs, max_new_tokens=3, num_beams=beams, use_cache=False)
    with torch.no_grad():
        with handle.forced(ROUTE):
            outputs = model(**inputs)
            assert outputs.logits.equal(model(**inputs, use_cache=False).logits)
        mask = torch.cat([inputs["attention_mask"], torch.ones(4, 1, dtype=torch.long)], dim=1)
        with handle.disabled(), pytest.raises(UserError, match="stayed empty while a policy was attached"):
            model(input_ids=torch.ones(4, 1, dtype=torch.long), attention_mask=mask, past_key_values=outputs.past_key_values)


def test_layers_that_cost_nothing_or_change_the_shape() -> None:
    for layers, sentence in (
        (nn.Sequential(*(nn.LayerNorm(8) for _ in range(5))), "there is no matrix product in them"),
        (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), r"layer 0 makes \(1, 16\) of \(1, 8\)"),
    ):
        model = nn.Sequential(nn.Linear(3, 8), layers)
        with rl_skip.attach(model, layers="1").forced([True] * len(layers)), pytest.raises(UserError, match=sentence):
            model(torch.zeros(2, 3))


def test_one_module_that_is_several_layers_and_rows_that_come_second() -> None:
    layer = nn.Linear(8, 8)
    with pytest.raises(UserError, match="holds one module more than once"):
        rl_skip.attach(nn.Sequential(nn.Sequential(layer, layer, layer)), layers="0")
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 3, enable_nested_tensor=False)
    with pytest.raises(UserError, match="batch_first=True"):
        rl_skip.attach(encoder, layers="layers")


def test_the_causes_of_a_cache_without_a_route_are_told_apart() -> None:
    peft = pytest.importorskip("peft")
    model, following = build("llama"), torch.tensor([[5], [6], [7], [8]])
    inputs = batch(model)
    with torch.no_grad():
        prefixed = peft.get_peft_model(build("llama"), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
        with rl_skip.attach(prefixed).forced(ROUTE), pytest.raises(UserError, match=r"prefix tuning fills the cache .* such as LoRA"):
            prefixed(**inputs)

        handle = rl_skip.attach(model)
        cut, model.model.layers = model.model.layers, model.model.layers[:3]
        with handle.forced(ROUTE), pytest.raises(UserError, match=r"model.layers has 3 layers, and had 5 when .* detach\(\) first"):
            model(**inputs)
        model.model.layers = nn.ModuleList([*cut[:4], build("llama").model.layers[4]])
        with handle.forced(ROUTE), pytest.raises(UserError, match="layer 4 of model.layers was replaced"):
            model(**inputs)
        model.model.layers = cut

        one = {name: x[:1] for name, x in inputs.items()}
        with handle.forced(ROUTE[0]), pytest.raises(UserError, match=r"ends after 2 of its 5 layers by itself .* without an early exit"):
            model.generate(**one, max_new_tokens=4, assistant_early_exit=2, pad_token_id=0)
        model.config.num_hidden_layers = DEPTH  # which transformers leaves as it was for the early exit
        cache = transformers.DynamicCache(config=model.config)
        failing = model.model.layers[3].register_forward_pre_hook(lambda *_: 1 / 0)
        with handle.forced(ROUTE), pytest.raises(ZeroDivisionError):
            model(**inputs, past_key_values=cache)
        failing.remove()
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(following)], dim=1)
        with handle.forced(ROUTE), pytest.raises(UserError, match=r"the last call of the model ended after layer 2 of 5"):
            model(input_ids=following, attention_mask=mask, past_key_values=cache)


def test_layers_that_were_wrapped_after_attaching_are_the_same_layers() -> None:
    class Wrapped(nn.Module):
        def __init__(self, inside: nn.Module) -> None:
            super().__init__()
            self.inside = inside

        def forward(self, *args: object, **kwargs: object) -> object:
            return self.inside(*args, **kwargs)

    model = build("bert")
    inputs = batch(model)
    with rl_skip.attach(model).forced(ROUTE), torch.no_grad():
        expected = model(**inputs).logits
        model.bert.encoder.layer = nn.ModuleList(Wrapped(layer) for layer in model.bert.encoder.layer)
        assert model(**inputs).logits.equal(expected)
