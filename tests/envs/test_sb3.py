"""The Stable-Baselines3 adapter: against its own vector of singles, and its agents, which train on it."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

import envs
from envs import LayerSkipEnv, SB3SkipVecEnv


def test_it_does_what_a_vector_of_singles_does(small: dict[str, Any]) -> None:
    reference, batch = DummyVecEnv([lambda: LayerSkipEnv(**small)] * 4), envs.make_sb3_env(4, **small).venv
    assert reference.observation_space == batch.observation_space and reference.action_space == batch.action_space
    assert reference.seed(3) == batch.seed(3)
    np.testing.assert_allclose(batch.reset(), reference.reset(), atol=1e-6)
    actions, ended = np.random.default_rng(0), 0
    for _ in range(50):
        chosen = actions.integers(0, 5, 4)
        (expected, rewards, dones, infos), got = reference.step(chosen), batch.step(chosen)
        np.testing.assert_allclose(got[0], expected, atol=1e-6)
        np.testing.assert_allclose(got[1], rewards, atol=1e-6)
        assert got[1].dtype == np.float32 and got[2].dtype == bool
        np.testing.assert_array_equal(got[2], dones)
        np.testing.assert_array_equal(np.stack(batch.env_method("action_masks")), np.stack(reference.env_method("action_masks")))
        for mine, info in zip(got[3], infos, strict=True):
            if "route" not in info:  # of episodes under way; the batch says them once for all, by env_method and reset_infos
                info.pop("action_mask"), info.pop("example")
            assert mine.keys() == info.keys()
            assert mine["TimeLimit.truncated"] is info["TimeLimit.truncated"] is False
            for key in info:
                np.testing.assert_allclose(mine[key], info[key], atol=1e-6)
        ended += int(dones.sum())
    assert ended > 20
    np.testing.assert_allclose(batch.reset(), reference.reset(), atol=1e-6)  # seeds count once, streams go on


def test_attributes_and_methods_of_one_environment(small: dict[str, Any]) -> None:
    env = envs.make_sb3_env(3, render_mode="ansi", **small)
    env.seed(0)
    env.reset()
    env.step(np.array([0, 1, 4]))
    masks = env.env_method("action_masks")
    assert [mask.astype(int).tolist() for mask in masks] == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert env.has_attr("action_masks") and not env.has_attr("no_such_thing")
    assert env.env_method("action_masks", indices=[1])[0].tolist() == env.get_attr("action_masks")[1]().tolist() == masks[1].tolist()
    assert env.get_attr("render_mode", indices=0) == ["ansi"]
    lines = env.env_method("render")
    assert lines[0].startswith("0■ 1■ 2·") and lines[2].startswith("0■ 1□ 2□ 3□ 4□ 5■") and "score" in lines[2]
    assert env.render() == "\n".join(lines)
    assert env.env_is_wrapped(VecMonitor) == [False] * 3  # type: ignore[arg-type]


def test_arrays_are_fresh(small: dict[str, Any]) -> None:
    env = SB3SkipVecEnv(envs.EnvOptions(**small).core(4))
    handed: list[Any] = [env.reset(), env.env_method("action_masks")]
    for jump in (0, 2, 4, 1):
        handed.append(env.step(np.full(4, jump)))
    kept = deepcopy(handed)
    for jump in (1, 4, 0):
        env.step(np.full(4, jump))
    np.testing.assert_equal(handed, kept)


@pytest.mark.parametrize(
    ("agent", "options"),
    [(MaskablePPO, {"n_steps": 32}), (A2C, {"n_steps": 8}), (DQN, {"learning_starts": 100, "train_freq": 2}), (PPO, {"n_steps": 32})],
    ids=["MaskablePPO", "A2C", "DQN", "PPO"],
)
def test_agents_train_a_thousand_steps(small: dict[str, Any], agent: type[BaseAlgorithm], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    env = envs.make_sb3_env(8, price=0.5, seed=0, **small)
    model = agent("MlpPolicy", env, seed=0, device="cpu", **options)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(1000)
    assert model.num_timesteps >= 1000
    assert any(not torch.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    assert len(model.ep_info_buffer) > 0 and len(model.ep_success_buffer) > 0  # type: ignore[arg-type]


def test_the_example_of_the_manual() -> None:
    env = envs.make_sb3_env(task="digits", num_envs=64, layers=4, width=8)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=256, n_epochs=1).learn(1024)
    assert model.ep_info_buffer and {"r", "l", "t"} <= model.ep_info_buffer[0].keys()


def test_ppo_finds_that_skipping_pays_when_compute_is_dear() -> None:
    """With a score that no route changes, the best route is the cheapest: layer 0, then straight to the last."""
    options: dict[str, Any] = {"task": "digits", "layers": 4, "width": 8, "heads": 2, "score": lambda outputs, labels: torch.ones(len(labels))}
    env = envs.make_sb3_env(32, price=1.0, seed=0, **options)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=128, learning_rate=3e-3, seed=0, device="cpu").learn(8000)
    single = LayerSkipEnv(price=1.0, **options)
    observation, _ = single.reset(seed=0)
    action, _ = model.predict(observation, deterministic=True)
    info = single.step(action)[-1]
    assert info["route"].tolist() == [True, False, False, True]
