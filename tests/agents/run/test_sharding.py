"""A network whose weights are split over two processes learns what one process learns, and leaves the same files."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import rl_skip
import train
from agents.baselines.training import baselines_of
from agents.options.config import PolicyConfig, PriceConfig, ScheduleConfig, TrainConfig
from agents.policy.reinforce import Reinforce
from agents.run.learner import Learner
from agents.run.sharding import check_options, shard
from agents.run.split_tensors import gathered, gathered_state, is_split, scattered_state
from agents.run.warmup import warm_up_for
from rl_skip.cli.main import main
from rl_skip.core.batches import deployed, in_batches
from rl_skip.core.errors import UserError
from rl_skip.core.finite import not_finite
from rl_skip.core.forward import routed_forward
from rl_skip.core.processes import Processes, together, working
from rl_skip.core.task import Examples, Split, Task
from rl_skip.nets.network import NetworkConfig, build_network
from tests.agents.processes import Running, in_processes, training
from tests.rl_skip.huggingface_models import build
from tests.rl_skip.pretrained_folders import save_bert, write_table

pytest.importorskip("transformers")
CPU = torch.device("cpu")
STEADY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.2}
"""Of a BERT, without dropout, which draws other numbers in each process, and with rows that differ, so that sums of gradients do not cancel."""
UPDATES = 21
"""Of a run: three epochs of the warm-up and four of the policy, of three batches each."""
EXPORTS = ("policy/policy.safetensors", "policy/readouts.safetensors", "model/model.safetensors", "start.safetensors")


def options(folder: Path) -> list[str]:
    data, model = write_table(folder / "data.tsv", 160), save_bert(folder / "bert", **STEADY)
    length = ("--warmup-epochs", "3", "--epochs", "4", "--policy-epochs", "2")
    return ["--task", "text", "--data", str(data), "--model", str(model), *length, "--seed", "1", "--threads", "1"]


def finished(running: Running) -> None:
    assert running.ended() == [0] * len(running.each), running.said()
    assert not running.said()


def curves(run: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in entry.items() if not name.startswith("time/")} for entry in entries]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same run in one process, and with its network split over two."""
    folder = tmp_path_factory.mktemp("sharding")
    flags = options(folder)
    finished(training(1, folder / "one-said", *flags, "--out", str(folder / "one")))
    kept = ("--checkpoint-updates", str(UPDATES - 6))
    finished(training(2, folder / "split-said", *flags, *kept, "--shard", "--out", str(folder / "split")))
    return {name: folder / name for name in ("one", "split")}


def test_two_processes_have_the_losses_and_the_export_of_one(runs: dict[str, Path]) -> None:
    one, split = curves(runs["one"]), curves(runs["split"])
    assert [entry["step"] for entry in split] == [entry["step"] for entry in one] and one[UPDATES - 1]["step"] == UPDATES
    assert "warmup/accuracy" in one[0] and "train/policy_loss" in one[UPDATES - 1]
    for alone, halves in zip(one, split, strict=True):
        assert halves == pytest.approx(alone, rel=0, abs=1e-4)
    for name in EXPORTS:
        found, expected = (load_file(runs[run] / name) for run in ("split", "one"))
        expected.pop("given", None)  # the digest of what the network began as, which no process of several has as a whole
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for name in ("policy/policy.json", "model/config.json"):
        here, there = (json.loads((runs[run] / name).read_text()) for run in ("split", "one"))
        assert here.keys() == there.keys()


def test_the_run_folder_is_whole_and_one_process_goes_on_with_it(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    left = [{file.relative_to(run).parts[0].partition("tfevents")[0] for file in run.rglob("*")} for run in runs.values()]
    assert left[0] == left[1]
    report = json.loads((runs["split"] / "report.json").read_text())
    assert "unfinished" not in report and "timed_rows" not in report and report["policy"].keys() >= {"accuracy", "compute"}
    assert main(["eval", str(runs["split"]), "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy"] == report["policy"]["accuracy"] and found["compute"] == pytest.approx(report["policy"]["compute"])
    handle = rl_skip.from_pretrained(runs["split"], budget=0.9)
    assert handle.model(**handle.processor(["a great film"], return_tensors="pt")).logits.shape == (1, 2)
    network = torch.load(max((runs["split"] / "checkpoints").glob("*.pt")), weights_only=True)["learner"]["stack"]
    weights = load_file(runs["split"] / "model" / "model.safetensors")
    assert all(torch.equal(network[f"model.{name}"], weight) for name, weight in weights.items()), "checkpoints are whole too"
    assert not any(config.shard for _, config in baselines_of(runs["split"]).values()), "which train in one process"


def test_a_run_that_was_cut_off_goes_on_bit_for_bit(runs: dict[str, Path], tmp_path: Path) -> None:
    whole, run = runs["split"], tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "report.json").unlink()
    for file in (run / "checkpoints").glob("*.pt"):
        if int(file.name.split("-")[1]) == UPDATES:
            file.unlink()
    finished(training(2, tmp_path / "said", "--resume", str(run)))
    assert curves(run) == curves(whole)
    for name in EXPORTS:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_process_that_is_killed_ends_the_other_with_a_line(tmp_path: Path) -> None:
    flags, run = options(tmp_path), tmp_path / "run"
    flags[flags.index("--epochs") + 1] = "99"
    running = training(2, tmp_path / "said", *flags, "--shard", "--out", str(run), "--checkpoint-updates", "2")
    while not list(run.glob("checkpoints/*.pt")):
        assert all(process.is_alive() for process in running.each), running.said()
        time.sleep(0.01)
    os.kill(running.each[1].pid or 0, signal.SIGKILL)
    assert running.ended(60) == [1, -signal.SIGKILL]
    (line,) = running.said()
    assert line.startswith("error: another of the 2 processes ended without a word") and line.endswith("go on with --resume")


ROWS = 37
"""Which two processes do not share evenly."""
CASES: dict[str, dict[str, Any]] = {
    "copies of the head, in passes": {"accumulate": 3},
    "adapters, in frozen layers too": {"policy": PolicyConfig(readouts=True, jumps=False, readout_rank=2), "tune": "lora"},
    "head alone, at a rate of its own": {"tune": "head", "head_rate": 3.0},
    "all frozen": {"tune": "frozen", "warmup_epochs": 0},
}


def load(split: Split) -> Examples:
    generator = torch.Generator().manual_seed(len(split))
    ids, labels = torch.randint(5, 60, (2 * ROWS, 8), generator=generator), torch.randint(2, (2 * ROWS,), generator=generator)
    mask = torch.arange(8) < torch.randint(3, 9, (2 * ROWS, 1), generator=generator)
    return Examples({"input_ids": ids * mask, "attention_mask": mask.long()}, labels)


def learner_of(case: str) -> Learner:
    stack = rl_skip.HuggingFaceStack(build("modernbert"))
    task = Task("marks", ("no", "yes"), load, lambda _width: torch.nn.Identity(), 8, network=lambda _size: stack)
    given = {"policy": PolicyConfig(readouts=True, jumps=False)} | CASES[case]
    policy = given.pop("policy")
    schedule = ScheduleConfig(**{"warmup_epochs": 1, "epochs": 1, "batch_size": ROWS, **given})
    return Learner(TrainConfig(policy=policy, schedule=schedule, shard=together().several), task, CPU)


def trained(case: str) -> dict[str, Any]:
    """Weights and metrics after a few updates; and how many numbers of network and moments the process holds, of how many."""
    learner = learner_of(case)
    learner.begin_together()
    agent, warm_up = Reinforce(learner), warm_up_for(learner)
    metrics: list[dict[str, Tensor]] = []
    for update in range(learner.updates):
        if update == learner.warmup_updates:
            learner.end_warm_up()
        metrics.append((warm_up if update < learner.warmup_updates else agent).update(update))
    held = {True: 0, False: 0}
    moments = (moment for kept in learner.descent.network_optimizer.state.values() for moment in kept.values())
    for tensor in (*learner.stack.parameters(), *moments):
        held[is_split(tensor)] += tensor.to_local().numel() if is_split(tensor) else tensor.numel()
    learner.merge_adapters()
    evaluated = agent.evaluate(learner.validation)
    with gathered(learner.stack):
        weights = {name: weight.detach().clone() for name, weight in learner.stack.state_dict().items()} if together().first else {}
    policy = {name: weight.detach() for name, weight in learner.policy.named_parameters()}
    return {"weights": weights, "policy": policy, "metrics": metrics, "held": held, "route": evaluated.route, "correct": evaluated.correct}


def all_cases() -> dict[str, dict[str, Any]]:
    return {case: trained(case) for case in CASES}


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Any]]]:
    return in_processes(2, tmp_path_factory.mktemp("cases"), all_cases)


@pytest.mark.parametrize("case", CASES)
def test_updates_are_those_of_one_process(case: str, halves: list[dict[str, Any]]) -> None:
    expected, (first, second) = trained(case), (half[case] for half in halves)
    assert first["weights"].keys() == expected["weights"].keys() and not second["weights"]
    torch.testing.assert_close(first["weights"], expected["weights"], rtol=0, atol=1e-5)
    for half in (first, second):
        torch.testing.assert_close(half["policy"], expected["policy"], rtol=0, atol=1e-5)
        assert torch.equal(half["route"], expected["route"]) and torch.equal(half["correct"], expected["correct"])
        for found, alone in zip(half["metrics"], expected["metrics"], strict=True):
            assert {name: float(value) for name, value in found.items()} == pytest.approx(
                {name: float(value) for name, value in alone.items()}, rel=1e-4, abs=1e-4
            )
    whole = sum(expected["held"].values())
    split, others = (half["held"][True] for half in (first, second)), first["held"][False]
    assert others == second["held"][False], "readouts, their moments, and the steps of all"
    assert sum(split) + others == whole and first["held"][True] < 0.6 * (whole - others), "all else once, by halves"


def passes() -> dict[str, Any]:
    """What a split network answers on routes that differ from process to process, in more batches here than there; and states there and back."""
    rank, examples = together().rank, load("validation")
    stack = rl_skip.HuggingFaceStack(build("bert"))
    routes = torch.ones(2, stack.depth, dtype=torch.bool)
    routes[0, 1:-1] = False
    expected = [routed_forward(stack.eval(), route, examples.inputs).outputs.detach() for route in routes]
    before = {name: tensor.clone() for name, tensor in stack.state_dict().items()}
    shard(stack, examples.inputs, CPU)
    with deployed(stack):
        found = routed_forward(stack, routes[rank], examples.inputs).outputs
    torch.testing.assert_close(found, expected[rank])

    def run(batch: Examples, _rows: Tensor) -> tuple[Tensor]:
        return (routed_forward(stack, routes[1], batch.inputs).outputs,)

    torch.testing.assert_close(in_batches(run, examples, 30, stack)[0], expected[1])
    state = {"stack": stack.state_dict(), "number": rank}
    whole = gathered_state(state)
    assert rank > 0 or all(torch.equal(whole["stack"][name], tensor) for name, tensor in before.items())
    likes = {("stack", name): tensor for name, tensor in state["stack"].items() if is_split(tensor)}
    again = scattered_state(whole, likes)
    assert again["number"] == 0 and all(torch.equal(again["stack"][path[1]].to_local(), tensor.to_local()) for path, tensor in likes.items())
    embedding = stack.model.bert.embeddings.word_embeddings.weight
    if rank == 1:
        embedding.detach().to_local()[-1, 0] = torch.nan
    return {"not finite": not_finite(stack.named_parameters()), "split": all(is_split(weight) for weight in stack.parameters())}


def test_processes_take_other_routes_and_numbers_of_batches(tmp_path: Path) -> None:
    for found in in_processes(2, tmp_path, passes):
        assert found == {"not finite": "model.bert.embeddings.word_embeddings.weight", "split": True}


@pytest.mark.parametrize(
    ("config", "own_stack", "said"),
    [
        (TrainConfig(shard=True, schedule=ScheduleConfig(precision="fp16")), False, "--precision bf16, or set --no-shard"),
        (TrainConfig(shard=True, pricing=PriceConfig(cost="latency")), False, "--cost flops, or set --no-shard"),
        (TrainConfig(shard=True), True, "name a model with --model, or set --no-shard"),
    ],
)
def test_options_that_a_split_network_does_not_take_are_refused(config: TrainConfig, own_stack: bool, said: str) -> None:
    with working(Processes(0, 2)), pytest.raises(UserError, match=said):
        check_options(config, own_stack)


def test_networks_that_are_not_split_are_refused() -> None:
    blocks = build_network(NetworkConfig(layers=3, width=16, heads=2), lambda width: torch.nn.Linear(3, width), 5, 2)
    with pytest.raises(UserError, match="--shard splits models from transformers that read tokens; set --task text"):
        shard(blocks, torch.zeros(2, 5, 3), CPU)
    twice = rl_skip.HuggingFaceStack(build("bert"))
    twice.routed = (twice.routed[0],) * twice.depth
    with pytest.raises(UserError, match="layers of this model have weights in common"):
        shard(twice, load("train").inputs, CPU)


def test_sampled_routes_are_refused_once(tmp_path: Path) -> None:
    running = training(2, tmp_path / "said", *options(tmp_path), "--shard", "--jumps", "--out", str(tmp_path / "run"))
    assert running.ended() == [2, 2] and not (tmp_path / "run").exists()
    (line,) = running.said()
    assert line.startswith("error: --shard keeps all processes at the same layer") and "set --readouts --no-jumps --gradient exact" in line


def test_one_process_has_nothing_to_split_over(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert train.main(["--shard", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --shard splits the network over processes, and one was started") and not (tmp_path / "run").exists()


def test_an_accelerate_that_is_configured_for_fsdp_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert train.read_options([]).shard and not train.read_options(["--no-shard"]).shard
