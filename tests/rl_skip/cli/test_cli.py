import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import rl_skip
from rl_skip import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.cli.main import _flat, _in_short, main
from rl_skip.core.forward import routed_forward
from rl_skip.core.seal import seal
from rl_skip.nets.network import NetworkConfig, build_network, network_to_json
from rl_skip.tasks import load_task
from tests.rl_skip.run_config import run_config

CONFIG = NetworkConfig(layers=4, width=16, heads=2)
PRICE = 0.1
TABLE = [(1.0, 0.3, 0.08), (0.1, 0.5, 0.09), (0.01, 0.9, 0.095)]
OWN_TASK = """
import torch
from rl_skip.core.task import Examples, Task
def signs(path):
    def load(split):
        x = torch.randn({"train": 30, "validation": 20, "test": 25}[split], 5, 3, generator=torch.Generator().manual_seed(len(split)))
        return Examples(x, (x.sum(dim=(1, 2)) > 0).long())
    return Task("signs", ("minus", "plus"), load, embedding=lambda width: torch.nn.Linear(3, width), tokens=5)
"""


def write_run(folder, task_name, data=None):
    """A run folder as training leaves it, with a network that nobody trained and a policy that sends rows different ways."""
    task = load_task(task_name, data)
    torch.manual_seed(1)
    stack = build_network(CONFIG, task.embedding, task.tokens, len(task.classes)).eval()
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(stack.width, stack.depth))).eval()
    nn.init.normal_(policy.fc_out.weight, std=1.0)
    nn.init.normal_(policy.fc_in.weight, std=1.0)
    network = network_to_json(CONFIG, task.embedding, task.tokens, len(task.classes))
    rl_skip.save(folder / "policy", policy, stack=stack, network=network, price=PRICE, price_table=TABLE, trained_on={"task": task.name})
    config = {**run_config(task_name, CONFIG, data), "agent": "reinforce", "seed": 0}
    (folder / "config.json").write_text(json.dumps(config))
    return stack, policy, task


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return folder, *write_run(folder, "digits")


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


def report(capsys, *words):
    """What a command prints with --json, which must be the only thing on standard output."""
    assert main([*map(str, words), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)


def complaint(capsys, *words):
    """The one line that a command refuses with."""
    assert main([*map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize("split", ["test", "validation"])
def test_eval_agrees_with_a_routed_forward_of_one_row_at_a_time(capsys, trained, split):
    folder, stack, policy, task = trained
    words = ["--split", "validation"] if split == "validation" else []
    found = report(capsys, "eval", folder, *words, "--device", "cpu")
    examples = task.load(split)
    correct, compute, full, routes = [], [], [], set()
    with torch.no_grad():
        for n in range(len(examples)):
            one = examples.take(slice(n, n + 1))
            rollout = routed_forward(stack, policy, one.inputs, price=PRICE)
            correct.append(rollout.outputs.argmax() == one.labels[0])
            compute.append(float(rollout.compute))
            full.append(routed_forward(stack, torch.ones(4), one.inputs).outputs.argmax() == one.labels[0])
            routes.add(tuple(rollout.route[0].tolist()))
    assert found.keys() == {"accuracy", "compute", "reward", "price", "rows", "split", "full_depth_accuracy", "distinct_routes"}
    assert found["rows"] == len(examples)
    assert found["accuracy"] == pytest.approx(sum(map(float, correct)) / len(examples))
    assert found["compute"] == pytest.approx(sum(compute) / len(examples), rel=1e-5)
    assert found["full_depth_accuracy"] == pytest.approx(sum(map(float, full)) / len(examples))
    assert found["reward"] == pytest.approx(found["accuracy"] - PRICE * found["compute"])
    assert (found["distinct_routes"], found["split"], found["price"]) == (len(routes), split, PRICE)
    assert found["distinct_routes"] > 1


def test_eval_takes_a_price_or_a_budget(capsys, trained):
    folder = trained[0]
    assert report(capsys, "eval", folder, "--price", "0")["price"] == 0.0
    cheap, dear = (report(capsys, "eval", folder, "--price", price) for price in ("0.001", "10"))
    assert cheap["compute"] != dear["compute"]
    assert report(capsys, "eval", folder, "--budget", "0.5")["price"] == pytest.approx(0.1)
    assert "0.3000" in complaint(capsys, "eval", folder, "--budget", "0.2")


def test_eval_does_not_depend_on_the_batch_size(capsys, trained):
    large, small = (report(capsys, "eval", trained[0], "--batch-size", size, "--device", "cpu") for size in ("1000", "7"))
    assert large.pop("split") == small.pop("split") == "test"
    assert small == pytest.approx(large, rel=1e-5)


def test_eval_reads_a_task_of_ones_own(capsys, tmp_path):
    (tmp_path / "mine.py").write_text(OWN_TASK)
    stack, policy, task = write_run(tmp_path / "run", f"{tmp_path / 'mine.py'}:signs")
    test = task.load("test")
    with torch.no_grad():
        rollout = routed_forward(stack, policy, test.inputs, price=PRICE)
    found = report(capsys, "eval", tmp_path / "run", "--device", "cpu", "--allow-code")
    assert found["rows"] == 25
    assert found["accuracy"] == pytest.approx(float((rollout.outputs.argmax(dim=1) == test.labels).float().mean()))
    assert found["compute"] == pytest.approx(float(rollout.compute.mean()), rel=1e-5)
    assert report(capsys, "export", tmp_path / "run", tmp_path / "copy", "--allow-code")["folder"] == str(tmp_path / "copy")
    weights = sum(parameter.numel() for parameter in stack.parameters())
    assert report(capsys, "info", tmp_path / "copy")["network_weights"] == weights


def test_export_makes_a_folder_that_loads(capsys, run, tmp_path):
    found = report(capsys, "export", run, tmp_path / "new" / "shipped")
    assert found["files"] == ["README.md", "SHA256SUMS", "model.safetensors", "policy.json", "policy.safetensors"]
    images = torch.randn(9, 8, 8)
    assert torch.equal(rl_skip.load(tmp_path / "new" / "shipped")(images), rl_skip.load(run / "policy")(images))


def test_export_overwrites_nothing(capsys, run, tmp_path):
    (tmp_path / "there").mkdir()
    assert "exists" in complaint(capsys, "export", run, tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []
    (run / "policy" / "policy.safetensors").write_bytes(b"short")
    assert "policy.safetensors" in complaint(capsys, "export", run, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_export_writes_a_route_as_a_graph_that_answers_as_the_network_does(capsys, trained, tmp_path):
    pytest.importorskip("numpy")
    folder, stack, _, task = trained
    words = ["--format", "torch-export", "--layers", "0,2"]
    found = report(capsys, "export", folder, tmp_path / "graphs", *words)
    assert found["files"] == ["graphs.json", "route.pt2"] and found["largest_difference"] < 1e-4
    inputs = task.load("test").take(slice(0, 9)).inputs
    with torch.no_grad():
        expected = routed_forward(stack, torch.tensor([1, 0, 1, 0]), inputs).outputs
    torch.testing.assert_close(torch.export.load(tmp_path / "graphs" / "route.pt2").module()(inputs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--one-row"], "--one-row is for graphs; set --format"),
        (["--format", "torch-export"], "set --layers or --exits"),
        (["--format", "torch-export", "--one-row"], "set --layers or --exits"),
        (["--format", "onnx", "--layers", "0,9"], "numbered 0 to 3"),
        (["--format", "onnx", "--layers", "0,2", "--exits"], "not allowed with"),
        (["--format", "tflite"], "tflite"),
    ],
)
def test_export_refuses_graphs_that_there_are_not(capsys, trained, tmp_path, words, said):
    assert said in complaint(capsys, "export", trained[0], tmp_path / "graphs", *words)
    assert not (tmp_path / "graphs").exists()


def test_info_describes_runs_and_exports(capsys, run):
    found = report(capsys, "info", run)
    assert (found["kind"], found["run"]["agent"], found["policy"]["depth"]) == ("run", "reinforce", 4)
    assert found["policy"] == json.loads((run / "policy" / "policy.json").read_text())
    model = rl_skip.load(run / "policy")
    assert found["policy_weights"] == sum(weight.numel() for weight in model.policy.parameters())
    assert found["network_weights"] == sum(weight.numel() for weight in model.stack.parameters())
    found = report(capsys, "info", run / "policy")
    assert found["kind"] == "export" and "run" not in found


def test_info_describes_pruned_networks_and_graphs(capsys, run, tmp_path):
    assert main(["prune", str(run), str(tmp_path / "pruned"), "--layers", "0,2"]) == 0
    capsys.readouterr()
    found = report(capsys, "info", tmp_path / "pruned")
    assert (found["kind"], found["layers"], found["depth"]) == ("pruned network", [0, 2], 4)
    for kind, name in (("pack", "pack.json"), ("graphs", "graphs.json")):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / name).write_text(json.dumps({"format_version": 1, "classes": ["a"]}))
        assert report(capsys, "info", folder) == {"kind": kind, "folder": str(folder), "format_version": 1, "classes": ["a"]}


def test_a_budget_of_measured_time_may_be_above_1(capsys, run):
    file = run / "policy" / "policy.json"
    described = json.loads(file.read_text())
    described["price_table"][-1]["compute"] = 1.4
    file.write_text(json.dumps(described))
    seal(run / "policy")
    assert report(capsys, "eval", run, "--budget", "1.3")["price"] < report(capsys, "eval", run, "--budget", "0.5")["price"]
    assert "(0, 1]" in complaint(capsys, "eval", run, "--budget", "1.5")


def test_without_json_a_table_is_printed(capsys, run):
    assert main(["info", str(run)]) == 0
    described = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert described["policy.price_table[0]"] == "price 1, compute 0.3, accuracy 0.08"
    assert described["policy.allow_exit"] == "no"
    assert described["run.task.data"] == described["run.policy.feature"] == "none"
    assert main(["eval", str(run)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][:3] == ["accuracy", "compute", "reward"]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["eval"], "RUN"),
        (["eval", "RUN", "--price", "-1"], "'-1'"),
        (["eval", "RUN", "--price", "nan"], "'nan'"),
        (["eval", "RUN", "--price", "inf"], "'inf'"),
        (["eval", "RUN", "--price", "cheap"], "'cheap'"),
        (["eval", "RUN", "--budget", "0"], "(0, 1]"),
        (["eval", "RUN", "--budget", "1.5"], "(0, 1]"),
        (["eval", "RUN", "--budget", "nan"], "(0, 1]"),
        (["eval", "RUN", "--budget", "٠.٥"], "'٠.٥'"),
        (["eval", "RUN", "--price", "1_0"], "'1_0'"),
        (["generate", "RUN", "a text", "--seed", "١"], "'١'"),
        (["eval", "RUN", "--budget", "0.5", "--price", "0.1"], "not allowed with"),
        (["eval", "RUN", "--batch-size", "0"], "'0'"),
        (["eval", "RUN", "--threads", "two"], "'two'"),
        (["eval", "RUN", "--split", "train"], "'train'"),
        (["eval", "RUN", "--device", "abacus"], "'abacus'"),
        (["evaluate", "RUN"], "evaluate"),
        ([], "COMMAND"),
        (["export", "RUN"], "DIR"),
    ],
)
def test_words_that_mean_nothing_are_refused(capsys, run, words, named):
    assert named in complaint(capsys, *(str(run) if word == "RUN" else word for word in words))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(capsys, run):
    assert "no cuda device" in complaint(capsys, "eval", run, "--device", "cuda")


def test_folders_that_are_no_run_are_refused(capsys, run, tmp_path):
    for command in (["eval"], ["info"]):
        assert "there is no folder" in complaint(capsys, *command, tmp_path / "nowhere")
    assert "not a run" in complaint(capsys, "eval", run / "policy")
    assert "not a run" in complaint(capsys, "export", run / "policy", tmp_path / "new")
    (tmp_path / "empty").mkdir()
    assert "is nothing that rl_skip wrote; name a run, an exported policy, a pruned network" in complaint(capsys, "info", tmp_path / "empty")
    shutil.rmtree(run / "policy")
    for words in (["eval", run], ["info", run], ["export", run, tmp_path / "new"]):
        assert "no policy yet" in complaint(capsys, *words)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format_version",), 99),
        (("format_version",), 1),
        (("format_version",), "1"),
        (("task",), "digits"),
        (("task", "name"), None),
        (("task", "data"), 3),
        (("task", "options"), []),
        (("network",), None),
        (("network", "layers"), 0),
        (("network", "width"), "16"),
        (("network", "heads"), 3),
        (("network", "stack"), "tower"),
        (("network", "body"), 1),
        (("network", "dropout"), True),
        (("pricing",), None),
        (("pricing", "reward"), 1),
        (("policy",), []),
        (("policy", "feature"), "hidden"),
        (("policy", "feature"), [1]),
    ],
)
def test_a_damaged_config_is_named(capsys, run, path, value):
    good = json.loads((run / "config.json").read_text())
    for missing in (False, True):
        config = json.loads(json.dumps(good))
        parent = config[path[0]] if len(path) == 2 else config
        parent.pop(path[-1]) if missing else parent.update({path[-1]: value})
        (run / "config.json").write_text(json.dumps(config))
        message = complaint(capsys, "eval", run)
        assert path[-1] in message and "config.json" in message


def test_data_that_do_not_fit_the_run_are_refused(capsys, run):
    described = json.loads((run / "policy" / "policy.json").read_text())
    described["network"]["classes"] = 7
    (run / "policy" / "policy.json").write_text(json.dumps(described))
    seal(run / "policy")
    assert "the data have 10 classes" in complaint(capsys, "eval", run)


def test_the_process_leaves_with_code_2_and_no_traceback(run, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(rl_skip.__file__).parents[1])}

    def call(*words):
        return subprocess.run([sys.executable, "-m", "rl_skip", *map(str, words)], cwd=tmp_path, env=environment, capture_output=True, text=True)

    done = call("eval", tmp_path / "nowhere", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no folder") and done.stderr.count("\n") == 1
    done = call("info", run, "--json", "--threads", 1)
    assert done.returncode == 0 and json.loads(done.stdout)["kind"] == "run" and done.stderr == ""


def test_info_counts_the_weights_by_which_a_policy_knows_its_model() -> None:
    policy = {"network": {"kind": "attached", "weights": {"a": [0.5, 1.0], "b": [2.0]}}, "depth": 4}
    assert list(_flat(_in_short({"policy": policy}), "")) == [
        ("policy.network.kind", "attached"),
        ("policy.network.weights", "a few numbers of each of 2"),
        ("policy.depth", "4"),
    ]
    assert _in_short({"kind": "run"}) == {"kind": "run"}
