"""A language model that sequences leave early, copies of its head and adapters before it: trained, resumed, generated with, pruned."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import rl_skip
import train
from rl_skip.cli.main import main
from rl_skip.measure.runs import load_run
from tests.rl_skip.huggingface_models import pruned

transformers = pytest.importorskip("transformers")
ROW, PROMPT, LAYERS = 24, 8, 4
VERSE = "the cat sat on the mat, and the dog ran to the cat.\n"
KINDS = {"copies": [], "adapters": ["--readout-rank", "4"]}


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "verse.txt").write_text(VERSE * 60)
    size = ["--layers", str(LAYERS), "--width", "32", "--max-tokens", str(ROW), "--prompt-tokens", str(PROMPT), "--batch-size", "16"]
    flags = ["--readouts", "--no-jumps", *KINDS[request.param], "--warmup-epochs", "4", "--epochs", "2", "--learning-rate", "3e-3", "--threads", "1"]
    kept = ["--checkpoint-updates", "7", "--keep-checkpoints", "9"]
    assert train.main(["--task", "language", "--data", str(folder / "verse.txt"), "--out", str(folder / "run"), *size, *flags, *kept]) == 0
    return folder / "run"


def bare(run: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(run / "model").eval()


def cut(model: nn.Module, run: Path, i: int) -> Any:
    """The model that ends after layer i, with the weights that stand in the run's folder for that depth."""
    short = pruned(model, "model.layers", [layer <= i for layer in range(LAYERS)])
    weights = {name.removeprefix(f"each.{i}."): w for name, w in load_file(run / "policy" / "readouts.safetensors").items() if f"each.{i}." in name}
    if "down.weight" in weights:
        down, up, bias = (weights[name] for name in ("down.weight", "up.weight", "up.bias"))
        short.model.layers[-1].register_forward_hook(lambda _module, _args, out: out + out @ down.T @ up.T + bias)
    elif i < LAYERS - 1:
        short.model.norm.weight.data, short.lm_head.weight.data = weights["copies.model/norm.weight"], weights["copies.lm_head.weight"]
    return short


def test_readouts_learn_and_a_run_ends_where_it_was_resumed(run: Path, tmp_path: Path) -> None:
    weights = load_file(run / "policy" / "readouts.safetensors")
    for i in range(LAYERS - 1):
        if f"each.{i}.up.weight" in weights:
            assert weights[f"each.{i}.up.weight"].abs().max() > 1e-3
        else:
            assert not torch.allclose(weights[f"each.{i}.copies.lm_head.weight"], bare(run).lm_head.weight, atol=1e-3)
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "policy")
    (tmp_path / "run" / "report.json").unlink()
    for file in sorted((tmp_path / "run" / "checkpoints").glob("update-*.pt"))[2:]:
        file.unlink()
    assert train.main(["--resume", str(tmp_path / "run"), "--threads", "1"]) == 0
    again = load_file(tmp_path / "run" / "policy" / "readouts.safetensors")
    assert all(tensor.equal(again[name]) for name, tensor in weights.items()) and again.keys() == weights.keys()


def test_the_policy_looks_at_the_last_token_of_the_prompt(run: Path) -> None:
    model, task = load_run(run)
    ids = task.load("test").inputs["input_ids"][:6]  # type: ignore[index, call-overload]
    seen: list[torch.Tensor] = []
    model.policy.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        model({"input_ids": ids})
        first = seen[0]
        changed = ids.clone()
        changed[:, PROMPT:] = changed[:, PROMPT:].flip(1)
        seen.clear()
        model({"input_ids": changed})
        torch.testing.assert_close(seen[0], first)
        p = cut(bare(run), run, 0)(input_ids=ids[:, :PROMPT]).logits[:, -1].softmax(dim=1)
    largest = p.sort(dim=1, descending=True).values
    torch.testing.assert_close(first[:, 2], largest[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first[:, 4], largest[:, 0] - largest[:, 1], atol=1e-5, rtol=1e-4)


def test_each_sequence_is_gone_on_with_by_the_model_cut_at_its_exit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = bare(run), transformers.AutoTokenizer.from_pretrained(run / "model")
    inputs = tokenizer(["the cat sat"] * LAYERS, return_tensors="pt", return_token_type_ids=False)
    settings: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}
    expected = [cut(model, run, i).generate(**{name: x[:1] for name, x in inputs.items()}, **settings) for i in range(LAYERS)]
    handle = rl_skip.attach(copied := copy.deepcopy(model), run / "policy")
    with handle.forced(torch.ones(LAYERS, LAYERS).tril().bool()):
        assert copied.generate(**inputs, **settings).equal(torch.cat(expected))
    for price in (0.0, 10.0):
        handle.price = price
        generated = copied.generate(**{name: x[:1] for name, x in inputs.items()}, **settings)
        left = int(handle.last_routes[0].sum()) - 1
        assert handle.last_routes[0].tolist() == [i <= left for i in range(LAYERS)]
        assert generated.equal(expected[left])
    capsys.readouterr()
    words = ["generate", str(run), "the cat sat", "--tokens", "20", "--temperature", "0", "--price", "10", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["text"] == tokenizer.decode(generated[0])


def test_a_route_that_leaves_early_is_pruned_to_the_cut_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prune", str(run), str(tmp_path / "pruned"), "--layers", "0,1", "--threads", "1"]) == 0
    ids = load_run(run)[1].load("test").inputs["input_ids"][:5]  # type: ignore[index, call-overload]
    with torch.no_grad():
        expected = cut(bare(run), run, 1)(input_ids=ids).logits
        torch.testing.assert_close(rl_skip.load_pruned(tmp_path / "pruned")({"input_ids": ids}), expected, atol=1e-5, rtol=1e-5)
    adapters = "--readout-rank" in KINDS[run.parent.name.rstrip("0123456789")]
    card = (tmp_path / "pruned" / "README.md").read_text()
    assert ("has an adapter" in card) == adapters and "generate path/to/this/folder PROMPT" in card
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    inputs = tokenizer("the cat sat", return_tensors="pt", return_token_type_ids=False)
    generated = cut(bare(run), run, 1).generate(**inputs, max_new_tokens=20, do_sample=False)
    capsys.readouterr()
    words = ["generate", str(tmp_path / "pruned"), "the cat sat", "--tokens", "20", "--temperature", "0"]
    assert main([*words, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["text"] == tokenizer.decode(generated[0]) and said["layers"] == [0, 1] and said["compute"] < 0.6
    assert main([*words, "--price", "1"]) == 2
    assert "is a pruned network, which has one route" in capsys.readouterr().err


def test_thresholds_on_the_readouts_are_set_beside_the_policy(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["compare", str(run), "--rows", "6", "--json", "--threads", "1"]) == 0
    curves = {curve["name"]: curve for curve in json.loads(capsys.readouterr().out)["curves"]}
    name = next(name for name in curves if "threshold" in name)
    computes = [point["compute"] for point in curves[name]["points"]]
    assert min(computes) < 0.5 and max(computes) > 1
