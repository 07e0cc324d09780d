"""A run from a model without a head leaves one that transformers reads: row by row it answers there as it did in the run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import rl_skip
import train
from agents.options.config import TrainConfig
from agents.run.learner import Learner
from rl_skip.cli.main import main
from rl_skip.export.description import Description
from rl_skip.export.pruned import load_pruned
from rl_skip.measure.evaluation import Evaluation, beside_full_depth
from rl_skip.measure.runs import load_run
from rl_skip.tasks import load_task
from rl_skip.tasks.options import TaskOptions
from rl_skip.tasks.tables import read_tables
from tests.rl_skip.pretrained_folders import save_bert, save_vit, save_wav2vec2, write_recordings, write_table

transformers = pytest.importorskip("transformers")
FEW = ["--warmup-epochs", "1", "--epochs", "1", "--policy-epochs", "1", "--threads", "1"]
MANY = ["--warmup-epochs", "6", "--no-begin-again", "--batch-size", "8", "--learning-rate", "1e-3", "--price-range", "0.01", "0.1"]


def _run(folder: Path, *flags: str) -> Path:
    assert train.main([*FEW, *flags, "--out", str(folder / "run")]) == 0
    return folder / "run"


def _measured(run: Path) -> tuple[Evaluation, Evaluation, rl_skip.Task]:
    """What the run's policy and its full depth answer on test rows, as its report has it."""
    model, task = load_run(run)
    policy, full = beside_full_depth(model.stack, model.policy, task, task.load("test"), price=model.price)
    report = json.loads((run / "report.json").read_text())
    assert (policy.score, full.score) == (report["policy"]["accuracy"], report["full depth"]["accuracy"])
    assert len(set(full.prediction.tolist())) > 1
    return policy, full, task


def _answers(pipeline: Any, inputs: list[Any], classes: tuple[str, ...], **options: Any) -> Tensor:
    return torch.tensor([classes.index(best["label"]) for best in (_best(pipeline(one, **options)) for one in inputs)])


def _best(answers: list[dict[str, Any]]) -> dict[str, Any]:
    return max(answers, key=lambda answer: answer["score"])


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    data, model = write_table(folder / "data.tsv", 160, names=("bad", "good")), save_bert(folder / "model", initializer_range=0.2)
    return _run(folder, "--task", "text", "--data", str(data), "--model", str(model), "--max-tokens", "9", *MANY)


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    labels = np.arange(120) % 3
    images = np.random.default_rng(0).integers(0, 120, (120, 12, 12, 3), dtype=np.uint8)
    images[np.arange(120), :, :, labels] += 100
    np.savez(folder / "data.npz", images=images, labels=labels)
    return _run(folder, "--task", "images", "--data", str(folder / "data.npz"), "--model", str(save_vit(folder / "model")), *MANY)


def test_text_to_the_row(text_run: Path) -> None:
    policy, full, task = _measured(text_run)
    _, tables, _ = read_tables(text_run.parent / "data.tsv", TaskOptions())
    texts = tables["test"].texts
    assert max(len(text.split()) for text in texts) > 9, "some are cut off"
    handle = rl_skip.from_pretrained(text_run)
    assert isinstance(handle, rl_skip.Handle) and handle.model.config.id2label == {0: "bad", 1: "good"}
    with torch.no_grad():
        logits = handle.model(**handle.processor(list(texts), truncation=True, padding=True, return_tensors="pt")).logits
    assert logits.argmax(dim=1).equal(policy.prediction) and handle.last_routes.equal(policy.route)

    model = transformers.AutoModelForSequenceClassification.from_pretrained(text_run / "model")
    pipeline = transformers.pipeline("text-classification", str(text_run / "model"))
    assert _answers(pipeline, list(texts), task.classes, truncation=True).equal(full.prediction)
    rl_skip.attach(pipeline.model, text_run / "policy")
    assert _answers(pipeline, list(texts), task.classes, truncation=True).equal(policy.prediction)
    rl_skip.attach(model, text_run / "policy")


def test_images_to_the_row(image_run: Path) -> None:
    from PIL import Image

    policy, full, task = _measured(image_run)
    pixels = task.load("test").inputs
    assert isinstance(pixels, Tensor)
    pictures = [Image.fromarray(picture) for picture in pixels.movedim(1, -1).to(torch.uint8).numpy()]
    handle = rl_skip.from_pretrained(image_run)
    assert isinstance(handle, rl_skip.Handle)
    with torch.no_grad():
        logits = handle.model(**handle.processor(pictures, return_tensors="pt")).logits
    assert logits.argmax(dim=1).equal(policy.prediction) and handle.last_routes.equal(policy.route)
    pipeline = transformers.pipeline("image-classification", str(image_run / "model"))
    assert _answers(pipeline, pictures, task.classes).equal(full.prediction)
    rl_skip.attach(pipeline.model, image_run / "policy")
    assert _answers(pipeline, pictures, task.classes).equal(policy.prediction)


def test_speech_from_a_backbone(tmp_path: Path) -> None:
    data, folder = write_recordings(tmp_path / "data"), save_wav2vec2(tmp_path / "model", head=False)
    run = _run(tmp_path, "--task", "speech", "--data", str(data), "--model", str(folder))
    (ours, task), handle = load_run(run), rl_skip.from_pretrained(run)
    assert isinstance(handle, rl_skip.Handle) and type(handle.model).__name__ == "Wav2Vec2ForSequenceClassification"
    assert handle.processor.sampling_rate == 16000 and list(handle.model.config.id2label.values()) == list(task.classes)
    inputs = task.load("test").take(slice(0, 8)).inputs
    assert isinstance(inputs, dict)
    with torch.no_grad():
        torch.testing.assert_close(handle.model(**inputs).logits, ours(inputs))


def test_a_fresh_pooler_is_learned_with_the_head(tmp_path: Path) -> None:
    """A masked language model's file has no pooler: with --tune head, one that was drawn at random would stay so."""
    config = transformers.AutoConfig.from_pretrained(save_bert(tmp_path / "model"))
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "model")
    data = write_table(tmp_path / "data.tsv", 80)
    for flags in ((), ("--no-readouts",)):
        (tmp_path / "-".join(flags)).mkdir(exist_ok=True)
        run = _run(tmp_path / "-".join(flags), "--task", "text", "--data", str(data), "--model", str(tmp_path / "model"), "--tune", "head", *flags)
        before = transformers.AutoModel.from_pretrained(tmp_path / "model", add_pooling_layer=False).state_dict()
        after = transformers.AutoModelForSequenceClassification.from_pretrained(run / "model").bert
        assert all(after.state_dict()[name].equal(weight) for name, weight in before.items())
        assert after.pooler.dense.bias.abs().max() > 0, "it begins at 0"


def test_a_decoder_answers_at_its_last_token(tmp_path: Path) -> None:
    """Its file pads with another token than its tokenizer, which decides where a row ends."""
    made = transformers.AutoTokenizer.from_pretrained(save_bert(tmp_path / "model"))
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=len(made), n_embd=32, n_layer=3, n_head=4, n_positions=20, pad_token_id=7, initializer_range=0.2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    data = write_table(tmp_path / "data.tsv", 80)
    run = _run(tmp_path, "--task", "text", "--data", str(data), "--model", str(tmp_path / "model"), *MANY)
    policy, _, _ = _measured(run)
    handle = rl_skip.from_pretrained(run)
    assert isinstance(handle, rl_skip.Handle)
    texts = read_tables(data, TaskOptions())[1]["test"].texts
    alone = [handle.model(**handle.processor(text, truncation=True, return_tensors="pt")).logits.argmax() for text in texts]
    assert torch.stack(alone).equal(policy.prediction)


def test_a_run_is_pruned_to_one_of_its_exits(text_run: Path, tmp_path: Path) -> None:
    assert main(["prune", str(text_run), str(tmp_path / "pruned"), "--layers", "0,1", "--threads", "1"]) == 0
    (ours, task), pruned = load_run(text_run), load_pruned(tmp_path / "pruned")
    inputs = task.load("test").inputs
    with torch.no_grad():
        expected = rl_skip.routed_forward(ours.stack, torch.tensor([1, 1, 0, 0]).bool(), inputs).outputs
        torch.testing.assert_close(pruned(inputs), expected)
    assert ours.stack.readouts is not None and ours.stack.readouts.plan == {"rank": 128, "pools": True, "groups": 1}


@pytest.mark.parametrize("layers", ["0,1", "0,2,3"])
def test_a_model_of_images_is_pruned_and_answers_prepared_pictures(image_run: Path, layers: str, tmp_path: Path) -> None:
    assert main(["prune", str(image_run), str(tmp_path / "pruned"), "--layers", layers, "--threads", "1"]) == 0
    (ours, task), pruned = load_run(image_run), load_pruned(tmp_path / "pruned")
    inputs = task.load("test").inputs
    pruned.stack.prepare = ours.stack.prepare  # type: ignore[assignment]
    with torch.no_grad():
        expected = rl_skip.routed_forward(ours.stack, torch.tensor([str(i) in layers for i in range(ours.stack.depth)]), inputs).outputs
        torch.testing.assert_close(pruned(inputs), expected)


@pytest.mark.parametrize("groups", [0, 5, "2"])
def test_groups_of_channels_that_the_width_does_not_have_are_refused(groups: object, text_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    fields = json.loads((text_run / "policy" / "policy.json").read_text(encoding="utf-8"))
    fields["readouts"]["groups"] = groups
    file.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(rl_skip.UserError, match="groups must be a"):
        Description.read(file)


def test_a_run_may_keep_the_plain_mean_as_runs_of_before_do(text_run: Path) -> None:
    fields = json.loads((text_run / "config.json").read_text(encoding="utf-8"))
    assert fields["policy"].pop("readout_attention") is True
    before = text_run.parent / "before"
    before.mkdir()
    (before / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    config = TrainConfig.from_json(before)
    assert not config.policy.readout_attention
    task = load_task(config.task, config.data, config.options)
    learner = Learner(config, task, torch.device("cpu"), task.network(config.network))  # type: ignore[misc]
    assert learner.stack.readouts is not None and learner.stack.readouts.plan == {"rank": 128, "pools": True}
