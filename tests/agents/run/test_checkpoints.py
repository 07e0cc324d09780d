"""Checkpoints and resume: whatever stops a run, whenever, it goes on and ends as if nothing had happened."""

import copy
import io
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from agents.agent import AgentConfig
from agents.options.config import CheckpointConfig, NetworkConfig, PriceConfig, TrainConfig
from agents.policy.policy_agent import PolicyAgent
from agents.policy.ppo import PpoConfig
from agents.run.checkpoints import Checkpoints, Stopped, StopRequests, load_random_states, random_states
from agents.run.moments import load_moments
from agents.run.session import Session
from benchmarks.kill import WEIGHTS, differences, points, reached, start, train_with_kills
from rl_skip.core.errors import UserError
from rl_skip.tasks import load_task


@pytest.fixture(autouse=True)
def signals_are_heard() -> Iterator[None]:
    """Ctrl-C is heard as in a terminal, also where the tests run in the background of a shell, which makes its children ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def state(done: int) -> dict[str, Any]:
    return {"done": done, "weights": torch.full((50, 50), float(done)), "nested": {"list": [1, 2.5, "text", None]}}


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def checkpoints_of(folder: Path, *updates: int) -> Checkpoints:
    made = Checkpoints(folder, CheckpointConfig())
    for update in updates:
        made.write(update, state(update))
    return made


def newest(folder: Path) -> Path:
    return max(folder.glob("checkpoints/update-*.pt"))


# ---------------------------------------------------------------------------------------------------------- the files


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path, CheckpointConfig(keep_checkpoints=2))
    for update in (5, 10, 15):
        made.write(update, state(update))
    names = sorted(file.name[:16] for file in (tmp_path / "checkpoints").iterdir())
    assert names == ["update-000000010", "update-000000015"]


def test_the_newest_is_read_back(tmp_path: Path) -> None:
    checkpoints_of(tmp_path, 9, 10, 100)
    said: list[str] = []
    found = Checkpoints(tmp_path, CheckpointConfig()).latest(said.append)
    assert found is not None and found["done"] == 100 and found["nested"] == state(100)["nested"]
    assert torch.equal(found["weights"], state(100)["weights"])
    assert said == [f"going on from {newest(tmp_path)}"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.9, 0.9999])
def test_one_that_was_cut_short_is_named_and_the_one_before_it_used(tmp_path: Path, share: float) -> None:
    checkpoints_of(tmp_path, 10, 20)
    damaged = newest(tmp_path)
    content = damaged.read_bytes()
    damaged.write_bytes(content[: int(share * len(content))])
    said: list[str] = []
    found = Checkpoints(tmp_path, CheckpointConfig()).latest(said.append)
    assert found is not None and found["done"] == 10
    assert len(said) == 2 and str(damaged) in said[0] and "\n" not in said[0]
    assert not damaged.exists()


@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 0.999])
def test_a_single_flipped_bit_is_found_out(tmp_path: Path, place: float) -> None:
    checkpoints_of(tmp_path, 10, 20)
    content = bytearray(newest(tmp_path).read_bytes())
    content[int(place * len(content))] ^= 1
    newest(tmp_path).write_bytes(content)
    found = Checkpoints(tmp_path, CheckpointConfig()).latest(lambda line: None)
    assert found is not None and found["done"] == 10


def test_where_all_are_damaged_each_is_named(tmp_path: Path) -> None:
    checkpoints_of(tmp_path, 10, 20, 30)
    for file in tmp_path.glob("checkpoints/*.pt"):
        file.write_bytes(file.read_bytes()[:-1])
    said: list[str] = []
    assert Checkpoints(tmp_path, CheckpointConfig()).latest(said.append) is None
    assert [line.split("update-")[1][:9] for line in said] == ["000000030", "000000020", "000000010"]


def test_what_is_half_written_never_bears_the_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append([file.name for file in tmp_path.glob("checkpoints/update-*")]), fsync(handle)))
    checkpoints_of(tmp_path, 10)
    assert seen == [[]] and newest(tmp_path).name.startswith("update-000000010-")


def test_due_after_updates_or_minutes_whichever_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    made = Checkpoints(tmp_path, CheckpointConfig(checkpoint_minutes=2, checkpoint_updates=10))
    assert [made.due(update) for update in (1, 9, 10, 11)] == [False, False, True, True]
    made.write(10, state(10))
    assert [made.due(update) for update in (11, 19, 20)] == [False, False, True]
    now[0] += 119
    assert not made.due(11)
    now[0] += 1
    assert made.due(11)
    by_time = Checkpoints(tmp_path, CheckpointConfig())
    assert not by_time.due(10**6)
    now[0] += 300
    assert by_time.due(1)


# ------------------------------------------------------------------------------------------------------ random states


def test_random_states_come_back_through_a_file() -> None:
    random.seed(3)
    np.random.seed(3)
    random.gauss(0, 1), np.random.standard_normal()  # both keep a second one back
    buffer = io.BytesIO()
    torch.save(random_states(), buffer)
    draw = lambda: [random.gauss(0, 1), random.random(), np.random.standard_normal(), *np.random.permutation(700)]  # noqa: E731
    expected = draw()
    buffer.seek(0)
    load_random_states(torch.load(buffer, weights_only=True))
    assert draw() == expected


# -------------------------------------------------------------------------------------------------- optimisers' states


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["state"][0].pop("exp_avg"),
        lambda state: state["state"][0].update(exp_avg=torch.zeros(0)),
        lambda state: state["state"][0].update(step=3),
        lambda state: state["state"].update({7: state["state"][0]}),
        lambda state: state["param_groups"][0].update(lr="fast"),
        lambda state: state["param_groups"][0].update(betas=(0.9,)),
        lambda state: state["param_groups"][0].update(params=[1, 0]),
        lambda state: state["param_groups"].append(state["param_groups"][0]),
    ],
)
def test_an_optimiser_goes_back_to_states_that_fit_it_alone(change: Any) -> None:
    def stepped(weights: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        optimizer.zero_grad()
        sum(weight.square().sum() for weight in weights).backward()  # type: ignore[union-attr]
        optimizer.step()
        return [weight.detach().clone() for weight in weights]

    weights = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    optimizer = torch.optim.AdamW(weights)
    there = stepped(weights, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    after = stepped(weights, optimizer)
    again = [torch.nn.Parameter(weight) for weight in there]
    other = torch.optim.AdamW(again)
    load_moments(other, copy.deepcopy(state))
    assert all(map(torch.equal, stepped(again, other), after))
    change(state)
    with pytest.raises(ValueError):
        load_moments(torch.optim.AdamW(again), state)


# ------------------------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_request_waits_for_the_end_of_a_patient_stretch(number: int, code: int) -> None:
    before, done = signal.getsignal(number), []
    with pytest.raises(Stopped, match="stopped; go on so") as stopped, StopRequests("go on so") as stop:
        with stop.patiently():
            os.kill(os.getpid(), number)
            done.append(stop.requested)
        done.append(False)
    assert done == [True] and stopped.value.exit_code == code
    assert signal.getsignal(number) == before


def test_a_request_is_obeyed_at_once_elsewhere_and_when_repeated() -> None:
    with pytest.raises(Stopped), StopRequests(""):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        pytest.fail("not stopped")
    with pytest.raises(Stopped), StopRequests("") as stop, stop.patiently():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        pytest.fail("not stopped")


def test_what_the_parent_process_told_to_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequests("") as stop, stop.patiently():
            os.kill(os.getpid(), signal.SIGINT)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGINT, before)


# -------------------------------------------------------------------------------------------------- the session's state


@pytest.mark.parametrize("agent", ["reinforce", "ppo", "maskable-ppo"])
@pytest.mark.parametrize("pricing", [PriceConfig(), PriceConfig(price=0.1), PriceConfig(budget=0.6)], ids=["range", "price", "budget"])
def test_a_session_goes_on_from_its_state_bit_for_bit(agent: Any, pricing: PriceConfig) -> None:
    small = AgentConfig() if agent == "reinforce" else PpoConfig(num_envs=16, steps=4, minibatch=32, passes=2)
    network = NetworkConfig(layers=3, width=8, heads=2, dropout=0.1)
    config = TrainConfig(agent=agent, pricing=pricing, network=network, agent_config=small)
    task = load_task("digits")

    def go(session: Session, first: int, last: int) -> list[torch.Tensor]:
        per_epoch = session.learner.updates_per_epoch
        for update in range(first, last):
            warming = update < 2
            joint = session.learner.warmup_updates + (update - 2) * (per_epoch // 2)  # every other one begins an epoch
            session.averages.add(session.warm_up.update(update) if warming else session.agent.update(joint))
        learner = session.learner
        return [*learner.stack.state_dict().values(), *learner.policy.state_dict().values(), *learner.critic.state_dict().values()]

    whole = Session(config, task, torch.device("cpu"))
    go(whole, 0, 5)
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    expected = go(whole, 5, 9)
    resumed = Session(config, task, torch.device("cpu"))
    torch.rand(7), random.random(), np.random.rand()  # another process would stand elsewhere
    buffer.seek(0)
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    found = go(resumed, 5, 9)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert resumed.averages.read() == whole.averages.read()
    assert isinstance(resumed.agent, PolicyAgent) and isinstance(whole.agent, PolicyAgent)
    assert resumed.agent.prices.validation_price == whole.agent.prices.validation_price


# -------------------------------------------------------------------------------------------------------------- resume


def copied(run: Any, folder: Path, *without: str) -> Path:
    """The run's folder without what a run lacks that was stopped before its end."""
    shutil.copytree(run.folder, folder)
    for name in without:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    return folder


def test_killed_at_random_moments_it_ends_as_if_never_stopped(finished_run: Any, tmp_path: Path) -> None:
    chance = random.Random(0)
    moments = [chance.randrange(30), chance.randrange(30, 60), chance.randrange(60, 85)]
    left = train_with_kills(tmp_path / "killed", finished_run.options, moments, chance)
    updates = [kill.update for kill in left]
    assert len(left) == 3 and updates == sorted(updates) and updates[-1] >= 60 and left[1].writing
    assert differences(finished_run.folder, tmp_path / "killed") == []
    assert set(points(tmp_path / "killed").values()) == {1}


def test_ctrl_c_and_sigterm_leave_a_checkpoint_and_say_how_to_go_on(finished_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a run"
    options = ["--checkpoint-updates", "1000"]  # none by itself
    begin, go_on = ["--out", str(folder), *finished_run.options], ["--resume", str(folder)]
    for number, code, arguments in ((signal.SIGINT, 130, begin), (signal.SIGTERM, 143, go_on)):
        before = reached(folder)
        process = start(*arguments, *options)
        metrics = folder / "metrics.jsonl"
        seen = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        deadline = time.monotonic() + 120
        while (not metrics.exists() or len(metrics.read_text().splitlines()) < seen + 2) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(number)
        said = process.communicate(timeout=120)[0].splitlines()
        assert process.returncode == code, said
        assert said[-1] == f"stopped; go on with: python train.py --resume '{folder}'"
        assert reached(folder) > max(before, 0)
    assert not (folder / "policy").exists()
    assert train.main(["--resume", str(folder)]) == 0
    assert f"going on from {newest(folder).parent}" in capsys.readouterr().out
    assert differences(finished_run.folder, folder) == []


def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(
    finished_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(finished_run, tmp_path / "run", "report.json", "policy")
    damaged = newest(folder)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert train.main(["--resume", str(folder)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "is damaged" in line]
    assert len(lines) == 1 and str(damaged) in lines[0]
    assert differences(finished_run.folder, folder) == []
    assert set(points(folder).values()) == {1}


def test_without_a_checkpoint_it_begins_anew_and_says_so(finished_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(finished_run, tmp_path / "run", "report.json", "policy", "checkpoints")
    assert train.main(["--resume", str(folder)]) == 0
    assert "has no checkpoint that could be used, so it begins at update 0" in capsys.readouterr().out
    assert differences(finished_run.folder, folder) == []


def test_where_the_export_is_missing_only_the_end_is_redone(finished_run: Any, tmp_path: Path) -> None:
    folder = copied(finished_run, tmp_path / "run", "policy")
    kept = {name: content for name, content in contents(folder).items() if name.startswith("checkpoints") or name == "metrics.jsonl"}
    assert train.main(["--resume", str(folder)]) == 0
    assert {name: contents(folder)[name] for name in kept} == kept
    assert differences(finished_run.folder, folder) == []


def test_a_finished_run_says_so_and_is_left_alone(finished_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished_run.folder)
    assert train.main(["--resume", str(finished_run.folder)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "is finished" in said[0]
    assert contents(finished_run.folder) == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--epochs", "5"], "--epochs 4, not 5"),
        (["--seed", "1"], "--seed 0, not 1"),
        (["--task", "speech"], "--task digits, not speech"),
        (["--price", "0.1"], "--price None, not 0.1"),
        (["--overwrite"], "--overwrite False, not True"),
        (["--agent", "ppo"], "--agent reinforce, not ppo"),
        (["--agent", "static"], "--agent reinforce, not static"),
        (["--entropy-start", "0.5"], "--entropy-start 0.1, not 0.5"),
    ],
)
def test_flags_that_contradict_the_run_are_refused(finished_run: Any, flags: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished_run.folder)
    assert train.main(["--resume", str(finished_run.folder), *flags]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and named in said[0]
    assert contents(finished_run.folder) == before


def test_flags_that_agree_or_change_nothing_that_is_learned_are_taken(finished_run: Any) -> None:
    flags = ["--epochs", "4", "--seed", "0", "--threads", "1", "--device", "cpu", "--keep-checkpoints", "7"]
    assert train.main(["--resume", str(finished_run.folder), *flags]) == 0


def test_options_that_were_changed_by_hand_are_told(finished_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(finished_run, tmp_path / "run", "report.json")
    written = json.loads((folder / "config.json").read_text())
    written["network"]["width"] = 32
    (folder / "SHA256SUMS").unlink()  # which a run that was stopped has not
    (folder / "config.json").write_text(json.dumps(written))
    assert train.main(["--resume", str(folder)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "does not fit the run's options" in said[0]
    assert "if an earlier version began the run, name under feature there what its policy saw" in said[0]  # its default may have been another


# --------------------------------------------------------------------------------------------------------- config.json


def test_options_survive_their_file(tmp_path: Path) -> None:
    options = TrainConfig(
        seed=7, data=None, pricing=PriceConfig(budget=0.5), network=NetworkConfig(layers=5, stack="skip-layer"), checkpoints=CheckpointConfig(1.5, 20)
    )
    (tmp_path / "config.json").write_text(json.dumps(options.to_json()))
    found = TrainConfig.from_json(tmp_path)
    assert found.to_json() == options.to_json() and found.pricing == options.pricing and found.checkpoints == options.checkpoints
    assert found.folder == tmp_path


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("seed",), ..., "seed is missing"),
        (("schedule", "epochs"), ..., "schedule.epochs is missing"),
        (("schedule", "epochs"), "many", "schedule.epochs must be a whole number, got 'many'"),
        (("schedule", "epochs"), True, "schedule.epochs must be a whole number, got True"),
        (("schedule", "learning_rate"), None, "schedule.learning_rate must be a number, got None"),
        (("schedule", "epochs"), 0, "epochs is too small: 0"),
        (("pricing", "price_range"), [0.1], "pricing.price_range must be a list of 2 numbers"),
        (("pricing", "price"), "cheap", "pricing.price must be a number, got 'cheap'"),
        (("policy", "allow_exit"), 1, "policy.allow_exit must be true or false, got 1"),
        (("agent",), "sarsa", "there is no agent 'sarsa'; set --agent to"),
        (("agent_config", "routes_per_input"), 1, "raise --routes-per-input"),
        (("agent_config", "steps"), 8, "agent_config.steps is no option of this version"),
        (("network",), [], "network must be an object"),
        (("network", "layerz"), 3, "network.layerz is no option of this version"),
        (("task", "name"), 3, "task.name must be a string"),
        (("format_version",), 99, "format_version is 99"),
        (("format_version",), 1, "format_version is 1, of an earlier rl_skip, and this one reads 2 and up; train the run anew with --overwrite"),
    ],
)
def test_a_field_that_is_missing_or_wrong_is_named(tmp_path: Path, path: tuple[str, ...], value: object, message: str) -> None:
    written = TrainConfig().to_json()
    inner = written
    for name in path[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(UserError) as error:
        TrainConfig.from_json(tmp_path)
    assert message in str(error.value) and str(tmp_path / "config.json") in str(error.value) and "\n" not in str(error.value)


def test_weights_are_what_differences_compares(finished_run: Any, tmp_path: Path) -> None:
    """The comparison that the tests above rest on does see a single flipped bit."""
    for name in WEIGHTS:
        folder = copied(finished_run, tmp_path / name)
        content = bytearray((folder / "policy" / name).read_bytes())
        content[-1] ^= 1
        (folder / "policy" / name).write_bytes(content)
        assert differences(finished_run.folder, folder) == [name]
