"""The code in README and docs/ runs as it stands there, page by page; what cannot run here says which data it needs."""

import contextlib
import io
import re
import shutil
import tomllib
from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rl_skip
import train
from agents import TrainConfig
from rl_skip.cli import main as command_line
from rl_skip.core.fields import flat
from rl_skip.nets.network import NetworkConfig, build_network
from rl_skip.tasks import load_task
from tests.conftest import FinishedRun
from tests.pages import PAGES, TOP, Block, blocks

PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]
BASH = [page for page in PAGES if any(block.language == "bash" for block in blocks(page))]
ELSEWHERE = {"export.md": "tests/rl_skip/export/test_graphs.py"}
"""Pages whose Python runs in another test, beside what it needs."""
OTHERS = {".", "curl", "export", "pytest", "mypy", "python3", "ruff", "tensorboard"}
"""Programs that are not ours."""
RUN = {"eval", "info", "export", "prune"}
"""Commands of rl-skip that are carried out where their run is there; the others are read alone."""
OPTIONS = {f"--{no}{path.rpartition('/')[2].replace('_', '-')}" for path in flat(TrainConfig().to_json()) for no in ("", "no-")}
"""The flags of train.py."""
TEXTS = [("a great film", 1), ("a dull plot", 0), ("some great music", 1), ("the actors and a poor plot", 0)] * 12


@pytest.fixture(scope="module")
def home(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages speak of: a run on digits, a checkpoint, files of a person's own."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(finished_run.folder, folder / "runs" / "digits-reinforce-0")
    for name in ("examples", "benchmarks"):
        folder.joinpath(name).symlink_to(TOP / name)
    (task,) = [block.code for block in blocks(TOP / "docs" / "own-task.md") if block.code.startswith("# my_task.py")]
    folder.joinpath("my_task.py").write_text(task, encoding="utf-8")
    np.savez(folder / "my_data.npz", images=np.zeros((20, 32, 32), dtype=np.uint8), labels=np.arange(20) % 2)
    folder.joinpath("my_file.py").write_text("from agents.baselines.exits import Exits as MyBaseline\n")
    return folder


def trained_on_texts(folder: Path) -> None:
    """A checkpoint, and a short run on it, `runs/mine`."""
    models = pytest.importorskip("tests.rl_skip.pretrained_folders")
    checkpoint = models.save_bert(folder / "path" / "to" / "checkpoint", head=True)
    table = models.write_table(folder / "texts.csv", 60)
    options = ["--warmup-epochs", "1", "--epochs", "1", "--policy-epochs", "2", "--threads", "1", "--out", str(folder / "runs" / "mine")]
    assert train.main(["--task", "text", "--data", str(table), "--model", str(checkpoint), *options]) == 0


def batches(folder: Path) -> list[dict[str, Any]]:
    """Of texts with labels, as a person's own loader gives them."""
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder / "path" / "to" / "checkpoint")
    texts, labels = [text for text, _ in TEXTS], torch.tensor([label for _, label in TEXTS])
    whole = {**tokenizer(texts, padding=True, return_tensors="pt"), "labels": labels}
    return [{name: tensor[i : i + 16] for name, tensor in whole.items()} for i in range(0, len(texts), 16)]


@pytest.mark.parametrize("page", [page for page in PYTHON if page.name not in ELSEWHERE], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a page share their names, as for someone who copies them one after another."""
    monkeypatch.chdir(home)
    for folder in ("my-policy", "loop"):  # another page's
        shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": page.stem}
    if page.name in ("README.md", "own-model.md", "own-loop.md") and not home.joinpath("runs", "mine").exists():
        trained_on_texts(home)
    if page.name == "README.md":  # "your batches"
        names["loader"] = names["validation"] = batches(home)
    for block in blocks(page):
        if block.language == "python":
            code = compile(block.code, str(block), "exec")
            if block.needs is None:
                exec(code, names)
    CHECKS.get(page.name, lambda names: None)(names)


def a_policy_at_a_budget(names: dict[str, Any]) -> None:
    """The answers of the last budget that was set are those of its price."""
    model = names["model"] if isinstance(names["model"], rl_skip.SkipModel) else rl_skip.load("runs/digits-reinforce-0/policy", budget=0.3)
    inputs = load_task("digits").load("test").inputs
    rollout = rl_skip.routed_forward(model.stack, model.policy, inputs, price=model.price)
    torch.testing.assert_close(model(inputs), rollout.outputs)
    assert names["logits"].shape[0] in (1, len(inputs))


def a_policy_of_ones_own_loop(names: dict[str, Any]) -> None:
    """The model that was saved is bare and trained, and the policy that was saved routes it."""
    classifier = pytest.importorskip("transformers").AutoModelForSequenceClassification
    weights, begun = (classifier.from_pretrained(folder).state_dict() for folder in ("loop/model", "path/to/checkpoint"))
    assert weights.keys() == begun.keys() and not all(torch.equal(weights[name], begun[name]) for name in begun)
    assert not hasattr(names["model"], "rl_skip")
    handle = rl_skip.from_pretrained("loop")
    (batch, *_) = names["validation"]
    handle.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert handle.last_routes.shape == (len(batch["labels"]), 4) and handle.last_compute.max() < 1.5
    assert not Path("loop", "policy", "model.safetensors").exists()


def an_attached_policy(names: dict[str, Any]) -> None:
    """The model is bare again at the end, and its layers ran all on the way."""
    model, inputs = names["model"], names["inputs"]
    bare = type(model).from_pretrained("runs/mine/model").eval()
    torch.testing.assert_close(model(**inputs).logits, bare(**inputs).logits, rtol=0, atol=0)
    assert names["stack"].depth == 4


def an_agent_that_learned(names: dict[str, Any]) -> None:
    assert names["agent"].num_timesteps >= 10_000
    assert len(names["agent"].ep_info_buffer or ()) > 0


def a_drop_in_that_learns(names: dict[str, Any]) -> None:
    jmp = names["jmp"]
    assert isinstance(jmp, rl_skip.SkipLayer) and jmp.logs["jumps"].shape == (32, 6)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in jmp.policy.fc_out.parameters())


def a_task(names: dict[str, Any]) -> None:
    task = load_task("my_task.py:my_task", "my_data.npz")
    assert [len(task.load(split)) for split in ("train", "validation", "test")] == [12, 4, 4]  # type: ignore[arg-type]
    network = build_network(NetworkConfig(layers=3, width=8, heads=2), task.embedding, task.tokens, len(task.classes))
    assert rl_skip.routed_forward(network, torch.ones(3, dtype=torch.bool), task.load("test").inputs).outputs.shape == (4, 2)


def parts(names: dict[str, Any]) -> None:
    """The reward charges the second half of the layers more, and all are what they must be to be named on the command line."""
    reward = names["Squared"]()
    assert reward.total(torch.tensor(1.0), torch.tensor(0.5), 0.4) == pytest.approx(0.9)
    assert issubclass(names["Norm"], rl_skip.Feature) and isinstance(names["alternating"], rl_skip.MeasuredBaseline)
    route = names["every_other"](Namespace(stack=Namespace(depth=5)))["layers 0, 2, 4, …"]
    assert route.tolist() == [True, False, True, False, True]
    advantage = names["Plain"].advantage(None, None, torch.tensor([1.0, 0.0]), None)
    assert advantage.tolist() == [[0.5], [-0.5]]


CHECKS = {
    "README.md": lambda names: (a_policy_at_a_budget(names), a_policy_of_ones_own_loop(names)),
    "loading.md": a_policy_at_a_budget,
    "own-loop.md": a_policy_of_ones_own_loop,
    "own-model.md": an_attached_policy,
    "environment.md": an_agent_that_learned,
    "original-module.md": a_drop_in_that_learns,
    "own-task.md": a_task,
    "own-parts.md": parts,
}
"""What is to be seen once a page has run, by the page."""


@pytest.mark.parametrize("page", BASH, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_understood(page: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the parsers of the programs themselves; those that measure or copy a run that is there are carried out."""
    monkeypatch.chdir(home)
    for block in blocks(page):
        if block.language == "bash":
            for words in block.commands:
                understand(words, block)


def understand(words: list[str], block: Block) -> None:
    """Fails if a program would refuse the command."""
    match words:
        case ["python", "train.py", "compare", *rest]:
            command_line.compare_parser("train.py compare", lambda _options: {}, "").parse_args(rest)
        case ["python", "train.py", *rest] if "--help" in rest:
            with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
                train.read_options(rest)
            assert ended.value.code == 0
        case ["python", "train.py", *rest]:
            train.read_options(rest)
        case ["torchrun" | "accelerate", *_] if "train.py" in words:
            understand(["python", *words[words.index("train.py") :]], block)
        case ["rl-skip", *rest] | ["python", "-m", "rl_skip", *rest]:
            measure_or_copy(rest, block)
        case ["python", script, *rest]:
            source = TOP.joinpath(script).read_text(encoding="utf-8")
            passed_on = OPTIONS if "parse_known_args" in source else set()
            flags = [word for word in rest if word.startswith("--")]
            assert [flag for flag in flags if f'"{flag}"' not in source and flag not in passed_on] == [], block
        case ["make", *rest]:
            makefile = TOP.joinpath("Makefile").read_text(encoding="utf-8")
            rules = [f"^{re.escape(word.partition('=')[0])} \\?=" if "=" in word else f"^{re.escape(word)}:" for word in rest]
            assert all(re.search(rule, makefile, re.M) for rule in rules), f"{block}: {words}"
        case ["pip", "install", *rest]:
            extras = tomllib.loads(TOP.joinpath("pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert all(name in extras for word in rest for group in re.findall(r"\[(.+)\]", word) for name in group.split(",")), block
        case [program, *_] if program in OTHERS:
            pass
        case _:
            pytest.fail(f"{block}: no rule knows {words}")


@cache
def _options(*words: str) -> Namespace:
    return command_line._parser().parse_args(list(words))


def measure_or_copy(words: list[str], block: Block) -> None:
    """Reads a command of rl-skip, and carries it out where its run is there."""
    options = _options(*words)
    run = getattr(options, "run", None) or options.folder
    if words[0] not in RUN or not isinstance(run, Path) or not run.exists() or {"--guarantee", "--format"} & set(words):
        return
    if words[0] in ("export", "prune"):
        shutil.rmtree(options.folder, ignore_errors=True)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert command_line.main(words) == 0, block
    assert printed.getvalue().strip()


def test_what_runs_elsewhere_does() -> None:
    assert [name for name, test in ELSEWHERE.items() if name not in TOP.joinpath(test).read_text(encoding="utf-8")] == []
