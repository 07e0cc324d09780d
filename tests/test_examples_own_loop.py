"""The loops in `examples/own_loop*.py` train a tiny model, its readouts and its policy."""

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import rl_skip

transformers = pytest.importorskip("transformers")
FOLDER = Path(__file__).resolve().parents[1] / "examples"
TOKENS, WORDS = 6, 12
CONFIG = rl_skip.SkipConfig(policy_epochs=30)


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts of which one word, 3 or 4, says the class."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, WORDS, (count, TOKENS), generator=generator)
    labels = torch.arange(count) % 2
    ids[torch.arange(count), torch.randint(TOKENS, (count,), generator=generator)] = 3 + labels
    seen = torch.ones(TOKENS, dtype=torch.long)
    return [{"input_ids": row, "attention_mask": seen, "labels": label} for row, label in zip(ids, labels, strict=True)]


TRAIN, VALIDATION, TEST = rows(128, 0), rows(64, 1), rows(64, 2)


def tiny() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": WORDS}
    config = transformers.BertConfig(**sizes, max_position_embeddings=TOKENS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.BertForSequenceClassification(config)


def loader(data: list[dict[str, Any]]) -> DataLoader[Any]:
    return DataLoader(data, batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]


def logits(model: nn.Module) -> Tensor:
    whole = {name: torch.stack([row[name] for row in TEST]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return model.eval()(**whole).logits


def check(model: nn.Module, handle: Any, folder: Path) -> None:
    """The task is learned, at a budget that was asked for, and what is saved does the same."""
    handle.budget = 0.6
    answered = logits(model)
    labels = torch.tensor([int(row["labels"]) for row in TEST])
    assert (answered.argmax(dim=1) == labels).float().mean() > 0.9
    assert 1 / 4 < handle.last_compute.mean() < 0.75
    routes = handle.last_routes
    if not (folder / "policy").is_dir():
        handle.save_pretrained(folder / "policy")
    handle.detach()
    bare = copy.deepcopy(model)
    again = rl_skip.attach(bare, folder / "policy")
    again.budget = 0.6
    assert torch.equal(logits(bare), answered) and torch.equal(again.last_routes, routes)


@pytest.mark.parametrize("name", ["own_loop", "own_loop_accelerate"])
def test_a_loop(name: str, tmp_path: Path) -> None:
    if name == "own_loop_accelerate":
        pytest.importorskip("accelerate")
    train, model = runpy.run_path(str(FOLDER / f"{name}.py"))["train"], tiny()
    check(model, train(model, loader(TRAIN), loader(VALIDATION), CONFIG, epochs=8, learning_rate=3e-3), tmp_path)


def test_a_loop_with_a_teacher() -> None:
    """It says the opposite of the labels, and weighs more."""
    seen = []

    def teacher(labels: Tensor, **batch: Tensor) -> Any:
        seen.append(torch.is_grad_enabled())
        return SimpleNamespace(logits=8.0 * nn.functional.one_hot(1 - labels, 2))

    model, config = tiny(), rl_skip.SkipConfig(policy_epochs=1, distillation_weight=4.0)
    train = runpy.run_path(str(FOLDER / "own_loop.py"))["train"]
    train(model, loader(TRAIN), loader(VALIDATION), config, epochs=8, learning_rate=3e-3, teacher=teacher)
    labels = torch.tensor([int(row["labels"]) for row in TEST])
    assert seen == [False] * 64 and (logits(model).argmax(dim=1) == 1 - labels).float().mean() > 0.9


def test_the_trainer(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    train, model = runpy.run_path(str(FOLDER / "own_loop_trainer.py"))["train"], tiny()
    quiet = {"report_to": [], "disable_tqdm": True, "use_cpu": True}
    options = {"num_train_epochs": 8, "learning_rate": 3e-3, "per_device_train_batch_size": 16}
    trainer = train(model, TRAIN, VALIDATION, CONFIG, str(tmp_path), **options, **quiet)
    saved = type(model).from_pretrained(tmp_path)
    assert type(rl_skip.from_pretrained(tmp_path).model) is type(model)
    check(model, trainer.handle, tmp_path)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in saved.state_dict().items())
