"""Pruned networks against the fixed route of the whole network, and what the command refuses."""

import copy
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rl_skip
from rl_skip import JumpPolicy, JumpRules, LayerStack, ModuleStack, ObservationLayout, UserError
from rl_skip.cli.main import main
from rl_skip.core.forward import routed_forward
from rl_skip.core.task import Task
from rl_skip.export.pruned import PrunedNetwork, load_pruned
from rl_skip.nets.blocks import FrameEmbedding, PatchEmbedding
from rl_skip.nets.network import NetworkConfig, build_network, network_to_json
from rl_skip.tasks import load_task
from tests.rl_skip.run_config import run_config

WIDTH, DEPTH, PRICE = 16, 5, 0.1
IMAGES = PatchEmbedding(height=8, image_width=8, channels=1, patch=1, patch_width=8, overlap=1)
FRAMES = FrameEmbedding(frames=10, features=3, stride=2)
TASK_FILE = """
import torch
from rl_skip.tasks import load_task
from dataclasses import replace
def own(path):
    return replace(load_task("digits"), embedding=lambda width: torch.nn.Sequential(torch.nn.Linear(8, width)))
"""
WITHOUT_ROUTING = """
import sys
for name in ("rl_skip.routing", "rl_skip.core.policy", "rl_skip.measure.evaluation", "rl_skip.export.policy_folder"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
import torch
from safetensors.torch import load_file, save_file
from rl_skip.export.pruned import load_pruned
with torch.no_grad():
    save_file({"outputs": load_pruned("pruned")(load_file("inputs")["images"])}, "found")
"""


def network(config: NetworkConfig, embedding: PatchEmbedding | FrameEmbedding = IMAGES) -> LayerStack:
    stack = build_network(config, embedding, embedding.tokens, 10).eval()
    for name, tensor in stack.state_dict().items():
        if name.endswith("threshold"):
            tensor.fill_(1.0)  # about half of the tokens are active then
        if name.endswith("jump_weights"):
            tensor.copy_(torch.tensor([0.7, 0.4, 0.2]))
    return stack


def case(kind: str) -> tuple[LayerStack, torch.Tensor | dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    images = torch.randn(20, 8, 8)
    if kind == "frames":
        frames = {"frames": torch.randn(20, 10, 3), "mask": torch.arange(10) < torch.randint(1, 11, (20, 1))}
        return network(NetworkConfig(DEPTH, WIDTH, 2), FRAMES), frames
    options = {"blocks": {}, "gated attention": {"stack": "skip-layer"}, "gated adapter": {"stack": "skip-layer", "body": "adapter"}}[kind]
    return network(NetworkConfig(DEPTH, WIDTH, 2, **options)), images


@pytest.mark.parametrize("layers", [(0, 4), (0, 2, 3), (0,), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("kind", ["blocks", "frames", "gated attention", "gated adapter"])
def test_a_pruned_network_is_the_fixed_route(kind: str, layers: tuple[int, ...]) -> None:
    stack, inputs = case(kind)
    route = torch.zeros(DEPTH, dtype=torch.bool)
    route[list(layers)] = True
    with torch.no_grad():
        expected = routed_forward(stack, route, inputs).outputs
        other = routed_forward(stack, ~route | (torch.arange(DEPTH) == 0), inputs).outputs
        pruned = PrunedNetwork(copy.deepcopy(stack), layers)
        torch.testing.assert_close(pruned(inputs), expected, atol=1e-6, rtol=0)
    assert (expected - other).abs().max() > 1e-3, "the layers make no difference here, so nothing was tested"
    assert stack.depth == DEPTH


def test_blocks_are_left_out_of_the_very_weights() -> None:
    stack, inputs = case("blocks")
    assert isinstance(stack, ModuleStack)
    by_hand = nn.Sequential(stack.embed, stack.layers[0], stack.layers[3], stack.head)
    pruned = PrunedNetwork(copy.deepcopy(stack), (0, 3))
    torch.testing.assert_close(pruned(inputs), by_hand(inputs), atol=1e-6, rtol=0)
    assert sum(map(torch.numel, pruned.state_dict().values())) == sum(map(torch.numel, by_hand.state_dict().values()))


def test_tied_layers_stay_tied() -> None:
    stack, inputs = case("blocks")
    assert isinstance(stack, ModuleStack)
    tied = ModuleStack(stack.embed, [stack.layers[0]] * DEPTH, stack.head, width=WIDTH, layer_flops=[1.0] * DEPTH, layers_take_mask=True)
    by_hand = nn.Sequential(stack.embed, stack.layers[0], stack.layers[0], stack.layers[0], stack.head)
    pruned = PrunedNetwork(tied, (0, 2, 3))
    torch.testing.assert_close(pruned(inputs), by_hand(inputs), atol=1e-6, rtol=0)
    assert sum(parameter.numel() for parameter in pruned.parameters()) == sum(parameter.numel() for parameter in by_hand.parameters())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, of a network that tells its layers apart without having been trained."""
    return write_run(tmp_path_factory.mktemp("runs") / "digits", "digits")


def write_run(folder: Path, task_name: str) -> Path:
    task, config = load_task(task_name), NetworkConfig(DEPTH, WIDTH, 2)
    torch.manual_seed(4)
    stack = build_network(config, task.embedding, task.tokens, 10)
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(WIDTH, DEPTH)))
    nn.init.normal_(policy.fc_out.weight, std=1.0)
    described = network_to_json(config, task.embedding, task.tokens, 10)
    rl_skip.save(folder / "policy", policy, stack=stack, network=described, price=PRICE, trained_on={"task": task.name})
    (folder / "config.json").write_text(json.dumps(run_config(task_name, config)))
    return folder


def report(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    assert main([*map(str, words), "--json", "--device", "cpu"]) == 0
    return json.loads(capsys.readouterr().out)


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([*map(str, words)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def accuracies(run: Path, task: Task, split: str) -> dict[tuple[int, ...], float]:
    """Accuracy of every fixed route that ends with the last layer, one routed forward pass for each."""
    stack, examples = rl_skip.load(run / "policy").stack, task.load(split)
    found = {}
    for middle in itertools.product([0, 1], repeat=DEPTH - 2):
        route = torch.tensor([1, *middle, 1])
        with torch.no_grad():
            outputs = routed_forward(stack, route, examples.inputs).outputs
        found[tuple(route.nonzero().flatten().tolist())] = float((outputs.argmax(dim=1) == examples.labels).float().mean())
    return found


def test_the_route_is_the_best_within_the_budget_on_validation_data(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    task = load_task("digits")
    validation, test = accuracies(trained, task, "validation"), accuracies(trained, task, "test")
    best = max((layers for layers in validation if len(layers) <= 3), key=lambda layers: (validation[layers], -len(layers)))
    assert validation[best] > validation[0, 4]

    found = report(capsys, "prune", trained, tmp_path / "pruned", "--budget", 0.6)

    assert tuple(found["layers"]) == best
    assert sorted(found["layers"] + found["removed"]) == list(range(DEPTH))
    assert found["accuracy"] == pytest.approx(test[best])
    assert found["full_depth_accuracy"] == pytest.approx(test[0, 1, 2, 3, 4])
    assert found["compute"] == pytest.approx(len(best) / DEPTH)
    assert found["weights"] == sum(map(torch.numel, load_file(tmp_path / "pruned" / "pruned.safetensors").values())) < found["full_depth_weights"]
    assert f"{test[best]:.4f}" in (tmp_path / "pruned" / "README.md").read_text()


def test_without_a_budget_the_policys_compute_is_the_limit(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    model, validation = rl_skip.load(trained / "policy"), load_task("digits").load("validation")
    model(validation.inputs)
    limit = float(model.last.compute.mean())
    by_route = accuracies(trained, load_task("digits"), "validation")
    within = {layers: right for layers, right in by_route.items() if len(layers) / DEPTH <= limit}
    assert 1 < len(within) < len(by_route)
    assert by_route[tuple(report(capsys, "prune", trained, tmp_path / "pruned")["layers"])] == pytest.approx(max(within.values()))


def test_a_comparison_says_which_route(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    baselines = [{"name": "policy", "layers": None}, {"name": "fixed", "layers": [0, 1, 2]}]
    compared = {"format_version": 1, "operating": [{"baselines": baselines}, {"baselines": []}]}
    (run / "compare.json").write_text(json.dumps(compared))
    assert report(capsys, "prune", run, tmp_path / "as-compared")["layers"] == [0, 1, 2]
    assert report(capsys, "prune", run, tmp_path / "searched", "--budget", 0.4)["layers"] == [0, 4]
    baselines[1]["layers"] = "0,1"
    (run / "compare.json").write_text(json.dumps(compared))
    assert "operating[0].baselines[1].layers must be a list of layers" in complaint(capsys, "prune", run, tmp_path / "other")


def test_a_process_without_routing_and_policy_gives_the_fixed_route(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    inputs = load_task("digits").load("test").inputs
    with torch.no_grad():
        expected = routed_forward(rl_skip.load(trained / "policy").stack, torch.tensor([1, 0, 1, 1, 0]), inputs).outputs
    assert report(capsys, "prune", trained, tmp_path / "pruned", "--layers", "0,2,3")["removed"] == [1, 4]
    save_file({"images": inputs}, tmp_path / "inputs")
    environment = {**os.environ, "PYTHONPATH": str(Path(rl_skip.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", WITHOUT_ROUTING], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(load_file(tmp_path / "found")["outputs"], expected, atol=1e-6, rtol=0)


def test_an_embedding_of_ones_own_asks_for_the_network(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(TASK_FILE)
    name = f"{tmp_path}/own.py:own"
    run, task = write_run(tmp_path / "run", name), load_task(name)
    report(capsys, "prune", run, tmp_path / "pruned", "--layers", "0,4", "--allow-code")
    with pytest.raises(UserError, match=r"load_pruned\(folder, stack\)"):
        load_pruned(tmp_path / "pruned")
    whole, fresh = (build_network(NetworkConfig(DEPTH, WIDTH, 2), task.embedding, task.tokens, 10) for _ in range(2))
    inputs = task.load("test").inputs
    rl_skip.load(run / "policy", whole)
    with torch.no_grad():
        expected = routed_forward(whole, torch.tensor([1, 0, 0, 0, 1]), inputs).outputs
        torch.testing.assert_close(load_pruned(tmp_path / "pruned", fresh)(inputs), expected, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="depth is 5, the given stack has 3"):
        load_pruned(tmp_path / "pruned", build_network(NetworkConfig(3, WIDTH, 2), task.embedding, task.tokens, 10))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--layers", "1,2"], "layer 0 runs on every route, got 1,2; set --layers"),
        (["--layers", "0,2,2"], "the layers of a route ascend, got 0,2,2; set --layers"),
        (["--layers", "0,5"], "the layers are numbered 0 to 4, got 0,5; set --layers"),
        (["--layers", "0;4"], "such as 0,3,7, got '0;4'"),
        (["--budget", "0.3"], "no fixed route keeps to a budget of 0.3: the cheapest costs 0.4000; raise --budget, or set --layers"),
        (["--budget", "0.5", "--layers", "0"], "not allowed with argument"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path, words: list[str], expected: str) -> None:
    assert expected in complaint(capsys, "prune", trained, tmp_path / "pruned", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_as_it_is(capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path) -> None:
    assert "exists and is left as it is" in complaint(capsys, "prune", trained, tmp_path, "--layers", "0")


def test_other_stacks_are_refused() -> None:
    stack = LayerStack()
    stack.depth, stack.layer_flops = 2, torch.ones(2)
    with pytest.raises(UserError, match="a LayerStack cannot be pruned"):
        PrunedNetwork(stack, (0,))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [("layers", [0, 9], "layers"), ("layers", [True, 2], "layers"), ("layers", None, "layers"), ("depth", 4, "depth|layers"), ("width", 8, "width")],
)
def test_a_damaged_description_is_refused_by_field(pruned: Path, field: str, value: object, expected: str) -> None:
    described = json.loads((pruned / "pruned.json").read_text())
    (pruned / "pruned.json").write_text(json.dumps({**described, field: value}))
    with pytest.raises(UserError, match=expected):
        load_pruned(pruned)


def test_weights_of_another_route_are_refused(pruned: Path) -> None:
    described = json.loads((pruned / "pruned.json").read_text())
    (pruned / "pruned.json").write_text(json.dumps({**described, "layers": [0, 1, 4]}))
    with pytest.raises(UserError, match=r"the weight stack\.layers\.2\.\S+ is missing"):
        load_pruned(pruned)


@pytest.fixture(scope="module")
def pristine(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned") / "folder"
    assert main(["prune", str(trained), str(folder), "--layers", "0,4"]) == 0
    return folder


@pytest.fixture
def pruned(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "pruned"))
