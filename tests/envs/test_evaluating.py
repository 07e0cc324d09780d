"""An agent from outside, on every row of a split: against the policy whose decisions it copies, and its own episodes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.wrappers import RescaleObservation
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import VecNormalize

import envs
import rl_skip
from rl_skip import UserError
from rl_skip.core.costs import linear_flops
from rl_skip.measure.runs import load_run
from tests.conftest import FinishedRun


@pytest.fixture(scope="module")
def run(finished_run: FinishedRun) -> Path:
    return finished_run.folder


def test_a_function_that_decides_as_the_policy_does_is_measured_as_the_policy(run: Path) -> None:
    model, task = load_run(run)
    rules = model.rules

    @torch.no_grad()
    def copied(observations: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return model.policy(torch.from_numpy(observations)).argmax(dim=1).numpy()

    flops = rules.decision_flops - rules.layout.flops
    found = envs.evaluate(copied, run, "validation", flops=flops)
    agent, policy = found.ways["agent"], found.ways["the run's policy"]
    assert torch.equal(agent.route, policy.route) and torch.equal(agent.correct, policy.correct)
    torch.testing.assert_close(agent.compute_by_row, policy.compute_by_row)
    assert agent.rows == len(task.load("validation")) and agent.price == model.price
    assert found.ways["full depth"].route.all()
    fixed = found.ways["best fixed route"]
    assert fixed.distinct_routes == 1 and fixed.compute <= agent.compute + 1e-6
    counted = envs.evaluate(copied, run, "validation").flops
    assert counted == pytest.approx(flops)
    lines = str(found).splitlines()
    assert lines[1].split() == ["accuracy", "compute", "reward"] and len(lines) == 6


def test_an_agent_of_stable_baselines3_does_as_in_its_own_environment(run: Path) -> None:
    torch.manual_seed(0)
    env = envs.LayerSkipEnv(run=run, split="validation")
    agent = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
    torch.nn.init.normal_(agent.policy.action_net.weight)  # so that rows differ
    found = envs.evaluate(agent, run, "validation", price=0.1)
    assert found.flops == linear_flops(env.core.rules.layout.size, 64) + linear_flops(64, 64) + linear_flops(64, env.core.rules.max_jump + 1)
    for example in range(20):
        observation, _ = env.reset(options={"example": example, "price": 0.1})
        over = False
        while not over:
            observation, _, over, _, info = env.step(agent.predict(observation, deterministic=True)[0])
        assert info["route"].tolist() == found.ways["agent"].route[example].tolist()
        assert info["score"] == found.ways["agent"].correct[example]


def test_what_does_not_fit_is_told_in_one_line(run: Path, tmp_path: Path) -> None:
    other = DQN("MlpPolicy", envs.LayerSkipEnv(task="digits", layers=4, width=8), buffer_size=10, device="cpu")
    with pytest.raises(UserError, match="run="):
        envs.evaluate(other, run)
    with pytest.raises(UserError, match="whole number"):
        envs.evaluate(lambda observations: np.zeros(len(observations)), run)
    with pytest.raises(UserError, match="lie in 0"):
        envs.evaluate(lambda observations: np.full(len(observations), 99), run)
    with pytest.raises(UserError, match=r"DQN; measure another agent with envs\.evaluate"):
        rl_skip.save(tmp_path / "policy", other, price=0.1)


def test_an_agent_sees_what_its_normalising_environment_showed_it(run: Path) -> None:
    env = VecNormalize(envs.make_sb3_env(num_envs=8, run=str(run), split="validation"))
    agent = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu").learn(128)
    torch.nn.init.normal_(agent.policy.action_net.weight)  # so that rows differ

    def same(observations: np.ndarray[Any, Any]) -> Any:
        return agent.predict(env.normalize_obs(observations), deterministic=True)[0]

    expected = envs.evaluate(same, run, "validation", flops=1.0).ways["agent"].route
    assert torch.equal(envs.evaluate(agent, run, "validation", flops=1.0).ways["agent"].route, expected)
    env.norm_obs = False
    assert not torch.equal(envs.evaluate(agent, run, "validation", flops=1.0).ways["agent"].route, expected)


def test_a_function_is_given_the_legal_jumps_where_it_takes_them(run: Path) -> None:
    rules = load_run(run)[0].rules
    shapes = []

    def longest(observations: np.ndarray[Any, Any], action_masks: np.ndarray[Any, Any]) -> Any:
        shapes.append((len(observations), action_masks.shape))
        return action_masks.shape[1] - 1 - action_masks[:, ::-1].argmax(axis=1)

    found = envs.evaluate(longest, run, "validation").ways["agent"]
    assert found.distinct_routes == 1 and found.route[0].tolist() == [True] + [False] * (rules.layout.depth - 1)
    assert all(shape == (rows, rules.max_jump + 1) for rows, shape in shapes)


def test_a_wrapper_that_changes_what_is_seen_is_named_by_its_bounds(run: Path) -> None:
    env = RescaleObservation(envs.LayerSkipEnv(run=run), np.float32(-1), np.float32(1))
    agent = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu")
    with pytest.raises(UserError, match=r"is Box of shape .* from -1 to 1, the run's Box of shape .* from -\d.*give a function that does the same"):
        envs.evaluate(agent, run)
