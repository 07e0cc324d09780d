"""The baselines that have one route for all rows, what all baselines share, and all of them trained for one run."""

import io
import json
import math
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import train as command_line
from agents.agent import AGENTS
from agents.baselines.baseline import Baseline, Unsuited
from agents.baselines.exits import Exits
from agents.baselines.shallow import Shallow
from agents.baselines.static import Static
from agents.baselines.training import TRAINED, train_baselines
from agents.options.config import NetworkConfig, PolicyConfig, PriceConfig, ScheduleConfig, TrainConfig
from agents.run.learner import Learner
from agents.run.session import Session, train
from agents.run.start import START
from agents.run.warmup import warm_up_for
from rl_skip.cli.main import main
from rl_skip.core.errors import UserError
from rl_skip.core.forward import routed_forward
from rl_skip.export.pruned import PrunedNetwork
from rl_skip.measure.compare.comparison import SLACK
from rl_skip.measure.compare.curves import load_curve
from rl_skip.measure.evaluation import all_routes
from rl_skip.measure.runs import load_run
from rl_skip.tasks import load_task

BUDGET = PriceConfig(budget=0.75)
BASELINES = tuple(record.name for record in TRAINED)


def pricing_of(agent: str) -> PriceConfig:
    return PriceConfig() if agent == "exits" else BUDGET


def train_plainly(network: nn.Module, learner: Learner, updates: range) -> None:
    """AdamW on a network as anybody would write it, with the batches and the rates of a run."""
    schedule = learner.config.schedule
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=schedule.weight_decay)
    network.train()
    for update in updates:
        cosine = max(0.5 * (1 + math.cos(math.pi * update / learner.updates)), 0.01)
        optimizer.param_groups[0]["lr"] = schedule.learning_rate * min(1.0, (update + 1) / 50) * cosine
        batch = learner.batch(update)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch.inputs), batch.labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), schedule.max_grad_norm)
        optimizer.step()


# ------------------------------------------------------------------------------------------------------- static, shallow


def test_static_finds_the_route_that_trying_each_finds(tiny_learner) -> None:
    learner = tiny_learner(agent="static", pricing=BUDGET)
    warm_up = warm_up_for(learner)
    for update in range(learner.warmup_updates):
        warm_up.update(update)
    right = {}
    for route in all_routes(4, allow_exit=False):
        layers = tuple(route.nonzero().squeeze(1).tolist())
        network = PrunedNetwork(deepcopy(learner.stack).eval(), layers)
        with torch.no_grad():
            guessed = network(learner.validation.inputs).argmax(dim=1)
        right[layers] = (guessed == learner.validation.labels).float().mean().item()
    within = {layers: share for layers, share in right.items() if len(layers) == 3}  # two would leave a layer of the budget
    best = max(within.values())
    static = Static(learner)
    static.update(learner.warmup_updates)
    found = tuple(static.route.nonzero().squeeze(1).tolist())
    assert within[found] == best
    assert static.settings()[0].label == "layers " + ", ".join(map(str, found))


def test_static_trains_what_a_network_of_no_other_layers_would_become(tiny_learner) -> None:
    learner = tiny_learner(agent="static", pricing=BUDGET, schedule=ScheduleConfig(warmup_epochs=0, epochs=3, batch_size=32))
    before = deepcopy(learner.stack)
    static = Static(learner)
    static.search = lambda: torch.tensor([True, False, True, True])  # type: ignore[method-assign]
    for update in range(learner.updates):
        static.update(update)
    alone = PrunedNetwork(deepcopy(before), [0, 2, 3])
    train_plainly(alone, learner, range(learner.updates))
    shifted = {f"layers.{k}.": f"layers.{i}." for k, i in reversed([*enumerate([0, 2, 3])])}
    state = learner.stack.state_dict()
    for name, tensor in alone.stack.state_dict().items():
        whole = next((long + name.removeprefix(short) for short, long in shifted.items() if name.startswith(short)), name)
        torch.testing.assert_close(tensor, state[whole], atol=1e-6, rtol=0)
        assert not tensor.equal(before.state_dict()[whole]) or "norm" in name
    left_out = learner.stack.layers[1].state_dict()
    assert all(tensor.equal(left_out[name]) for name, tensor in before.layers[1].state_dict().items())
    assert static.measure(learner.validation).compute == pytest.approx(0.75)


@pytest.mark.parametrize(("budget", "layers"), [(0.1, 1), (0.25, 1), (0.49, 1), (0.5, 2), (0.74, 2), (1.0, 4)])
def test_shallow_has_as_many_layers_as_the_budget_allows(budget: float, layers: int, tiny_learner) -> None:
    learner = tiny_learner(agent="shallow", pricing=PriceConfig(budget=budget))
    shallow = Shallow(learner)
    assert shallow.layers == layers
    assert shallow.measure(learner.validation).compute == pytest.approx(layers / 4)


def test_shallow_trains_what_a_shallower_network_would_become(tiny_learner) -> None:
    learner = tiny_learner(agent="shallow", pricing=PriceConfig(budget=0.5))
    first = PrunedNetwork(deepcopy(learner.stack), [0, 1]).stack
    plain = nn.Sequential(first.embed, *first.layers, first.head)
    shallow = Shallow(learner)
    assert learner.warmup_updates == 0 and learner.updates == 5 * 4  # what others spend on the warm-up is spent too
    for update in range(learner.updates):
        shallow.update(update)
    train_plainly(plain, learner, range(learner.updates))
    state = learner.stack.state_dict()
    assert sum(name.startswith("layers.1.") for name in first.state_dict()) > 0
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(tensor, state[name], atol=1e-6, rtol=0)


def test_a_frozen_network_stays_as_it_is_and_cannot_be_shallower(tiny_learner) -> None:
    schedule = ScheduleConfig(warmup_epochs=2, epochs=3, batch_size=32, tune="frozen")
    learner = tiny_learner(agent="static", pricing=BUDGET, schedule=schedule)
    before = {name: tensor.clone() for name, tensor in learner.stack.state_dict().items()}
    shortest = torch.tensor([True, False, False, True])
    said = routed_forward(learner.stack.eval(), shortest, learner.validation.inputs).outputs.argmax(dim=1)
    learner.validation = replace(learner.validation, labels=said)  # so that the shortest route is the best
    static = Static(learner)
    static.update(learner.warmup_updates)
    assert all(tensor.equal(before[name]) for name, tensor in learner.stack.state_dict().items())
    assert static.route.equal(shortest)  # which leaves a layer of the budget: nothing is learned on any
    with pytest.raises(Unsuited, match="a frozen network cannot be trained with fewer layers"):
        Shallow(learner)


# ------------------------------------------------------------------------------------------------------------- the start


def options(agent: str, folder: Path) -> TrainConfig:
    """Runs of a second. Dropout draws random numbers in the warm-up and after it."""
    network = NetworkConfig(layers=4, width=16, heads=2, dropout=0.1)
    schedule = ScheduleConfig(warmup_epochs=1, epochs=1, eval_epochs=1)
    pricing = PriceConfig() if agent == "reinforce" else pricing_of(agent)
    return TrainConfig(agent=agent, out=str(folder), network=network, schedule=schedule, pricing=pricing, threads=1, device="cpu")


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(options("reinforce", tmp_path_factory.mktemp("run") / "run"), quiet()) / START


def trained_weights(folder: Path) -> dict[str, Any]:
    file = max(folder.glob("checkpoints/update-*.pt"))
    state = torch.load(file, weights_only=True)
    return flat({name: state[name] for name in ("learner", "agent", "done")})


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list | tuple):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: one for part, inner in parts for key, one in flat(inner, f"{name}.{part}").items()}
    return {name: value}


def same(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other


@pytest.mark.parametrize("agent", ["static", "gumbel", "exits"])
def test_a_baseline_that_begins_at_a_runs_start_ends_as_one_that_warmed_up(agent: str, start: Path, tmp_path: Path) -> None:
    warmed, begun = train(options(agent, tmp_path / "warmed"), quiet()), train(options(agent, tmp_path / "begun"), quiet(), start=start)
    expected, found = trained_weights(warmed), trained_weights(begun)
    assert expected.keys() == found.keys() and len(expected) > 50
    assert [name for name in expected if not same(expected[name], found[name])] == []
    assert (warmed / "curve.safetensors").read_bytes() == (begun / "curve.safetensors").read_bytes()
    steps = [json.loads(line)["step"] for line in (begun / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] > 16, "the 16 updates of the warm-up were not repeated"


def test_a_shallower_network_begins_anew_and_learns_from_the_teacher_of_the_run(tmp_path: Path) -> None:
    """Bit for bit as without the run's start, but for what the teacher says."""
    leaving = {"policy": PolicyConfig(readouts=True, jumps=False)}
    begun = replace(options("reinforce", tmp_path / "run"), **leaving)
    start = train(begun, quiet()) / START
    config, task, cpu = replace(options("shallow", tmp_path / "shallow"), **leaving), load_task("digits"), torch.device("cpu")
    alone, taught = Session(config, task, cpu), Session(config, task, cpu)
    before = torch.get_rng_state()
    taught.begin_at(start)
    assert torch.get_rng_state().equal(before)
    learner, other = taught.learner, alone.learner
    assert taught.done == 0 and learner.warmup_updates == 0 and learner.updates == 32
    assert other.teacher is None and learner.teacher is not None
    theirs = Session(begun, task, cpu)
    theirs.begin_at(start)
    theirs.learner.end_warm_up()
    assert learner.teacher.equal(theirs.learner.teacher)
    learner.end_warm_up()
    kept, learner.teacher = learner.teacher, None
    other.end_warm_up()
    for session in (taught, alone):
        torch.manual_seed(0)  # for dropout
        for update in range(3):
            session.update(update)
    state, expected = flat(taught.state_dict()["learner"]), flat(alone.state_dict()["learner"])
    assert state.keys() == expected.keys() and [name for name in expected if not same(expected[name], state[name])] == []
    learner.teacher = kept
    torch.manual_seed(0)
    assert not taught.update(3)["train/supervised_loss"].equal(alone.update(3)["train/supervised_loss"])


def again(agent: str, folder: Path) -> TrainConfig:
    """A run, or its baseline, whose network begins again after the warm-up."""
    config = replace(options(agent, folder), policy=PolicyConfig(readouts=True, jumps=False))
    return replace(config, schedule=replace(config.schedule, begin_again=True))


@pytest.mark.parametrize("agent", ["gumbel", "exits"])
def test_beside_a_network_that_begins_again_a_baseline_does_from_the_runs_start_as_after_a_warm_up_of_its_own(agent: str, tmp_path: Path) -> None:
    start = train(again("reinforce", tmp_path / "run"), quiet()) / START
    warmed, begun = train(again(agent, tmp_path / "warmed"), quiet()), train(again(agent, tmp_path / "begun"), quiet(), start=start)
    expected, found = trained_weights(warmed), trained_weights(begun)
    assert expected.keys() == found.keys() and len(expected) > 50
    assert [name for name in expected if not same(expected[name], found[name])] == []


def test_a_baseline_of_a_network_that_begins_again_does_so_as_no_other_model(tmp_path: Path) -> None:
    start = train(again("reinforce", tmp_path / "run"), quiet()) / START
    other = replace(again("exits", tmp_path / "other"), seed=1)  # whose network is made otherwise, as a model's folder that has changed
    with pytest.raises(UserError, match="the model that was given has changed since the run began"):
        train(other, quiet(), start=start)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("kept", [10, 16, 20])
def test_a_network_that_begins_again_goes_on_bit_for_bit_before_then_and_after(kept: int, tmp_path: Path) -> None:
    config, task, cpu = again("reinforce", tmp_path / "run"), load_task("digits"), torch.device("cpu")

    def go(session: Session, first: int, last: int) -> dict[str, Any]:
        for update in range(first, last):
            if update == session.learner.warmup_updates:
                session.learner.end_warm_up()
            session.update(update)
        session.done = last
        return flat({name: value for name, value in session.state_dict().items() if name == "learner"})

    whole = Session(config, task, cpu)
    assert whole.learner.warmup_updates == 16
    go(whole, 0, kept)
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    expected = go(whole, kept, 24)
    resumed = Session(config, task, cpu)
    torch.rand(7)
    buffer.seek(0)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    found = go(resumed, kept, 24)
    assert expected.keys() == found.keys() and [name for name in expected if not same(expected[name], found[name])] == []


def test_a_shallower_network_without_the_start_of_a_run_says_that_it_has_no_teacher(tmp_path: Path) -> None:
    said = io.StringIO()
    train(replace(options("shallow", tmp_path / "alone"), policy=PolicyConfig(readouts=True, jumps=False)), Console(file=said))
    assert "no start of a run is at hand, so it learns from the labels alone" in " ".join(said.getvalue().split())


def test_beside_a_run_without_a_warm_up_there_is_no_teacher_and_no_route_to_train_again(tmp_path: Path) -> None:
    run = replace(options("reinforce", tmp_path / "run"), policy=PolicyConfig(readouts=True, jumps=False))
    run = replace(run, schedule=replace(run.schedule, warmup_epochs=0))
    folder, said = train(run, quiet()), io.StringIO()
    train_baselines(folder, budgets=[0.5], only=["shallow", "static", "exits"], as_exported=False, console=Console(file=said))
    assert "static-0.5: left out: of layers that have learned nothing the first are as good as any" in said.getvalue()
    for name in ("shallow-0.5", "exits"):
        assert "teacher" not in torch.load(max((folder / "baselines" / name / "checkpoints").glob("update-*.pt")), weights_only=True)["learner"]
    assert main(["compare", str(folder), "--rows", "20"]) == 0


def test_a_start_of_another_network_or_none_at_all_is_one_line(start: Path, tmp_path: Path) -> None:
    wider = TrainConfig(**{**vars(options("static", tmp_path / "run")), "network": NetworkConfig(layers=4, width=32, heads=2)})
    with pytest.raises(UserError, match="does not fit the network.*remove it"):
        train(wider, quiet(), start=start)
    (tmp_path / "cut").write_bytes(start.read_bytes()[:1000])
    with pytest.raises(UserError, match="not a readable safetensors file.*remove it"):
        train(options("static", tmp_path / "run"), quiet(), start=tmp_path / "cut")
    assert not (tmp_path / "run").exists()


# ----------------------------------------------------------------------------------------------- as agents of train.py


@pytest.mark.parametrize("agent", BASELINES)
def test_a_baseline_goes_on_from_its_state_bit_for_bit(agent: str) -> None:
    config = TrainConfig(agent=agent, pricing=pricing_of(agent), network=NetworkConfig(layers=3, width=8, heads=2, dropout=0.1))
    task = load_task("digits")

    def go(session: Session, first: int, last: int) -> list[Tensor]:
        warm = session.learner.warmup_updates
        for update in range(first, last):
            session.averages.add(session.agent.update(warm + update))
        assert isinstance(session.agent, Baseline)
        return [*session.learner.stack.state_dict().values(), *session.agent.extra.state_dict().values()]

    whole = Session(config, task, torch.device("cpu"))
    go(whole, 0, 3)
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    expected = go(whole, 3, 6)
    resumed = Session(config, task, torch.device("cpu"))
    torch.rand(7)
    buffer.seek(0)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    found = go(resumed, 3, 6)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert resumed.averages.read() == whole.averages.read()
    assert isinstance(resumed.agent, Baseline) and isinstance(whole.agent, Baseline)
    assert resumed.agent.validation_setting().label == whole.agent.validation_setting().label


def test_every_baseline_has_an_agent() -> None:
    assert {"static", "shallow", "gumbel", "exits"} == {record.name for record in TRAINED}
    for record in TRAINED:
        assert AGENTS.find(record.name).record is record and record.trained and record.advice


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--agent", "static"], "the agent static is trained for one compute; set --budget"),
        (["--agent", "gumbel", "--price", "0.1"], "the agent gumbel trains no policy, which alone has a price; leave --price out"),
        (["--agent", "shallow", "--budget", "0.5", "--guarantee", "0.01"], "leave --guarantee out"),
        (["--agent", "exits", "--budget", "0.5"], "leave --budget out"),
        (["--agent", "gumbel", "--budget", "0.5", "--gate-temperature", "0"], "set --gate-temperature"),
        (["--agent", "gumbel", "--budget", "0.5", "--gate-hidden", "0"], "set --gate-hidden"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_make_no_sense_for_a_baseline_are_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main([*flags, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and message in said.err
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------------------------------------- all baselines of a run

ASKED = 0.75
"""Not what the policy spends."""


@pytest.fixture(scope="module")
def with_baselines(finished_run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run whose baselines are trained, and what was said meanwhile."""
    run = Path(shutil.copytree(finished_run.folder, tmp_path_factory.mktemp("baselines") / "run"))
    said = io.StringIO()
    train_baselines(run, budgets=[ASKED], console=Console(file=said))
    return run, said.getvalue()


def test_every_baseline_of_a_run_is_trained_with_its_options(with_baselines: tuple[Path, str]) -> None:
    run, said = with_baselines
    spent = load_run(run)[0].budget  # as exported, on validation data; not near that budget
    assert spent is not None and abs(spent - ASKED) > 0.03
    kinds = {f"{kind}-{budget:g}": kind for budget in (ASKED, round(spent, 2)) for kind in ("gumbel", "shallow", "static")}
    kinds |= {"exits": "exits", "one-shot": "reinforce"}
    assert {folder.name for folder in (run / "baselines").iterdir() if folder.is_dir()} == set(kinds)
    mine = json.loads((run / "config.json").read_text())
    for number, (name, kind) in enumerate(kinds.items(), start=1):
        folder, config = run / "baselines" / name, json.loads((run / "baselines" / name / "config.json").read_text())
        assert config["agent"] == kind and json.loads((folder / "report.json").read_text())["rows"] == 360
        same = ("task", "seed", "network", "schedule", "threads", "device")
        assert {key: config[key] for key in same} == {key: mine[key] for key in same}
        assert f"baseline {number} of 8, {name}: training" in said
        if name == "one-shot":
            assert config["policy"] == mine["policy"] | {"policy_scope": "input"} and (folder / "policy").is_dir()
            continue
        curve = load_curve(folder)
        assert (curve.record, curve.seed) == (AGENTS.find(kind).record, 0)
        assert all(len(point.correct) == 360 and point.budget == config["pricing"]["budget"] for point in curve.test)
        assert all(len(point.correct) == 359 for point in curve.validation)
        assert len(curve.test) == 1 or name == "exits" and len(curve.test) > 10
        if name != "exits":
            assert curve.validation[0].mean_compute <= config["pricing"]["budget"] + 0.006


def test_compare_sets_them_beside_the_policy(with_baselines: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    run, _ = with_baselines
    assert main(["compare", str(run), "--budgets", str(ASKED), "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    kinds = {curve["name"] for curve in found["curves"]}
    assert {"static", "shallow", "gumbel", "exits", "one-shot"} < kinds
    beside = {baseline["name"]: baseline for baseline in found["operating"][1]["baselines"]}
    curves = [load_curve(folder) for folder in (run / "baselines").glob("static-*")]
    within = [curve for curve in curves if curve.validation[0].mean_compute <= ASKED + SLACK]
    best = max(within, key=lambda curve: curve.validation[0].correct.mean()).test[0]
    assert beside["static"]["accuracy"]["value"] == pytest.approx(best.correct.mean().item())
    assert beside["static"]["label"] == best.label and found["notes"] == []


def test_what_is_finished_stays_and_what_was_stopped_goes_on(with_baselines: tuple[Path, str]) -> None:
    run, _ = with_baselines
    files = {file: file.read_bytes() for file in (run / "baselines").rglob("*") if file.is_file()}
    stopped = run / "baselines" / f"gumbel-{ASKED}"
    curve = (stopped / "curve.safetensors").read_bytes()
    for name in ("report.json", "curve.json", "curve.safetensors"):
        (stopped / name).unlink()
    said = io.StringIO()
    train_baselines(run, budgets=[ASKED], console=Console(file=said))
    assert (stopped / "curve.safetensors").read_bytes() == curve and (stopped / "report.json").is_file()
    assert f"gumbel-{ASKED}: going on" in said.getvalue() and said.getvalue().count("finished before") == 7
    assert all(file.read_bytes() == content for file, content in files.items() if stopped not in file.parents)


def test_the_standard_output_stays_empty(with_baselines: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    train_baselines(with_baselines[0], budgets=[ASKED])
    assert capsys.readouterr().out == "" and torch.get_num_threads() == threads


def test_a_baseline_that_the_network_cannot_have_is_left_out_and_compare_says_so(
    finished_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished_run.folder, tmp_path / "run"))

    def unsuited(self: object, learner: Learner) -> None:
        raise Unsuited("no head to copy")

    monkeypatch.setattr(Exits, "__init__", unsuited)
    said = io.StringIO()
    train_baselines(run, budgets=[], console=Console(file=said))
    left = {folder.name for folder in (run / "baselines").iterdir()}
    assert main(["compare", str(run), "--budgets", str(ASKED), "--json", "--device", "cpu"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes == [f"{run / 'baselines' / 'exits'}, confidence exits, is not there: no head to copy"]
    assert "exits: left out: no head to copy" in said.getvalue() and "one-shot" in left and "exits" not in left
