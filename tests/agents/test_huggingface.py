"""Both agents train a policy on a model from transformers, and what they export runs as a stack and attached alike."""

from pathlib import Path

import pytest
import torch

import rl_skip
from agents.options.config import PriceConfig, ScheduleConfig, TrainConfig
from agents.run.session import train
from rl_skip import Examples, Split, Task
from rl_skip.cli.main import main
from rl_skip.measure.compare.curves import load_curve
from tests.rl_skip.huggingface_models import build

pytest.importorskip("transformers")


def _load(split: Split) -> Examples:
    generator = torch.Generator().manual_seed(len(split))
    ids, labels = torch.randint(5, 60, (192, 8), generator=generator), torch.randint(2, (192,), generator=generator)
    ids[:, 1] = torch.where(labels == 1, 3, 4)
    mask = torch.arange(8) < torch.randint(3, 9, (192, 1), generator=generator)
    return Examples({"input_ids": ids * mask, "attention_mask": mask.long()}, labels)


@pytest.mark.parametrize("agent", ["reinforce", "ppo"])
def test_an_agent_trains_a_policy_on_a_model_of_somebody_else(agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = Task("marks", ("no", "yes"), _load, embedding=lambda _width: torch.nn.Identity(), tokens=8)
    stack = rl_skip.HuggingFaceStack(build("bert"))
    before = {name: parameter.clone() for name, parameter in stack.model.named_parameters()}
    config = TrainConfig(agent=agent, out=str(tmp_path / "run"), schedule=ScheduleConfig(warmup_epochs=1, epochs=1))
    policy = train(config, task=task, stack=stack) / "policy"
    assert any(not parameter.equal(before[name]) for name, parameter in stack.model.named_parameters())
    loaded, inputs = rl_skip.load(policy, stack), _load("test").inputs
    with torch.no_grad():
        outputs = loaded(inputs)
        handle = rl_skip.attach(stack.model, policy)
        torch.testing.assert_close(stack.model(**inputs).logits, outputs)
    assert handle.last_routes.equal(loaded.last.route)
    torch.testing.assert_close(handle.last_compute, loaded.last.compute)
    capsys.readouterr()
    assert main(["info", str(policy)]) == 0
    assert "BertForSequenceClassification" in capsys.readouterr().out


@pytest.mark.parametrize("agent", ["static", "shallow", "gumbel"])
def test_a_baseline_is_trained_on_a_model_of_somebody_else(agent: str, tmp_path: Path) -> None:
    task = Task("marks", ("no", "yes"), _load, embedding=lambda _width: torch.nn.Identity(), tokens=8)
    stack = rl_skip.HuggingFaceStack(build("bert"))
    before = {name: parameter.clone() for name, parameter in stack.model.named_parameters()}
    schedule, pricing = ScheduleConfig(warmup_epochs=1, epochs=1), PriceConfig(budget=0.75)
    (point,) = load_curve(train(TrainConfig(agent=agent, out=str(tmp_path / "run"), schedule=schedule, pricing=pricing), task=task, stack=stack)).test
    assert any(not parameter.equal(before[name]) for name, parameter in stack.model.named_parameters())
    layers = len(stack.layer_costs)
    assert 1 / layers <= point.mean_compute <= 0.78
    assert len(point.correct) == len(_load("test"))


def test_confidence_exits_are_trained_on_copies_of_the_models_own_head(tmp_path: Path) -> None:
    task = Task("marks", ("no", "yes"), _load, embedding=lambda _width: torch.nn.Identity(), tokens=8)
    stack = rl_skip.HuggingFaceStack(build("bert"))
    config = TrainConfig(agent="exits", out=str(tmp_path / "run"), schedule=ScheduleConfig(warmup_epochs=1, epochs=1))
    computes = [point.mean_compute for point in load_curve(train(config, task=task, stack=stack)).test]
    layers = len(stack.layer_costs)
    readout = (max(computes) - 1) / (layers - 1)
    assert min(computes) == pytest.approx(1 / layers + readout) and 0 < readout < 0.1 and len(set(computes)) > 5
