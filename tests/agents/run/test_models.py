"""Models from transformers from the command line: trained, then evaluated, compared, pruned, exported and attached with no code of one's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import rl_skip
import train
from rl_skip import UserError
from rl_skip.cli.main import main
from rl_skip.export.pruned import load_pruned
from rl_skip.measure.runs import load_run
from rl_skip.tasks.speech import resampled
from tests.rl_skip.pretrained_folders import save_bert, save_vit, save_wav2vec2, write_recordings, write_table

transformers = pytest.importorskip("transformers")
FEW = ["--warmup-epochs", "1", "--epochs", "1", "--threads", "1"]


def _train(out: Path, *flags: str) -> Path:
    assert train.main([*flags, "--out", str(out), *FEW]) == 0
    return out


def _report(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    capsys.readouterr()
    assert main([*words, "--json", "--threads", "1"]) == 0
    return json.loads(capsys.readouterr().out)


def _rows(run: Path, count: int = 12) -> rl_skip.Examples:
    return load_run(run)[1].load("test").take(slice(0, count))


def _train_backbone(folder: Path, *flags: str, head: str = "mean") -> Path:
    data, model = write_table(folder / "data.tsv", 160), save_bert(folder / "model")
    options = ["--task", "text", "--data", str(data), "--model", str(model), "--head", head, "--price-range", "0.05", "0.5"]
    return _train(folder / "run", *options, *flags)


@pytest.fixture(scope="module")
def leaving_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a backbone whose rows are answered by copies of a head that was put beside it."""
    return _train_backbone(tmp_path_factory.mktemp("leaving"))


@pytest.fixture(scope="module")
def attending_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a head that learns where to look."""
    return _train_backbone(tmp_path_factory.mktemp("attending"), head="attention")


@pytest.fixture(scope="module")
def backbone_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a backbone without readouts, so that the model alone can be attached to."""
    return _train_backbone(tmp_path_factory.mktemp("backbone"), "--no-readouts")


@pytest.fixture(params=["leaving_run", "attending_run", "backbone_run"])
def either_run(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def test_a_run_is_measured_compared_and_described(either_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((either_run / "report.json").read_text())
    found = _report(capsys, "eval", str(either_run))
    assert found["accuracy"] == report["policy"]["accuracy"] and found["compute"] == pytest.approx(report["policy"]["compute"])
    assert found["rows"] == 32
    assert _report(capsys, "eval", str(either_run), "--batch-size", "5")["accuracy"] == found["accuracy"]
    compared = _report(capsys, "compare", str(either_run), "--rows", "8")
    assert compared["rows"] == 8 and compared["classes"] == ["0", "1"]
    assert _report(capsys, "info", str(either_run))["policy"]["network"]["model_class"] == "BertModel"
    assert sorted(file.suffix for file in either_run.rglob("*") if file.suffix in (".bin", ".pkl", ".pickle")) == []


def test_the_saved_model_with_the_policy_attached_does_what_eval_does(backbone_run: Path) -> None:
    """The head of the backbone, a norm and two linear layers on the mean of the real tokens, applied by hand."""
    ours, _ = load_run(backbone_run)
    model = transformers.AutoModel.from_pretrained(backbone_run / "model").eval()
    handle = rl_skip.attach(model, backbone_run / "policy")
    head = load_file(backbone_run / "model" / "head.safetensors")
    inputs = _rows(backbone_run).inputs
    assert isinstance(inputs, dict)
    with torch.no_grad():
        logits, hidden, weight = ours(inputs), model(**inputs).last_hidden_state, inputs["attention_mask"].unsqueeze(-1)
    mean = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
    deep = torch.tanh(torch.layer_norm(mean, mean.shape[1:], head["0.weight"], head["0.bias"]) @ head["1.weight"].T + head["1.bias"])
    torch.testing.assert_close(deep @ head["4.weight"].T + head["4.bias"], logits)
    assert ours.last is not None and handle.last_routes.equal(ours.last.route)
    torch.testing.assert_close(handle.last_compute, ours.last.compute)


def test_the_policy_knows_the_model_from_the_one_that_it_was_made_of(backbone_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="config.rl_skip_weights is "):
        rl_skip.attach(transformers.AutoModel.from_pretrained(backbone_run.parent / "model"), backbone_run / "policy")
    model = transformers.AutoModel.from_pretrained(backbone_run / "model")
    model.save_pretrained(tmp_path / "another-name")
    rl_skip.attach(transformers.AutoModel.from_pretrained(tmp_path / "another-name"), backbone_run / "policy")


@pytest.mark.parametrize("name", ["leaving_run", "attending_run"])
def test_with_readouts_of_a_head_beside_it_the_model_and_its_head_run_the_policy(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaving_run = Path(request.getfixturevalue(name))
    with pytest.raises(UserError, match=r'the model alone cannot answer with them: rl_skip\.load\("RUN/policy", "RUN/model"\)'):
        rl_skip.attach(transformers.AutoModel.from_pretrained(leaving_run / "model"), leaving_run / "policy")
    _report(capsys, "export", str(leaving_run), str(tmp_path / "export"))
    ours, inputs = load_run(leaving_run)[0], _rows(leaving_run).inputs
    loaded = rl_skip.load(tmp_path / "export", tmp_path / "export" / "model")
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs), ours(inputs))
    assert loaded.last is not None and ours.last is not None and loaded.last.route.equal(ours.last.route)
    _report(capsys, "prune", str(leaving_run), str(tmp_path / "pruned"), "--layers", "0,1")
    with torch.no_grad():
        expected = rl_skip.routed_forward(ours.stack, torch.tensor([1, 1, 0, 0]).bool(), inputs).outputs
        torch.testing.assert_close(load_pruned(tmp_path / "pruned")(inputs), expected)


def test_a_run_is_pruned_and_exported(backbone_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = _report(capsys, "prune", str(backbone_run), str(tmp_path / "pruned"), "--layers", "0,3")
    assert report["removed"] == [1, 2] and report["weights"] < report["full_depth_weights"]
    pruned, (ours, _), inputs = load_pruned(tmp_path / "pruned"), load_run(backbone_run), _rows(backbone_run).inputs
    with torch.no_grad():
        torch.testing.assert_close(pruned(inputs), rl_skip.routed_forward(ours.stack, torch.tensor([1, 0, 0, 1]).bool(), inputs).outputs)
    assert transformers.AutoModel.from_pretrained(tmp_path / "pruned" / "model").config.num_hidden_layers == 2
    _report(capsys, "export", str(backbone_run), str(tmp_path / "export"))
    rl_skip.attach(transformers.AutoModel.from_pretrained(tmp_path / "export" / "model"), tmp_path / "export")


def test_a_model_keeps_its_own_head(tmp_path: Path) -> None:
    data, folder = write_table(tmp_path / "data.csv", 80), save_bert(tmp_path / "model", head=True)
    run = _train(tmp_path / "run", "--task", "text", "--data", str(data), "--model", str(folder))
    ours, inputs = load_run(run)[0], _rows(run).inputs
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    rl_skip.attach(model, run / "policy")
    assert isinstance(inputs, dict)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, ours(inputs))


def test_without_a_model_one_is_trained_from_scratch_with_its_tokenizer(tmp_path: Path) -> None:
    data = write_table(tmp_path / "data.tsv", 600)
    size = ["--layers", "4", "--width", "32", "--learning-rate", "3e-3", "--warmup-epochs", "4"]
    assert train.main(["--task", "text", "--data", str(data), "--out", str(tmp_path / "run"), "--epochs", "2", "--threads", "1", *size]) == 0
    run = tmp_path / "run"
    assert json.loads((run / "report.json").read_text())["full depth"]["accuracy"] > 0.9
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    rl_skip.attach(model, run / "policy")
    ours, inputs = load_run(run)[0], tokenizer(["the film is great", "a dull plot with some music"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
        torch.testing.assert_close(ours({name: inputs[name] for name in ("input_ids", "attention_mask")}), logits)
    assert [model.config.id2label[i] for i in logits.argmax(dim=1).tolist()] == ["1", "0"]


def test_a_run_goes_on_where_it_stood(tmp_path: Path) -> None:
    """All of it is done again from its last checkpoint: the tokenizer, the model, the policy."""
    data = write_table(tmp_path / "data.tsv", 160)
    run = _train(tmp_path / "run", "--task", "text", "--data", str(data), "--layers", "3", "--width", "16")
    before = (run / "policy" / "policy.safetensors").read_bytes()
    (run / "report.json").unlink()
    assert train.main(["--resume", str(run)]) == 0
    assert (run / "policy" / "policy.safetensors").read_bytes() == before


def test_images_with_a_model(tmp_path: Path) -> None:
    """Grey images of 8 × 8 become what a ViT for coloured ones of 12 × 12 takes."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(60) % 3)
    folder = save_vit(tmp_path / "model")
    run = _train(tmp_path / "run", "--task", "images", "--data", str(tmp_path / "data.npz"), "--model", str(folder), "--no-readouts")
    ours, inputs = load_run(run)[0], _rows(run).inputs
    assert isinstance(inputs, torch.Tensor)
    large = torch.nn.functional.interpolate(inputs / 255, (12, 12), mode="bilinear", antialias=True)
    torch.testing.assert_close(ours.stack.prepare(inputs), (large.repeat(1, 3, 1, 1) - 0.5) / 0.5)  # type: ignore[operator]
    model = transformers.AutoModelForImageClassification.from_pretrained(run / "model").eval()
    handle = rl_skip.attach(model, run / "policy")
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=ours.stack.prepare(inputs)).logits, ours(inputs))  # type: ignore[operator]
    assert ours.last is not None and handle.last_routes.equal(ours.last.route)


def test_speech_with_a_model(tmp_path: Path) -> None:
    data, folder = write_recordings(tmp_path / "data"), save_wav2vec2(tmp_path / "model")
    run = _train(tmp_path / "run", "--task", "speech", "--data", str(data), "--model", str(folder))
    ours, inputs = load_run(run)[0], _rows(run).inputs
    model = transformers.AutoModelForAudioClassification.from_pretrained(run / "model").eval()
    rl_skip.attach(model, run / "policy")
    assert isinstance(inputs, dict) and list(inputs) == ["input_values"]
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, ours(inputs))


def test_a_recording_at_another_rate_is_the_same_sound() -> None:
    def tone(rate: int) -> torch.Tensor:
        return torch.sin(torch.arange(rate) / rate * 440 * 2 * torch.pi)

    torch.testing.assert_close(resampled(tone(8000), 8000, 16000), tone(16000), atol=1e-3, rtol=0)
    torch.testing.assert_close(resampled(tone(16000), 16000, 8000), tone(8000), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "text"], "the task 'text' needs data; set --data PATH"),
        (["--task", "language"], "the task 'language' needs data; set --data PATH"),
        (["--task", "text", "--data", "data.tsv", "--model", "nowhere"], "there is no folder nowhere with a model; set --model"),
        (["--task", "text", "--data", "data.tsv", "--text-column", "words"], "no column 'words', its columns are sentence, label; set --text"),
        (["--task", "text", "--data", "data.tsv", "--stack", "skip-layer"], "builds plain blocks, not a skip-layer; leave out --stack"),
        (["--task", "text", "--data", "data.tsv", "--tune", "lora", "--layers", "3", "--width", "16"], "this needs peft"),
        (["--task", "digits", "--tune", "lora"], "adapters go into models from transformers; set --tune all"),
        (["--task", "digits", "--model", "somewhere"], "the task 'digits' builds its network itself"),
        (["--task", "language", "--data", "data.tsv", "--prompt-tokens", "200"], "a prompt of 200 tokens leaves none of 128 to count"),
        (["--task", "language", "--data", "short.txt"], "too few for rows of 128; set --data to a longer text"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_in_one_line(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path / "data.tsv", 200)
    (tmp_path / "short.txt").write_text("to be or not to be")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    assert train.main([*flags, "--out", "run", "--threads", "1"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said
    assert not (tmp_path / "run").exists()


def test_a_given_model_has_other_defaults() -> None:
    scratch, given, part = (train.read_options(["--task", "text", *flags]) for flags in ([], ["--model", "m"], ["--model", "m", "--tune", "lora"]))
    assert scratch.schedule.learning_rate == 1e-3 and given.schedule.learning_rate == 5e-5
    assert part.schedule.learning_rate > given.schedule.learning_rate and part.schedule.tune == "lora"
    jumping = train.read_options(["--task", "text", "--model", "m", "--no-readouts"])
    assert given.schedule.batch_size == jumping.schedule.batch_size == 32
    assert (given.schedule.policy_learning_rate, given.schedule.head_rate) == (3e-3, 10)
    assert (jumping.schedule.policy_learning_rate, jumping.schedule.head_rate) == (1e-3, 1), "no new heads have to settle"
    assert given.policy.readouts and not jumping.policy.readouts
    assert train.read_options(["--task", "text", "--model", "none"]) == scratch
