"""What a run tells is all there, read back through TensorBoard's own reader, and each step once."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import IMAGES, SCALARS, TENSORS, EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from agents.options.config import PolicyConfig, TrainConfig
from agents.run.learner import Learner
from agents.run.pictures import show_run_rates
from agents.run.telemetry import RunRates, Telemetry, rollout_metrics
from benchmarks.kill import points
from rl_skip.core.errors import UserError
from rl_skip.core.forward import routed_forward
from rl_skip.core.reward import LINEAR
from rl_skip.core.routers import PolicyRouter
from rl_skip.learning.averages import Averages

LAYERS, LONGEST_JUMP = 4, 2
TRAINING = [f"train/{name}" for name in ("policy_loss", "supervised_loss", "grad_norm", "policy_grad_norm", "learning_rate")]
ROLLOUT = [f"rollout/{name}" for name in ("ep_rew_mean", "ep_len_mean", "accuracy", "compute")]
ALWAYS = [
    *ROLLOUT,
    *(f"eval/{name}" for name in ("accuracy", "compute", "reward", "price")),
    "env_steps",
    "policy/entropy",
    *(f"layers/run_rate_{layer}" for layer in range(LAYERS)),
    *TRAINING,
    "price",
    "time/samples_per_second",
]
SAMPLED = [*(f"policy/jump_{jump}" for jump in range(LONGEST_JUMP + 1)), "train/value_loss"]
"""What only a policy that is sampled shows."""
ALONE = [f"finished/{name}" for name in ("ep_rew_mean", "compute", "entropy")]
"""What only a policy shows that learns on from the finished network."""
TAGS = {"finished_run": [*ALWAYS, *ALONE], "jumping_run": [*ALWAYS, *SAMPLED]}


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={SCALARS: 0, IMAGES: 0, TENSORS: 0})
    found.Reload()
    return found


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


# ------------------------------------------------------------------------------------------------------- real runs


@pytest.fixture
def named_run(request: pytest.FixtureRequest) -> Any:
    """The run whose fixture is named."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(("named_run", "tag"), [(run, tag) for run, tags in TAGS.items() for tag in tags], indirect=["named_run"])
def test_every_curve_is_in_the_event_file(named_run: Any, tag: str) -> None:
    written = curve(named_run.folder, tag)
    assert len(written) >= 2
    assert all(torch.isfinite(torch.tensor(value)) for _, value in written)


@pytest.mark.parametrize(("named_run", "tags"), TAGS.items(), ids=TAGS, indirect=["named_run"])
def test_no_tag_is_there_that_is_not_known(named_run: Any, tags: list[str]) -> None:
    compared = {f"{stage}/{name}" for stage in ("final", "exported") for name in ("accuracy", "compute", "reward", "price")}
    known = {*tags, *compared, "warmup/accuracy"}
    assert set(read(named_run.folder).Tags()["scalars"]) == known


@pytest.mark.parametrize("named_run", TAGS, indirect=True)
def test_the_reward_is_higher_at_the_end(named_run: Any) -> None:
    rewards = [value for _, value in curve(named_run.folder, "rollout/ep_rew_mean")]
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.05


def test_the_shares_of_jumps_sum_to_one(jumping_run: Any) -> None:
    jumps = [dict(curve(jumping_run.folder, f"policy/jump_{jump}")) for jump in range(LONGEST_JUMP + 1)]
    rates = [dict(curve(jumping_run.folder, f"layers/run_rate_{layer}")) for layer in range(LAYERS)]
    for step in jumps[0]:
        assert sum(jump[step] for jump in jumps) == pytest.approx(1, abs=1e-5)
        assert rates[0][step] == 1 and all(0 <= rate[step] <= 1 for rate in rates)


def test_rows_that_cannot_jump_go_on_or_leave(tiny_learner: Callable[..., Learner]) -> None:
    learner = tiny_learner(policy=PolicyConfig(readouts=True, jumps=False))
    rollout = routed_forward(learner.stack, PolicyRouter(learner.policy, sample=True), learner.train.inputs, price=0.1)
    found = rollout_metrics(rollout, torch.ones(len(learner.train)), torch.ones(len(learner.train)), LINEAR, learner.rules)
    last = rollout.route.sum(dim=1)  # how many layers each row ran, from the first on
    decisions, left = int(last.clamp(max=LAYERS - 1).sum()), int((last < LAYERS).sum())
    assert 0 < left < decisions
    assert {name: value.item() for name, value in found.items() if name.startswith("policy/") and name != "policy/entropy"} == pytest.approx(
        {"policy/leave": left / decisions, "policy/go_on": 1 - left / decisions}
    )


def test_where_rows_can_but_leave_no_layer_runs_more_often_than_those_before(finished_run: Any) -> None:
    rates = [dict(curve(finished_run.folder, f"layers/run_rate_{layer}")) for layer in range(LAYERS)]
    decisions = dict(curve(finished_run.folder, "rollout/ep_len_mean"))
    for step in decisions:  # the policy decides after every layer that ran but the last
        ran = [rate[step] for rate in rates]
        assert ran[0] == pytest.approx(1) and ran == sorted(ran, reverse=True) and ran[-1] >= 0
        assert decisions[step] == pytest.approx(sum(ran[:-1]), abs=1e-5)


def test_each_step_stands_once_and_at_even_distances(finished_run: Any) -> None:
    assert set(points(finished_run.folder).values()) == {1}
    steps = [step for step, _ in curve(finished_run.folder, "train/learning_rate")]
    assert steps == list(range(1, 97))


@pytest.mark.parametrize(("named_run", "tags"), TAGS.items(), ids=TAGS, indirect=["named_run"])
def test_metrics_jsonl_says_the_same_as_tensorboard(named_run: Any, tags: list[str]) -> None:
    entries = [json.loads(line) for line in (named_run.folder / "metrics.jsonl").read_text().splitlines()]
    for tag in tags:
        expected = [(entry["step"], pytest.approx(entry[tag], rel=1e-6)) for entry in entries if tag in entry]
        assert curve(named_run.folder, tag) == expected, tag


def test_the_settings_stand_as_hyper_parameters_with_final_metrics(finished_run: Any) -> None:
    found = read(finished_run.folder)
    summaries = {tag: found.SummaryMetadata(tag).plugin_data for tag in found.PluginTagToContent("hparams")}
    assert set(summaries) == {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}
    start = HParamsPluginData.FromString(found.PluginTagToContent("hparams")["_hparams_/session_start_info"]).session_start_info
    shown = {name: value.string_value or value.number_value for name, value in start.hparams.items()}
    named = {"task": "digits", "agent": "reinforce", "seed": "0", "price_or_budget": "prices 0.003 to 3"}
    assert shown == {**named, "learning_rate": 1e-3, "policy_learning_rate": 3e-3}
    report = json.loads((finished_run.folder / "report.json").read_text())
    exported = {**report["policy"], "price": report["price"]}
    for stage, at in (("final", report["at_eval_price"]), ("exported", exported)):
        for name in ("accuracy", "compute", "reward", "price"):
            ((_, value),) = curve(finished_run.folder, f"{stage}/{name}")
            assert value == pytest.approx(at[name], rel=1e-6)


def test_final_is_at_the_price_of_every_validation(finished_run: Any) -> None:
    prices = [value for _, value in (*curve(finished_run.folder, "eval/price"), *curve(finished_run.folder, "final/price"))]
    assert len(prices) > 10 and prices == pytest.approx([(0.003 * 3) ** 0.5] * len(prices), rel=1e-6)
    at = {name: curve(finished_run.folder, f"final/{name}")[0][1] for name in ("accuracy", "compute", "reward", "price")}
    assert at["reward"] == pytest.approx(at["accuracy"] - at["price"] * at["compute"], abs=1e-6)


def test_test_data_are_loaded_for_the_final_table_alone(finished_run: Any) -> None:
    assert finished_run.calls.count("test") == 1
    assert set(finished_run.calls[: finished_run.calls.index("final report")]) == {"train", "validation"}


# ------------------------------------------------------------------------------------------------ a run that goes on


def write(telemetry: Telemetry, steps: range) -> None:
    for step in steps:
        rates = {"layers/run_rate_0": step / 100, "layers/run_rate_1": 0.5}
        telemetry.scalars(step, {"a": float(step), "rollout/compute": step / 2, "env_steps": 1000.0 * step, **rates})


def close_at_the_end(telemetry: Telemetry) -> None:
    show_run_rates(telemetry)
    telemetry.hyper_parameters(TrainConfig(), {"final/accuracy": 0.5})
    telemetry.close()


def test_the_picture_of_a_long_run_has_even_points_and_the_last_and_takes_no_more_memory() -> None:
    rates = RunRates()
    for step in range(1, 50_001):
        rates.add({"step": step, "a": 1.0} if step % 2 else {"step": step, "layers/run_rate_0": 1.0, "layers/run_rate_1": step / 50_000})
    steps = torch.tensor([step for step, _ in rates.points])
    assert 1_000 <= len(steps) <= 2_001 and steps[0] == 2 and steps[-1] == 50_000
    assert len(steps[:-1].diff().unique()) == 1, "evenly apart"
    assert all(found == [1.0, step / 50_000] for step, found in rates.points)


def test_a_run_that_goes_on_twice_shows_each_step_once_to_every_reader(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, print)
    write(telemetry, range(1, 8))
    close_at_the_end(telemetry)
    telemetry = Telemetry(tmp_path, print, resume_after=4)
    write(telemetry, range(5, 10))
    telemetry.close()
    telemetry = Telemetry(tmp_path, print, resume_after=8)
    write(telemetry, range(9, 13))
    close_at_the_end(telemetry)
    expected = [(step, float(step)) for step in range(1, 13)]
    assert curve(tmp_path, "a") == expected
    assert set(points(tmp_path).values()) == {1}
    assert [(entry["step"], entry["a"]) for entry in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())] == expected
    assert [step for step, _ in telemetry.run_rates.points] == list(range(1, 13))  # what the picture shows, earlier sittings included
    (image,) = read(tmp_path).Images("layers/run_rates")
    assert image.step == 12
    over_env_steps = [(1000 * step, step / 2) for step in range(1, 13)]
    assert curve(tmp_path / "env_steps", "by_env_steps/rollout/compute") == over_env_steps
    assert set(points(tmp_path / "env_steps").values()) == {1}


def test_what_a_kill_tore_is_cut_off(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, print)
    write(telemetry, range(1, 6))
    telemetry.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    events.write_bytes(events.read_bytes()[:-7])
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 6, "a"')
    telemetry = Telemetry(tmp_path, print, resume_after=3)
    write(telemetry, range(4, 7))
    telemetry.close()
    assert curve(tmp_path, "a") == [(step, float(step)) for step in range(1, 7)]
    assert set(points(tmp_path).values()) == {1}
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_a_kill_while_the_files_are_cleared_doubles_nothing(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, print)
    write(telemetry, range(1, 6))
    telemetry.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    before = events.read_bytes()
    Telemetry(tmp_path, print, resume_after=4).close()
    events.write_bytes(before)  # what a kill before its removal would have left
    Telemetry(tmp_path, print, resume_after=4).close()
    assert curve(tmp_path, "a") == [(step, float(step)) for step in range(1, 5)]
    assert set(points(tmp_path).values()) == {1}


def test_a_clock_that_was_set_back_disorders_nothing(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, print)
    write(telemetry, range(1, 6))
    telemetry.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    events.rename(tmp_path / "events.out.tfevents.9999999999.ahead")
    telemetry = Telemetry(tmp_path, print, resume_after=5)
    write(telemetry, range(6, 9))
    telemetry.close()
    assert curve(tmp_path, "a") == [(step, float(step)) for step in range(1, 9)]


def test_after_a_flush_the_disk_has_everything(tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, print)
    write(telemetry, range(1, 30))
    telemetry.flush()
    assert len(curve(tmp_path, "a")) == 29
    telemetry.close()


# ---------------------------------------------------------------------------------------------------------- averages


def test_averages_are_means_of_what_was_added_and_go_on_from_their_state() -> None:
    whole, halves = Averages(torch.device("cpu")), Averages(torch.device("cpu"))
    values = torch.rand(9, generator=torch.Generator().manual_seed(0))
    for n, value in enumerate(values):
        both = {"always": value} | ({"seldom": value} if n % 4 == 0 else {})
        whole.add(both)
        halves.add(both)
        if n == 4:
            resumed = Averages(torch.device("cpu"))
            resumed.load_state_dict(halves.state_dict())
            halves = resumed
    found = whole.read()
    assert found == halves.read()
    assert found["always"] == pytest.approx(values.mean().item()) and found["seldom"] == pytest.approx(values[::4].mean().item())
    assert whole.read() == {}


@pytest.mark.parametrize(
    "line",
    ["[]", "{}", "5", '{"step": "a"}', '{"step": NaN}', '{"step": 1, "env_steps": NaN}', '{"step": 1, "env_steps": Infinity}', "{", "[" * 5000],
)
def test_a_record_that_is_none_is_told_in_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="metrics.jsonl is not as it was written"):
        Telemetry(tmp_path, print, resume_after=3)


def test_records_that_are_links_pipes_or_no_events_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "metrics.jsonl").symlink_to(other)
    with pytest.raises(UserError, match="is a link, and nothing is written to what it leads to"):
        Telemetry(tmp_path, print, resume_after=3)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "events.out.tfevents.1.x").write_bytes(struct.pack("<QI", 4, 0) + b"\xff\xff\xff\xff" + bytes(4))
    with pytest.raises(UserError, match=r"events.out.tfevents.1.x is no event file"):
        Telemetry(tmp_path, print, resume_after=3)
    (tmp_path / "events.out.tfevents.1.x").unlink()
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match="is a pipe and no file"):
        Telemetry(tmp_path, print, resume_after=3)
    assert other.read_text() == "mine"
