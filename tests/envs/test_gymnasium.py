"""The Gymnasium environments: the official checks, N singles against one vector, and what `info` and `render` say."""

import json
import warnings
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from envs import LayerSkipEnv, LayerSkipVectorEnv
from rl_skip import Examples, JumpPolicy, JumpRules, ModuleStack, ObservationLayout, UserError
from rl_skip.export.policy_folder import save
from rl_skip.measure.runs import FORMAT_VERSION
from rl_skip.nets.network import NetworkConfig, build_network, network_to_json
from rl_skip.tasks import load_task
from rl_skip.tasks.options import TaskOptions

ID = "envs:rl_skip/LayerSkip-v0"


@pytest.mark.parametrize("more", [{}, {"price_range": (0.01, 1.0)}, {"allow_exit": True, "policy_scope": "input"}, {"stack": "skip-layer"}])
def test_both_official_checks_pass_without_a_warning(small: dict[str, Any], more: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make(ID, render_mode="ansi", **small, **more)
        check_env(env.unwrapped)
        sb3_check_env(env.unwrapped, skip_render_check=False)
        env.reset(seed=0)
        for _ in range(20):  # through the passive checker of gym.make
            if env.step(env.action_space.sample())[2]:
                env.reset()


@pytest.mark.parametrize("more", [{}, {"price_range": (0.01, 1.0)}, {"allow_exit": True}, {"stack": "skip-layer"}])
def test_a_vector_is_its_single_environments(small: dict[str, Any], more: dict[str, Any]) -> None:
    """Gymnasium's own vector of singles is the reference, down to the form of the infos."""
    singles = SyncVectorEnv([lambda: LayerSkipEnv(**small, **more)] * 5, autoreset_mode=AutoresetMode.SAME_STEP)
    batch = gym.make_vec(ID, num_envs=5, **small, **more)
    assert singles.observation_space == batch.observation_space and singles.action_space == batch.action_space
    assert_same(singles.reset(seed=7), batch.reset(seed=7))
    actions = np.random.default_rng(0)
    ended = 0
    for _ in range(60):
        chosen = actions.integers(0, batch.single_action_space.n, 5)  # type: ignore[attr-defined]
        expected, got = singles.step(chosen), batch.step(chosen)
        assert_same(expected, got)
        assert batch.observation_space.contains(got[0])
        ended += int(got[2].sum())
    assert ended > 30
    assert_same(singles.reset(), batch.reset())  # going on with the same random streams


def assert_same(expected: Any, got: Any) -> None:
    """Equal in structure and type; floating-point numbers to 1e-6."""
    if isinstance(expected, dict):
        assert expected.keys() == got.keys()
        for key in expected:
            assert_same(expected[key], got[key])
    elif isinstance(expected, tuple) or isinstance(expected, np.ndarray) and expected.dtype == object:
        for one, other in zip(expected, got, strict=True):
            assert_same(one, other)
    elif expected is None or isinstance(expected, int):
        assert got == expected
    elif type(expected) is float:
        assert type(got) is float and got == pytest.approx(expected, abs=1e-6, rel=1e-6)
    else:
        assert expected.dtype == got.dtype and expected.shape == got.shape
        np.testing.assert_allclose(got, expected, atol=1e-6, rtol=1e-6)


def test_what_info_says_at_the_end(small: dict[str, Any]) -> None:
    env = LayerSkipEnv(**small, price=0.2, score="probability")
    _, info = env.reset(seed=1)
    assert set(info) == {"action_mask", "example"} and info["example"] == env.core.drawn.item()
    total, terminated, jumps = 0.0, False, [1, 0, 9]
    while not terminated:
        _, reward, terminated, truncated, info = env.step(min(jumps.pop(0), 4))
        total += reward
        assert not truncated
    assert info["route"].tolist() == [True, False, True, True, False, True]
    assert total == pytest.approx(info["score"] - 0.2 * info["compute"], abs=1e-6)
    assert info["price"] == pytest.approx(0.2) and 0 < info["score"] < 1 and info["is_success"] == (info["score"] > 0.5)
    decisions = 3 * env.core.rules.decision_flops / float(env.core.stack.layer_flops.sum())
    assert info["compute"] == pytest.approx(4 / 6 + decisions, abs=1e-6)
    example = env.core.drawn.item()
    assert info["label"] == env.core.examples.labels[example]


def test_an_ended_episode_asks_for_reset(small: dict[str, Any]) -> None:
    env = LayerSkipEnv(**small)
    env.reset(seed=0)
    assert env.step(4)[2]
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        env.step(0)


@pytest.mark.parametrize("action", [-1, 5])
def test_a_jump_outside_the_action_space_is_refused(small: dict[str, Any], action: int) -> None:
    single, batch = LayerSkipEnv(**small), LayerSkipVectorEnv(2, **small)
    single.reset()
    batch.reset()
    with pytest.raises(ValueError, match="0..4"):
        single.step(action)
    with pytest.raises(ValueError, match="0..4"):
        batch.step(np.array([0, action]))
    with pytest.raises(ValueError, match="2 integers"):
        batch.step(np.zeros(3, dtype=np.int64))


def test_arrays_are_fresh(small: dict[str, Any]) -> None:
    env = LayerSkipVectorEnv(4, **small)
    handed = [env.reset(seed=0)]
    for jump in (0, 2, 1, 4):
        handed.append(env.step(np.full(4, jump)))
    kept = deepcopy(handed)
    for jump in (1, 0, 4, 3):
        env.step(np.full(4, jump))
    for one, other in zip(kept, handed, strict=True):
        assert_same(one, other)


@pytest.mark.xfail(
    tuple(map(int, gym.__version__.split(".")[:2])) < (1, 4), reason="before 1.4, Gymnasium's statistics leave out steps of SAME_STEP", strict=True
)
def test_episode_statistics_of_gymnasium(small: dict[str, Any]) -> None:
    env = RecordEpisodeStatistics(gym.make_vec(ID, num_envs=6, price=0.3, **small))
    env.reset(seed=0)
    episodes = 0
    for step in range(30):
        _, _, terminated, _, infos = env.step(np.full(6, step % 3))
        for n in terminated.nonzero()[0]:
            last = infos["final_info"]
            assert infos["episode"]["r"][n] == pytest.approx(last["score"][n] - 0.3 * last["compute"][n], abs=1e-6)
            episodes += 1
    assert episodes == env.episode_count > 20


def test_a_route_is_drawn_as_a_line(small: dict[str, Any]) -> None:
    env = gym.make(ID, render_mode="ansi", **small)
    env.reset(seed=0)
    assert env.render().startswith("0■ 1· 2· 3· 4· 5·  compute 0.16")  # type: ignore[union-attr]
    env.step(2)
    assert env.render().startswith("0■ 1□ 2□ 3■ 4· 5·  compute")  # type: ignore[union-attr]
    info = env.step(1)[-1]
    drawn = env.render()
    assert drawn.startswith("0■ 1□ 2□ 3■ 4□ 5■  compute") and drawn.endswith(  # type: ignore[union-attr]
        f"score {info['score']:.3f}  label {info['label']}  prediction {info['prediction']}"
    )
    batch = gym.make_vec(ID, num_envs=2, render_mode="ansi", **small)
    batch.reset(seed=0)
    batch.step(np.array([4, 0]))
    ended, under_way = batch.render()  # type: ignore[misc]
    assert ended.startswith("0■ 1□ 2□ 3□ 4□ 5■") and "score" in ended
    assert under_way.startswith("0■ 1■ 2· 3· 4· 5·") and "score" not in under_way
    with pytest.raises(UserError, match="render_mode"):
        LayerSkipEnv(render_mode="human", **small)


def test_seeds_decide_the_network_and_the_episodes(small: dict[str, Any]) -> None:
    def first(seed: int | None, reset: int | None) -> list[float]:
        return LayerSkipEnv(seed=seed, **small).reset(seed=reset)[0].tolist()

    assert first(3, None) == first(3, None) != first(4, None)
    assert first(None, 5) == first(0, 5) != first(1, 5)  # other weights
    assert first(None, 5) != first(None, 6)


def test_a_stack_and_data_of_ones_own() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 4) for _ in range(3)]
    stack = ModuleStack(torch.nn.Identity(), layers, torch.nn.Linear(4, 2), width=4, layer_flops=[1e5] * 3)
    examples = Examples(torch.randn(9, 4), torch.zeros(9, dtype=torch.long))
    env = LayerSkipEnv(stack=stack, examples=examples, score=lambda outputs, labels: outputs[:, 0].sigmoid(), price=0.0)
    env.reset(seed=0)
    x = examples.inputs[env.core.drawn]  # type: ignore[index]
    _, reward, terminated, _, _ = env.step(1)
    assert terminated
    assert reward == pytest.approx(stack.head(layers[2](layers[0](x)))[0, 0].sigmoid().item(), abs=1e-6)


def test_the_network_of_a_run(tmp_path: Path) -> None:
    task, config = load_task("digits"), NetworkConfig(layers=5, width=8, heads=2)
    torch.manual_seed(21)
    stack = build_network(config, task.embedding, task.tokens, len(task.classes))
    policy = JumpPolicy(JumpRules(ObservationLayout(8, 5), max_jump=2))
    write_run(tmp_path, config)
    save(tmp_path / "policy", policy, stack=stack, network=network_to_json(config, task.embedding, task.tokens, 10), price=0.25)
    env = LayerSkipEnv(run=tmp_path, split="validation")
    own = LayerSkipEnv(task="digits", stack=stack, max_jump=2, price=0.25, split="validation")
    assert env.action_space == own.action_space and len(env.core.examples) == len(task.load("validation"))
    assert_same(env.reset(seed=4), own.reset(seed=4))
    for jump in (1, 1):
        expected, got = own.step(jump), env.step(jump)
        assert got[1:4] == expected[1:4]
    assert got[2] and got[4]["price"] == 0.25
    assert LayerSkipEnv(run=tmp_path, max_jump=3, price=0.5).action_space.n == 4  # type: ignore[attr-defined]


def write_run(folder: Path, config: NetworkConfig) -> None:
    described = {
        "format_version": FORMAT_VERSION,
        "agent": "reinforce",
        "task": {"name": "digits", "data": None, "options": asdict(TaskOptions())},
        "network": asdict(config),
        "pricing": {"reward": "linear"},
        "policy": {"feature": []},
    }
    (folder / "config.json").write_text(json.dumps(described))
