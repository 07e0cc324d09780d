"""What cannot work is refused in one line that names the thing and the way out."""

import pytest
import torch
from torch import nn

import rl_skip
from rl_skip import UserError
from tests.rl_skip.huggingface_models import DEPTH, VISION, batch, build
from tests.rl_skip.test_attach_policy import make_policy

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
    mpnet = transformers.MPNetModel(transformers.MPNetConfig(**{**VISION, "vocab_size": 60}))
    with pytest.raises(UserError, match=r"no list of 5 layers was found in MPNetModel; its lists are: encoder.layer \(5\)"):
        rl_skip.attach(mpnet)


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
    handle = rl_skip.attach(OfPairs(), make_policy(), layers="blocks")
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


def test_a_layer_that_returns_an_unknown_tuple() -> None:
    model = OfPairs()
    with rl_skip.attach(model, layers="blocks").forced(ROUTE), pytest.raises(UserError, match=r"Pair returns a tuple whose parts are not known"):
        model(torch.zeros(4, 3, 8))


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
    for route, sentence in ((ROUTE[:, :4], r"must have shape \(5,\) or \(4, 5\)"), (~ROUTE, "layer 0 always runs")):
        with handle.forced(route), pytest.raises(ValueError, match=sentence):
            model(**batch(model))


def test_one_module_that_is_several_layers_and_rows_that_come_second() -> None:
    layer = nn.Linear(8, 8)
    with pytest.raises(UserError, match="holds one module more than once"):
        rl_skip.attach(nn.Sequential(nn.Sequential(layer, layer, layer)), layers="0")
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 3, enable_nested_tensor=False)
    with pytest.raises(UserError, match="batch_first=True"):
        rl_skip.attach(encoder, layers="layers")
