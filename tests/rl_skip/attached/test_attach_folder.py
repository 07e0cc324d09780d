"""A saved policy: what is written, what is taken up again, and which models are refused by which field."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rl_skip
from rl_skip import JumpPolicy, JumpRules, ObservationLayout, UserError
from rl_skip.core.dial import PriceTable
from tests.rl_skip.attached.test_attach_policy import make_policy
from tests.rl_skip.huggingface_models import batch, build

transformers = pytest.importorskip("transformers")
TABLE = [(0.01, 0.8, 0.9), (1.0, 0.4, 0.8)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = build("bert")
    model.config._name_or_path, model.config._commit_hash = "somebody/small-bert", "c0ffee"
    handle = rl_skip.attach(model, make_policy(7))
    handle.table, handle.trained_on = PriceTable.monotone(TABLE), {"task": "sentences", "rows": 1000}
    handle.budget = 0.6
    handle.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def _routes(model: nn.Module, folder: Path) -> torch.Tensor:
    """What the policy in the folder decides on a batch."""
    handle = rl_skip.attach(model, folder)
    with torch.no_grad():
        model(**batch(build("bert")))
    return handle.last_routes


def test_a_saved_policy_decides_as_before(folder: Path) -> None:
    model = build("bert")
    inputs = batch(model)
    before = rl_skip.attach(model, make_policy(7))
    before.price = 0.1
    with torch.no_grad():
        model(**inputs)
        before.detach()
        after = rl_skip.attach(model, folder)
        model(**inputs)
    assert after.price == pytest.approx(0.1) and after.budget == pytest.approx(0.6)
    assert after.last_routes.equal(before.last_routes)
    assert after.trained_on == {"task": "sentences", "rows": 1000}


def test_the_files(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "SHA256SUMS", "policy.json", "policy.safetensors"]
    described = json.loads((folder / "policy.json").read_text())
    network = described["network"]
    assert (described["depth"], described["width"]) == (5, 32)
    assert (network["model_class"], network["base_model"], network["revision"]) == ("BertForSequenceClassification", "somebody/small-bert", "c0ffee")
    assert (network["layers"], len(network["config_hash"])) == ("bert.encoder.layer", 16)
    card = (folder / "README.md").read_text()
    for expected in ("somebody/small-bert, revision c0ffee", "rl_skip.attach(model, ", "| 1 | 0.400 | 0.8000 |", "- task: sentences"):
        assert expected in card


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("model_class", lambda: build("electra")),
        ("config.hidden_act", lambda: _bert(hidden_act="relu")),
        ("depth", lambda: _bert(num_hidden_layers=4)),
        ("width", lambda: _bert(hidden_size=16)),
        ("base_model", lambda: _named("somebody/other-bert", None)),
        ("revision", lambda: _named("somebody/small-bert", "decaf")),
    ],
)
def test_another_model_is_refused_by_the_field_that_differs(folder: Path, field: str, other) -> None:
    with pytest.raises(UserError, match=rf"{field} is "):
        rl_skip.attach(other(), folder)


def test_a_model_that_moved_or_serves_another_task_is_not_another_model(folder: Path) -> None:
    expected = _routes(build("bert"), folder)
    assert _routes(_named("/somewhere/else/small-bert", None), folder).shape == expected.shape
    assert _routes(_bert(num_labels=7), folder).shape == expected.shape
    assert _routes(build("bert").bfloat16(), folder).shape == expected.shape


@pytest.mark.parametrize("change", [{"pad_token_id": 7}, {"hidden_dropout_prob": 0.3}, {"known_from_some_release_on": 1}])
def test_how_a_model_is_used_or_trained_makes_no_other_model_of_it(folder: Path, change: dict[str, Any]) -> None:
    model = build("bert")
    model.config.update(change)
    assert _routes(model, folder).shape == _routes(build("bert"), folder).shape


def test_more_words_make_no_other_model(folder: Path) -> None:
    model = build("bert")
    model.resize_token_embeddings(72)
    assert _routes(model, folder).shape == _routes(build("bert"), folder).shape


def test_another_digest_of_the_weights_makes_another_model(folder: Path) -> None:
    model = build("bert")
    model.config.rl_skip_weights = "0123"
    with pytest.raises(UserError, match=r"config.rl_skip_weights is None, the given model's is 0123"):
        rl_skip.attach(model, folder)


def test_a_policy_folder_goes_with_adapters(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(build("bert"), peft.LoraConfig(target_modules=["query"]))  # which begins as the model that it adapts
    assert _routes(adapted, folder).equal(_routes(build("bert"), folder))


def test_the_two_ways_to_take_up_a_policy_name_each_other(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"load a BertForSequenceClassification, then rl_skip.attach\(model, folder\)"):
        rl_skip.load(folder)
    model = rl_skip.load(folder, rl_skip.HuggingFaceStack(build("bert")))
    assert model(batch(model.stack.model)).shape == (4, 2)
    layers = [nn.Linear(8, 8) for _ in range(4)]
    stack = rl_skip.ModuleStack(nn.Linear(3, 8), layers, nn.Linear(8, 2), width=8, layer_flops=[1.0] * 4)
    rl_skip.save(tmp_path / "own", JumpPolicy(JumpRules.reaching(ObservationLayout(8, 4))), stack=stack, price=0.1)
    with pytest.raises(UserError, match="not for a model to attach to: rl_skip.load"):
        rl_skip.attach(build("bert"), tmp_path / "own")


def test_a_plain_module_finds_its_layers_by_the_saved_path(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))), nn.Linear(8, 2))
    handle = rl_skip.attach(model, make_policy(2, width=8), layers="1")
    with pytest.raises(UserError, match="call the model once, then save"):
        handle.save_pretrained(tmp_path / "policy")
    model(torch.randn(4, 3))
    handle.save_pretrained(tmp_path / "policy")
    handle.detach()
    assert rl_skip.attach(model, tmp_path / "policy").path == "1"
    with pytest.raises(UserError, match="so there is nothing to save"):
        rl_skip.attach(build("bert")).save_pretrained(tmp_path / "none")


def _bert(**options: object) -> nn.Module:
    config = build("bert").config.to_dict() | options
    return transformers.BertForSequenceClassification(transformers.BertConfig(**config))


def _named(name: str, revision: str | None) -> nn.Module:
    model = build("bert")
    model.config._name_or_path, model.config._commit_hash = name, revision
    return model
