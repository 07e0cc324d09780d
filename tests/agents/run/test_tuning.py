"""--tune moves just the parameters that it names, and adapters end as part of the weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rl_skip
import train
from agents.options.config import ScheduleConfig, TrainConfig, Tune
from agents.policy.reinforce import Reinforce
from agents.run.learner import Learner
from agents.run.warmup import warm_up_for
from rl_skip import HuggingFaceStack
from rl_skip.learning.prices import price_source
from rl_skip.measure.runs import load_run
from rl_skip.tasks import load_task
from rl_skip.tasks.options import TaskOptions
from tests.rl_skip.pretrained_folders import save_bert, write_table

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")


def _learner(tmp_path: Path, tune: Tune, head: bool, warmup_epochs: int = 1) -> Learner:
    options = TaskOptions(model=str(save_bert(tmp_path / "model", head=head)), head="mean")
    task = load_task("text", str(write_table(tmp_path / "data.tsv", 160)), options)
    schedule = ScheduleConfig(warmup_epochs=warmup_epochs, epochs=1, batch_size=16, learning_rate=1e-2, tune=tune)
    return Learner(replace(TrainConfig(schedule=schedule, options=options), task="text"), task, torch.device("cpu"))


def _moved(learner: Learner) -> set[str]:
    """What of the network an update of the warm-up and one of the agent change."""
    before = {name: parameter.detach().clone() for name, parameter in learner.stack.named_parameters()}
    warm_up_for(learner).update(0)
    agent = Reinforce(learner, price_source(learner.config.pricing))
    agent.update(learner.warmup_updates)
    return {name for name, parameter in learner.stack.named_parameters() if not parameter.equal(before[name])}


@pytest.mark.parametrize("head", [True, False], ids=["own head", "added head"])
@pytest.mark.parametrize("tune", ["head", "norms", "lora"])
def test_only_what_is_named_moves(tune: Tune, head: bool, tmp_path: Path) -> None:
    learner = _learner(tmp_path, tune, head)
    names = {name for name, _ in learner.stack.named_parameters()}
    wanted = {name for name in names if name.startswith(("head.", "model.classifier."))}
    assert len(wanted) == (2 if head else 6)
    if tune == "norms":
        wanted |= {name for name in names if "LayerNorm" in name}
    if tune == "lora":
        wanted |= {name for name in names if "lora_" in name}
        assert len([name for name in wanted if "lora_A" in name]) == 4 * 6  # six linear maps in each of four layers
    assert _moved(learner) == wanted


def test_all_moves_all_that_the_outputs_depend_on(tmp_path: Path) -> None:
    learner = _learner(tmp_path, "all", head=True)
    assert _moved(learner) >= {name for name, _ in learner.stack.named_parameters() if "encoder" in name or "classifier" in name}


def test_none_moves_in_the_warm_up_alone(tmp_path: Path) -> None:
    learner = _learner(tmp_path, "frozen", head=True)
    warm_up_for(learner).update(0)
    before = {name: parameter.detach().clone() for name, parameter in learner.stack.named_parameters()}
    Reinforce(learner, price_source(learner.config.pricing)).update(learner.warmup_updates)
    assert all(parameter.equal(before[name]) for name, parameter in learner.stack.named_parameters())


def test_merged_adapters_change_nothing_that_is_computed(tmp_path: Path) -> None:
    learner = _learner(tmp_path, "lora", head=True)
    _moved(learner)
    learner.stack.eval()
    inputs, route = learner.validation.inputs, torch.tensor([1, 0, 1, 1]).bool()
    with torch.no_grad():
        before = rl_skip.routed_forward(learner.stack, route, inputs).outputs
        learner.merge_adapters()
        after = rl_skip.routed_forward(learner.stack, route, inputs).outputs
    torch.testing.assert_close(after, before)
    assert isinstance(learner.stack, HuggingFaceStack)
    assert not [name for name, _ in learner.stack.named_parameters() if "lora" in name or "base_layer" in name]


def test_a_run_with_adapters_leaves_a_plain_model(tmp_path: Path) -> None:
    data, folder = write_table(tmp_path / "data.tsv", 80), save_bert(tmp_path / "model", head=True)
    flags = ["--warmup-epochs", "1", "--epochs", "1", "--threads", "1", "--tune", "lora", "--task", "text", "--data", str(data)]
    assert train.main([*flags, "--model", str(folder), "--out", str(tmp_path / "run")]) == 0
    assert not (tmp_path / "run" / "model" / "adapter_config.json").exists()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model").eval()
    rl_skip.attach(model, tmp_path / "run" / "policy")
    ours, task = load_run(tmp_path / "run")
    inputs = task.load("test").inputs
    assert isinstance(inputs, dict)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, ours(inputs))


def test_batches_hold_rows_of_like_length_and_an_epoch_each_row_once(tmp_path: Path) -> None:
    learner = _learner(tmp_path, "all", head=True)
    batches = [learner.batch(update) for update in range(learner.updates_per_epoch)]
    assert sorted(row for batch in batches for row in batch.labels.tolist()) == sorted(learner.train.labels.tolist())
    padded = sum(batch.inputs["attention_mask"].numel() for batch in batches)  # type: ignore[index, call-overload]
    real = sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)  # type: ignore[index, call-overload]
    assert real / padded > 0.85
    assert learner.batch(1).inputs["input_ids"].equal(batches[1].inputs["input_ids"])  # type: ignore[index, call-overload]


def test_layers_that_stay_as_they_were_drawn_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--task", "text", "--data", str(write_table(tmp_path / "data.tsv", 40))]
    small = ["--layers", "2", "--width", "16", "--heads", "2", "--epochs", "1", "--batch-size", "16", "--threads", "1"]
    for tune in ("head", "all"):
        assert train.main([*data, *small, "--tune", tune, "--out", str(tmp_path / tune)]) == 0
        said = capsys.readouterr().out
        assert ("--tune head leaves the weight matrices of a new network's layers random; set --tune all" in said) == (tune == "head")
