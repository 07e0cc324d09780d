"""The six examples of one's own, named `file.py:name` on the command line: trained, resumed, exported, loaded, measured, pruned, compared."""

import ast
import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import rl_skip
import train
from agents.run.run_folder import SEALED
from benchmarks.kill import differences
from envs import EnvOptions
from examples.own_baseline import two_heads
from examples.own_feature import ChangeNorm
from rl_skip import NetworkConfig, Task
from rl_skip.cli.main import main
from rl_skip.core.seal import seal
from rl_skip.measure.compare.measured import Bench
from rl_skip.measure.compare.rows import Rows
from rl_skip.measure.runs import load_run, read_run

TOP = Path(__file__).resolve().parents[1]
OWN = sorted(file for file in (TOP / "examples").glob("own_*.py") if not file.stem.startswith("own_loop"))
"""Parts of one's own; training in a loop of one's own is tested in test_examples_own_loop.py."""
BASELINE = "examples/own_baseline.py:two_heads"
SHORT = ("--train-rows", "256", "--warmup-epochs", "1", "--epochs", "2", "--threads", "1", "--device", "cpu", "--checkpoint-updates", "4")
SMALL = ("--layers", "4", "--width", "16")


@dataclass(frozen=True)
class Kind:
    """How one kind of plugin is named, what it leaves in config.json, and what whoever has the export alone must give."""

    flags: tuple[str, ...]
    place: tuple[str, ...]
    gives: Callable[[Task, NetworkConfig], dict[str, Any]] = lambda task, network: {}


KINDS = {
    "agent": Kind(("--agent", "examples/own_agent.py:MovingAverage", "--decay", "0.9", *SMALL), ("agent",)),
    "reward": Kind(("--reward", "examples/own_reward.py:Energy", "--price", "0.3", *SMALL), ("pricing", "reward")),
    "feature": Kind(
        ("--feature", "hidden", "--feature", "examples/own_feature.py:ChangeNorm", *SMALL),
        ("policy", "feature"),
        lambda task, network: {"features": [ChangeNorm()]},
    ),
    "stack": Kind(
        ("--stack", "examples/own_stack.py:mixer", *SMALL), ("network", "stack"), lambda task, network: {"stack": task.build(network)}
    ),
    "task": Kind(("--task", "examples/own_task.py:longest_run"), ("task", "name"), lambda task, network: {"stack": task.build(network)}),
}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def run(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(kind) / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(TOP)
        assert train.main([*KINDS[kind].flags, *SHORT, "--out", str(folder)]) == 0
    return folder


def report(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, words), "--json", *(["--allow-code"] if words[0] != "info" else [])]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_names_it_by_its_whole_path_and_reports_what_the_run_measures(kind: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads((run / "config.json").read_text())
    for part in KINDS[kind].place:
        said = said[part]
    assert str(TOP / "examples" / f"own_{kind}.py") in str(said)
    finished, measured = json.loads((run / "report.json").read_text())["policy"], report(capsys, "eval", run, "--device", "cpu")
    for number in ("accuracy", "compute", "reward"):
        assert measured[number] == pytest.approx(finished[number])
    described = report(capsys, "info", run)
    assert described["policy"]["depth"] == (6 if kind == "task" else 4)


def test_it_is_exported_and_loaded(kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(capsys, "export", run, tmp_path / "policy")
    expected, task = load_run(run, allow_code=True)
    model = rl_skip.load(tmp_path / "policy", **KINDS[kind].gives(task, read_run(run, allow_code=True).network))
    inputs = task.load("test").inputs
    assert torch.equal(model(inputs), expected(inputs))
    assert torch.equal(model.last.route, expected.last.route)


def test_two_sittings_equal_one(kind: str, run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.rmtree(folder / "policy")
    (folder / "report.json").unlink()
    checkpoints = sorted(folder.glob("checkpoints/update-*.pt"))
    assert len(checkpoints) == 3
    checkpoints[-1].unlink()
    assert train.main(["--resume", str(folder), "--allow-code"]) == 0
    assert differences(run, folder) == []
    if kind == "agent":
        averages = [torch.load(file, weights_only=True)["agent"]["average"] for file in checkpoints[1:2] + sorted(folder.glob("checkpoints/*"))[-1:]]
        assert averages[0] != averages[1], "the average must have been at work"


def test_what_a_run_names_is_not_run_unless_it_is_allowed(kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of a stranger, whose file would leave a mark."""
    folder, mark, file = Path(shutil.copytree(run, tmp_path / "run")), tmp_path / "mark", tmp_path / "theirs.py"
    file.write_text(f"open({str(mark)!r}, 'w')\n" + (TOP / "examples" / f"own_{kind}.py").read_text())
    for named in (folder / "config.json", folder / "policy" / "policy.json"):
        named.write_text(named.read_text().replace(str(TOP / "examples" / f"own_{kind}.py"), str(file)))
    seal(folder, [file.name for file in folder.iterdir() if file.suffix in SEALED])  # as anybody can
    seal(folder / "policy")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    for words in (["eval"], ["compare"], ["prune", tmp_path / "cut"], ["export", tmp_path / "copy"]):
        assert main([words[0], str(folder), *map(str, words[1:])]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"names Python that would be run: {file}; read it, then allow it with --allow-code" in said
    assert train.main(["--resume", str(folder)]) == 2
    assert "names Python that would be run" in capsys.readouterr().err
    assert train.main(["compare", str(folder), "--train-baselines"]) == 2
    assert "names Python that would be run" in capsys.readouterr().err
    with pytest.raises(rl_skip.UserError, match="allow_code=True"):
        EnvOptions(run=folder).core(1)
    report(capsys, "info", folder)
    assert not mark.exists() and before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    report(capsys, "eval", folder, "--device", "cpu")
    assert mark.exists() or kind == "agent", "allowed, it is run; an agent only trains"


def test_it_is_pruned(kind: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = report(capsys, "prune", run, tmp_path / "pruned", "--layers", "0,2", "--device", "cpu")
    assert cut["weights"] < cut["full_depth_weights"] and 0 <= cut["accuracy"] <= 1


def test_it_is_compared_beside_an_own_baseline(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(TOP)
    compared = report(capsys, "compare", run, "--rows", "60", "--baseline", BASELINE, "--device", "cpu")
    assert {"policy", "fixed", "oracle", "two-heads"} <= {curve["name"] for curve in compared["curves"]}
    assert compared["operating"] and "two heads agree" in (run / "compare.md").read_text()


def test_a_command_line_of_its_own_takes_all_that_fit_together(tmp_path: Path) -> None:
    together = [word for kind in ("agent", "reward", "feature", "stack") for word in KINDS[kind].flags if word not in SMALL]
    words = ["train.py", *together, *SMALL, *SHORT, "--out", str(tmp_path / "run")]
    for command in (words, ["-m", "rl_skip", "compare", str(tmp_path / "run"), "--allow-code", "--rows", "40", "--baseline", BASELINE]):
        done = subprocess.run([sys.executable, *command], cwd=TOP, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "two heads agree" in done.stdout


# -------------------------------------------------------------------------------------------------- what the examples say


@pytest.mark.parametrize("kind", ["reward"], indirect=True)
def test_energy_is_what_a_run_reports(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, task = load_run(run, allow_code=True)
    rows = task.load("test")
    right = model(rows.inputs).argmax(dim=1).eq(rows.labels).double()
    energy = torch.tensor([0.2 + 0.8 * compute**1.5 for compute in model.last.compute.double().tolist()], dtype=torch.float64)
    assert report(capsys, "eval", run, "--device", "cpu")["reward"] == pytest.approx(float((right - 0.3 * energy).mean()))
    assert "0.8 · compute^1.5" in (run / "policy" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["agent"], indirect=True)
def test_rows_leave_where_two_heads_agree(run: Path) -> None:
    model, task = load_run(run, allow_code=True)
    part, depth = Rows.load(task, "cpu", 40), model.stack.depth
    ways = two_heads.measure(Bench(model, task, part, (), ()))
    assert list(ways) == [f"from layer {first}" for first in range(1, depth)]
    inputs, left = part.test.inputs, set()
    states = rl_skip.hidden_states(model.stack, part.test, batch_size=7)
    full = rl_skip.routed_forward(model.stack, torch.ones(depth).bool(), inputs).outputs
    for first, router in enumerate(ways.values(), start=1):
        with torch.no_grad():
            rollout = rl_skip.routed_forward(model.stack, router, inputs)
            for row in range(40):
                said = [head(states[row, i]) for i, head in enumerate(router.heads)]
                agree = [i for i in range(first, depth - 1) if said[i].argmax() == said[i - 1].argmax()]
                ran, expected = (agree[0] + 1, said[agree[0]]) if agree else (depth, full[row])
                assert int(rollout.route[row].sum()) == ran
                torch.testing.assert_close(rollout.outputs[row], expected, atol=1e-5, rtol=1e-5)
                asked = min(ran, depth - 1) * 2 * 16 * 10 / float(model.stack.layer_flops.sum())
                assert float(rollout.compute[row]) == pytest.approx(ran / depth + asked, abs=1e-6)
                left.add(ran)
    assert len(left) > 2, "rows must leave after different layers"


@pytest.mark.parametrize("file", OWN, ids=lambda file: file.stem)
def test_an_example_has_at_most_40_lines_and_imports_public_names_alone(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 40
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= {"torch"}
        elif isinstance(node, ast.ImportFrom):
            room, _, module = str(node.module).partition(".")
            assert room in ("agents", "rl_skip", "torch", "dataclasses", "typing")
            if room in ("agents", "rl_skip"):
                assert not module, "all that is public is at the top"
            if room in ("agents", "rl_skip"):
                assert {alias.name for alias in node.names} <= set(importlib.import_module(str(node.module)).__all__)


def test_there_are_six_examples() -> None:
    assert [file.stem for file in OWN] == sorted(f"own_{kind}" for kind in (*KINDS, "baseline"))
