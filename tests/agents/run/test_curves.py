"""What TensorBoard shows of a run, read back through its own reader, for both agents."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, IMAGES, SCALARS, TENSORS, EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

import train
from benchmarks.kill import SMALL

LAYERS, JOINT, BATCH = 4, 64, 64
"""Of the short runs: layers, updates after the warm-up, rows of one."""
PPO = ("--agent", "ppo", "--epochs", "4", "--num-envs", "32", "--steps", "8", "--minibatch", "64", "--finished-rollouts", "3")
DECISIONS = {"reinforce": BATCH * (LAYERS - 1), "ppo": 32 * 8}
"""Environment steps of an update of REINFORCE, and of a rollout of PPO."""
CARDS = {"final/trade_off", "final/run_rate", "final/flow", "layers/run_rates"}
EVAL = ("accuracy", "compute", "reward", "price")
PPO_CURVES = [f"train/{name}" for name in ("approx_kl", "clip_fraction", "explained_variance", "policy_gradient_loss", "policy_grad_norm")]


def read(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={SCALARS: 0, IMAGES: 0, TENSORS: 0, HISTOGRAMS: 0})
    found.Reload()
    return found


@pytest.fixture(scope="module")
def ppo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "ppo"
    assert train.main(["--out", str(folder), *SMALL, *PPO]) == 0
    return folder


@pytest.fixture(params=["reinforce", "ppo"])
def run(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """An agent, and the folder of its run."""
    return request.param, request.getfixturevalue("ppo_run") if request.param == "ppo" else request.getfixturevalue("finished_run").folder


def test_every_curve_has_fifty_points_and_every_validation_curve_ten(run: tuple[str, Path]) -> None:
    agent, folder = run
    events = read(folder)
    curves = {tag: len(events.Scalars(tag)) for tag in events.Tags()["scalars"] if not tag.startswith(("final/", "exported/", "finished/"))}
    ppos = {tag for tag in curves if tag in PPO_CURVES} if agent == "ppo" else set()  # a point for each of its rollouts
    assert len(ppos) == (len(PPO_CURVES) if agent == "ppo" else 0) and all(curves[tag] == 4 + 3 for tag in ppos)
    assert {tag: points for tag, points in curves.items() if tag.startswith("eval/")} == {f"eval/{name}": 12 for name in EVAL}  # and once as exported
    for tag in ("rollout/ep_rew_mean", "rollout/accuracy", "rollout/compute", "policy/entropy", "train/supervised_loss", "train/grad_norm", "price"):
        assert curves[tag] >= 50, tag

def test_the_second_axis_counts_what_the_agent_learned_from(run: tuple[str, Path]) -> None:
    agent, folder = run
    over_updates, over_steps = read(folder), read(folder / "env_steps")
    written = {event.step: event.value for event in over_updates.Scalars("env_steps")}
    parts = DECISIONS[agent]
    expected = {update: parts * (update - 32 if agent == "reinforce" else -(-(update - 32) // 16)) for update in range(33, 97)}
    assert {step: count for step, count in written.items() if step in expected} == expected
    for tag in ("rollout/ep_rew_mean", "rollout/compute", "eval/reward", "eval/accuracy", "finished/ep_rew_mean"):
        points = [event.value for event in over_updates.Scalars(tag)]
        again = over_steps.Scalars(f"by_env_steps/{tag}")
        assert [event.value for event in again] == points, tag
        counts = [written[max(at for at in written if at <= event.step)] for event in over_updates.Scalars(tag)]
        assert [event.step for event in again] == counts, tag
    assert all(tag.startswith("by_env_steps/") for tag in over_steps.Tags()["scalars"]), "axes are not mixed in one chart"


def test_a_policy_goes_on_learning_after_the_last_update_and_is_validated_once_more(run: tuple[str, Path]) -> None:
    agent, folder = run
    events = read(folder)
    parts = 60 if agent == "reinforce" else 3
    assert [event.step for event in events.Scalars("finished/ep_rew_mean")] == list(range(97, 97 + parts))
    assert events.Scalars("eval/reward")[-1].step == 97 + parts
    rewards = [event.value for event in events.Scalars("finished/ep_rew_mean")]
    assert all(-3 < reward <= 1 for reward in rewards)


def test_pictures_are_of_the_size_of_a_card(run: tuple[str, Path]) -> None:
    events = read(run[1])
    assert set(events.Tags()["images"]) == CARDS
    for tag in CARDS:
        (image,) = events.Images(tag)
        with Image.open(io.BytesIO(image.encoded_image_string)) as opened:
            assert opened.size == (780, 620), "twice the pixels of a card"
            assert len(opened.convert("L").getcolors() or range(99)) > 20, "not empty"


def test_reward_accuracy_and_compute_come_first_and_every_chart_has_a_curve(run: tuple[str, Path]) -> None:
    agent, folder = run
    events = read(folder)
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert layout.category[0].title == "reward, accuracy, compute"
    assert [chart.title for chart in layout.category[0].chart] == ["reward", "accuracy", "compute"]
    there = {*events.Tags()["scalars"], *read(folder / "env_steps").Tags()["scalars"]}
    for category in layout.category:
        for chart in category.chart:
            assert there & {tag.strip("^$") for tag in chart.multiline.tag}, chart.title


def test_runs_are_told_apart_by_the_same_columns(run: tuple[str, Path]) -> None:
    agent, folder = run
    start = HParamsPluginData.FromString(read(folder).PluginTagToContent("hparams")["_hparams_/session_start_info"]).session_start_info
    assert start.hparams["agent"].string_value == agent
    assert set(start.hparams) == {"task", "agent", "seed", "price_or_budget", "learning_rate", "policy_learning_rate"}


def test_settings_model_card_and_remarks_are_texts(run: tuple[str, Path]) -> None:
    agent, folder = run
    events = read(folder)
    last = {name: events.Tensors(f"{name}/text_summary")[-1] for name in ("settings", "model_card", "remarks/end")}
    texts = {name: event.tensor_proto.string_val[0].decode() for name, event in last.items()}
    assert f"| agent | {agent} |" in texts["settings"] and "| network/layers | 4 |" in texts["settings"]
    assert texts["model_card"] == (folder / "policy" / "README.md").read_text()
    said = json.loads((folder / "report.json").read_text())["remarks"]
    assert texts["remarks/end"] == ("\n".join(f"- {remark}" for remark in said) or "Nothing to remark.")


def test_the_page_on_curves_names_every_tag(run: tuple[str, Path]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "curves.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    named = {tag for row in rows for tag in re.findall(r"`([^`]+)`", row)}
    tags = read(run[1]).Tags()
    for tag in (*tags["scalars"], *tags["images"], *tags["histograms"], *(tag.removesuffix("/text_summary") for tag in tags["tensors"])):
        known = re.sub(r"run_rate_\d+", "run_rate_<i>", re.sub(r"jump_\d+", "jump_<a>", tag)).replace("/accuracy", "/<score>")
        assert known in named or known == "custom_scalars__config__", tag


def test_histograms_say_where_the_rows_left(run: tuple[str, Path]) -> None:
    events: Any = read(run[1])
    computes, last, layers = (events.Scalars("eval/compute"), events.Histograms("eval/last_layer"), events.Histograms("eval/layers_run"))
    assert len(last) == len(layers) == len(computes) >= 10
    for left, ran, compute in zip(last, layers, computes, strict=True):
        at, number = left.histogram_value, ran.histogram_value
        assert list(at.bucket_limit) == [0.5, 1.5, 2.5, 3.5] and list(number.bucket_limit) == [1.5, 2.5, 3.5, 4.5]
        assert list(at.bucket) == list(number.bucket), "who leaves after layer i has run i + 1"
        full = [layer for layer, rows in enumerate(at.bucket) if rows > 0]
        assert (at.min, at.max) == (full[0] - 0.5, full[-1] + 0.5), "else TensorBoard draws bars that are too wide"
        assert sum(at.bucket) == 359 and number.sum / 359 / LAYERS == pytest.approx(compute.value, abs=0.15), "decisions come on top"
