"""A policy that learns in transformers' Trainer: its logs, its checkpoints, going on, and the best model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rl_skip
from tests.rl_skip.huggingface_models import DEPTH, VOCABULARY, batch, build

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
QUIET = {"disable_tqdm": True, "use_cpu": True}
CONFIG = rl_skip.SkipConfig(budget=0.5, policy_epochs=2)


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    ids = torch.randint(3, VOCABULARY, (count, 8), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "attention_mask": torch.ones(8, dtype=torch.long), "labels": int(row[0]) % 2} for row in ids]


def trainer_of(model: nn.Module, folder: Path, **options: Any) -> Any:
    given = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "report_to": [], "logging_steps": 2} | options
    arguments = transformers.TrainingArguments(str(folder), **given, **QUIET)
    return rl_skip.SkipTrainer(model, arguments, train_dataset=rows(32), eval_dataset=rows(16, 1))


def learning(config: rl_skip.SkipConfig = CONFIG) -> nn.Module:
    model = build("bert")
    rl_skip.attach(model, config)
    return model


def test_the_logs_say_what_the_policy_does(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trainer_of(learning(), tmp_path, report_to=["tensorboard"], eval_strategy="steps", eval_steps=4, save_strategy="no")
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 2
    for entry in logged:
        assert {"rollout/compute", "policy/entropy", "price", "budget/price", f"layers/run_rate_{DEPTH - 1}"} <= entry.keys()
    evaluated = next(entry for entry in trainer.state.log_history if "eval_loss" in entry)
    spent = []
    with torch.no_grad():
        for n in range(2):
            inputs = {name: torch.stack([row[name] for row in rows(16, 1)[8 * n : 8 * n + 8]]) for name in ("input_ids", "attention_mask")}
            trainer.model.eval()(**inputs)
            spent.append(trainer.handle.last_compute.mean())
    assert evaluated["eval_compute"] == pytest.approx(float(sum(spent)) / 2, rel=1e-5)
    events = EventAccumulator(str(next(tmp_path.rglob("events.*")).parent))
    events.Reload()
    assert "train/rollout/compute" in events.Tags()["scalars"]


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = learning()
    trainer_of(whole, tmp_path, save_steps=2).train()
    again = learning()
    trainer_of(again, tmp_path, save_steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    state = again.state_dict()
    assert any(name.startswith("rl_skip.deciding.steering") for name in state)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_the_best_model_comes_back_with_its_policy_and_what_is_saved_routes_alike(tmp_path: Path) -> None:
    model = learning()
    best = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    trainer = trainer_of(model, tmp_path, greater_is_better=True, learning_rate=1e-2, **best)  # the worse one, which is the first
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    other = learning()
    resumed = trainer_of(other, tmp_path)
    resumed._load_from_checkpoint(str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())
    trainer.calibrate()
    trainer.save_model(str(tmp_path / "out"))
    saved = type(model).from_pretrained(tmp_path / "out")
    handle, inputs = rl_skip.attach(saved, tmp_path / "out" / "policy"), batch(saved)
    with torch.no_grad():
        assert saved(**inputs).logits.equal(model.eval()(**inputs).logits)
    assert handle.last_routes.equal(trainer.handle.last_routes) and handle.price == trainer.handle.price


def test_accumulated_batches_weigh_as_one(tmp_path: Path) -> None:
    """Two batches of 4 with a step after the second have the mean of their gradients, so they move the weights as far as one batch of 8 does."""
    moved = []
    for options in ({"gradient_accumulation_steps": 2}, {"per_device_train_batch_size": 8}):
        model = build("bert")
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        rl_skip.attach(model, rl_skip.SkipConfig(price=0.1))
        trainer = trainer_of(model, tmp_path, max_steps=1, optim="sgd", save_strategy="no", max_grad_norm=0.0, **options)
        before = {name: tensor.clone() for name, tensor in model.named_parameters()}
        trainer.train()
        moved.append({name: tensor - before[name] for name, tensor in model.named_parameters()})
    for name, step in moved[0].items():
        torch.testing.assert_close(step, moved[1][name], rtol=1e-2, atol=1e-6)


def test_adapters_of_peft_go_into_checkpoints_with_the_policy(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    def adapted() -> nn.Module:
        model = peft.get_peft_model(build("bert"), peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
        rl_skip.attach(model, CONFIG)
        return model

    torch.manual_seed(0)
    whole = adapted()
    trainer_of(whole, tmp_path, save_steps=2).train()
    torch.manual_seed(0)
    again = adapted()
    trainer_of(again, tmp_path, save_steps=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(rl_skip.UserError, match="SkipConfig"):
        trainer_of(build("bert"), tmp_path)
    with pytest.raises(rl_skip.UserError, match="label_smoothing_factor and compute_loss_func count for nothing"):
        trainer_of(learning(), tmp_path, label_smoothing_factor=0.1)
    trainer = trainer_of(learning(), tmp_path, save_strategy="no")
    trainer.train_dataset = [{name: value for name, value in row.items() if name != "labels"} for row in rows(8)]
    with pytest.raises(rl_skip.UserError, match="no 'labels'"):
        trainer.train()
    arguments = transformers.TrainingArguments(str(tmp_path), report_to=[], max_steps=3, **QUIET)
    plain = transformers.Trainer(learning(), arguments, train_dataset=rows(32))
    with pytest.raises(rl_skip.UserError, match="SkipTrainer"):
        plain.train()
