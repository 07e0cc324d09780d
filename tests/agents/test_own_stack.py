"""A stack of one's own: where its file is run and where not, what it can do, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import rl_skip
import train
from envs import EnvOptions
from examples.own_stack import mixer
from rl_skip import NetworkConfig, UserError
from rl_skip.cli.main import main
from rl_skip.core.seal import seal
from rl_skip.export.policy_folder import read_description
from rl_skip.export.pruned import load_pruned
from rl_skip.measure.runs import load_run
from rl_skip.nets.network import STACKS, build_network
from rl_skip.tasks import load_task

OWN = Path(__file__).resolve().parents[2] / "examples" / "own_stack.py"
NAME = f"{OWN}:mixer"
SIZE = ["--layers", "4", "--width", "16"]


def options(out: Path, *words: str) -> list[str]:
    short = ["--train-rows", "200", "--warmup-epochs", "1", "--epochs", "1", "--threads", "1", "--device", "cpu"]
    return ["--task", "digits", *SIZE, *short, "--out", str(out), *words]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "own"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(OWN.parents[1])
        assert train.main(options(folder, "--stack", "examples/own_stack.py:mixer")) == 0
    return folder


def report(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    capsys.readouterr()
    assert main([*map(str, words), "--json", *(["--allow-code"] if words[0] != "info" else [])]) == 0
    return json.loads(capsys.readouterr().out)


def fresh() -> rl_skip.LayerStack:
    task = load_task("digits")
    return mixer(NetworkConfig(layers=4, width=16), task.embedding.build(16), task.tokens, 10)


def test_a_run_names_the_file_by_its_whole_path_and_is_found_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads((finished / "config.json").read_text())["network"]["stack"] == NAME
    model, task = load_run(finished, allow_code=True)
    assert {type(layer).__name__ for layer in model.stack.layers} == {"MixerBlock"}
    found = report(capsys, "eval", finished, "--device", "cpu")
    test = task.load("test")
    with torch.no_grad():
        assert found["accuracy"] == pytest.approx(float((model(test.inputs).argmax(dim=1) == test.labels).float().mean()))
    assert report(capsys, "info", finished)["policy"]["network"]["stack"] == NAME


def test_a_bare_folder_runs_no_file_and_asks_for_the_stack(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(capsys, "export", finished, tmp_path / "copy")
    assert ", stack)" in (tmp_path / "copy" / "README.md").read_text()
    trap = tmp_path / "trap.py"
    trap.write_text("raise SystemExit('the file was run')\n")
    described = json.loads((tmp_path / "copy" / "policy.json").read_text())
    described["network"]["stack"] = f"{trap}:mixer"
    (tmp_path / "copy" / "policy.json").write_text(json.dumps(described))
    seal(tmp_path / "copy")
    with pytest.raises(UserError, match="a stack of your own, .*trap.py:mixer, whose file is not run by itself; .* stack=") as refused:
        rl_skip.load(tmp_path / "copy")
    assert "\n" not in str(refused.value)
    assert report(capsys, "info", tmp_path / "copy")["network_weights"] > 0, "counted from the file alone"
    images = load_task("digits").load("test").inputs
    assert torch.equal(rl_skip.load(tmp_path / "copy", fresh())(images), load_run(finished, allow_code=True)[0](images))


def test_a_stack_that_is_registered_needs_no_file(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STACKS, "_registered", dict(STACKS._registered))
    copy = Path(shutil.copytree(finished / "policy", tmp_path / "copy"))
    described = json.loads((copy / "policy.json").read_text())
    (copy / "policy.json").write_text(json.dumps({**described, "network": {**described["network"], "stack": "mixer"}}))
    seal(copy)
    with pytest.raises(UserError, match="policy.json: there is no stack 'mixer'; set --stack to blocks, skip-layer, or file.py:name"):
        rl_skip.load(copy)
    STACKS.register("mixer", mixer)
    images = load_task("digits").load("test").inputs
    assert torch.equal(rl_skip.load(copy)(images), load_run(finished, allow_code=True)[0](images))


def test_it_is_pruned_and_the_pruned_folder_asks_for_the_stack(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, "prune", finished, tmp_path / "pruned", "--layers", "0,2", "--device", "cpu")
    assert found["weights"] < found["full_depth_weights"]
    assert ", stack)" in (tmp_path / "pruned" / "README.md").read_text()
    with pytest.raises(UserError, match="whose file is not run by itself"):
        load_pruned(tmp_path / "pruned")
    network, test = load_pruned(tmp_path / "pruned", fresh()), load_task("digits").load("test")
    with torch.no_grad():
        assert found["accuracy"] == pytest.approx(float((network(test.inputs).argmax(dim=1) == test.labels).float().mean()))


def test_heads_of_its_own_are_found_for_confidence_exits_and_for_tuning(tmp_path: Path) -> None:
    assert train.main(options(tmp_path / "exits", "--stack", NAME, "--agent", "exits")) == 0
    assert train.main(options(tmp_path / "head", "--stack", NAME, "--tune", "head")) == 0


def test_an_environment_takes_the_name() -> None:
    core = EnvOptions(task="digits", stack=NAME, layers=4, width=16).core(3)
    assert {type(layer).__name__ for layer in core.stack.layers} == {"MixerBlock"}


def test_a_task_with_an_embedding_of_its_own_takes_a_stack_of_ones_own() -> None:
    stack = build_network(NetworkConfig(3, 8, 2, stack=NAME), lambda width: nn.Linear(3, width), 5, 2)
    outputs = stack.finish(stack.begin(torch.zeros(4, 5, 3)))
    assert outputs.shape == (4, 2)


OTHERS = """
from examples.own_stack import mixer
from dataclasses import replace
def fails(config, embed, tokens, classes):
    raise KeyError("no such thing")
def module(config, embed, tokens, classes):
    return embed
def shallow(config, embed, tokens, classes):
    return mixer(replace(config, layers=2), embed, tokens, classes)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tower", "there is no stack 'tower'; set --stack to blocks, skip-layer, or file.py:name for one of your own"),
        ("nowhere.py:mixer", "there is no file .*nowhere.py with a stack"),
        ("others.py:absent", "others.py has no stack 'absent'"),
        ("others.py:fails", "others.py:fails failed: KeyError"),
        ("others.py:module", "others.py:module returned _Patches, not a rl_skip.LayerStack"),
        ("others.py:shallow", "others.py:shallow has 2 layers of width 16; build config.layers of config.width"),
    ],
)
def test_what_is_no_stack_is_refused_in_one_line(name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "others.py").write_text(OTHERS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as refused:
        load_task("digits").build(NetworkConfig(4, 16, stack=name))
    assert "\n" not in str(refused.value)


def test_the_description_is_checked_as_any_other(finished: Path) -> None:
    assert read_description(finished / "policy").network == {
        "layers": 4, "width": 16, "heads": 4, "stack": NAME, "body": "attention", "dropout": 0.0, "tied": False,
        "embedding": read_description(finished / "policy").network["embedding"], "tokens": 8, "classes": 10,
    }  # fmt: skip
