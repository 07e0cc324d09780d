"""A policy with the model of its run, which lies in a folder beside it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import rl_skip
import train
from rl_skip import HuggingFaceStack, UserError
from rl_skip.attached.pretrained import load_model
from rl_skip.measure.evaluation import evaluate
from rl_skip.measure.runs import load_run
from tests.rl_skip.huggingface_models import build
from tests.rl_skip.pretrained_folders import save_bert, write_table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model_folder")
    options = ["--task", "text", "--data", str(write_table(folder / "films.tsv", 60)), "--model", str(save_bert(folder / "bert")), "--threads", "1"]
    assert train.main([*options, "--warmup-epochs", "1", "--epochs", "1", "--policy-epochs", "1", "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_a_run_s_model_folder_stands_for_the_stack(run: Path) -> None:
    model = rl_skip.load(run / "policy", run / "model", price=0.05)
    _, task = load_run(run)
    texts = ["a fine film", "dull", "a long and tired film that ends"]
    tokens = AutoTokenizer.from_pretrained(run / "model")(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert model(tokens).shape == (3, 2)
        assert torch.equal(model(tokens), model(dict(tokens)))
    again, _ = load_run(run, price=0.05)
    examples = task.load("test")
    found, expected = (evaluate(loaded.stack, loaded.policy, task, examples, price=0.05) for loaded in (model, again))
    assert torch.equal(found.prediction, expected.prediction) and torch.equal(found.route, expected.route)


def test_a_model_of_the_same_shape_that_is_another_one_is_refused(run: Path, tmp_path: Path) -> None:
    stack = load_model(str(run / "model"))
    with torch.no_grad():
        next(stack.routed[0].parameters()).add_(1.0)
    stack.write_model(tmp_path / "model")
    with pytest.raises(UserError, match="rl_skip_weights"):
        rl_skip.load(run / "policy", tmp_path / "model")


def test_what_a_decision_may_look_at_is_kept(tmp_path: Path) -> None:
    stack = HuggingFaceStack(build("llama"), prompt_tokens=4)
    policy = rl_skip.JumpPolicy(rl_skip.JumpRules.reaching(rl_skip.ObservationLayout(stack.width, stack.depth)))
    stack.write_model(tmp_path / "model")
    rl_skip.save(tmp_path / "policy", policy, stack=stack, weights=False, price=0.1)
    loaded = rl_skip.load(tmp_path / "policy", tmp_path / "model").stack
    assert isinstance(loaded, HuggingFaceStack) and loaded.prompt_tokens == 4


def test_a_policy_of_another_kind_takes_no_folder(tmp_path: Path, run: Path) -> None:
    layers = [torch.nn.Linear(8, 8) for _ in range(4)]
    stack = rl_skip.ModuleStack(torch.nn.Linear(3, 8), layers, torch.nn.Linear(8, 2), width=8, layer_flops=[1.0] * 4)
    policy = rl_skip.JumpPolicy(rl_skip.JumpRules.reaching(rl_skip.ObservationLayout(8, 4)))
    rl_skip.save(tmp_path / "policy", policy, stack=stack, price=0.1)
    with pytest.raises(UserError, match="describes no model with a folder of its own"):
        rl_skip.load(tmp_path / "policy", run / "model")
