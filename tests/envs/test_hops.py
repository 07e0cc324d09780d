"""`rl_skip/Hops-v0`: a frozen network of the package, whose best is known, and the agents that are measured on it."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RescaleObservation

import envs
from rl_skip import UserError
from rl_skip.measure.runs import load_run

ID = "envs:rl_skip/Hops-v0"
ROWS = 800


@pytest.fixture(scope="module")
def best() -> float:
    """Mean reward of test rows that ask for k pointers and run the first k layers, layer by layer, by hand."""
    model, task = load_run("hops-v0")
    examples, rules = task.load("test").take(slice(0, ROWS)), model.rules
    asked = examples.inputs[:, -1, 1]  # type: ignore[index]
    carry, outputs = model.stack.begin(examples.inputs), torch.zeros(ROWS, 8)
    with torch.no_grad():
        for i in range(8):
            model.stack.run(i, carry, None)
            outputs[asked == i + 1] = model.stack.finish(carry)[asked == i + 1]
    decisions = asked.clamp(max=7) * rules.decision_flops / carry.full_flops
    right = (outputs.argmax(dim=1) == examples.labels).float()
    return float((right - 0.1 * (asked / 8 + decisions)).mean())


def test_the_threshold_is_95_percent_of_the_optimum(best: float) -> None:
    assert best == pytest.approx(0.942, abs=0.005)  # 800 of 4,000 rows
    assert gym.spec("rl_skip/Hops-v0").reward_threshold == pytest.approx(0.95 * 0.942, abs=5e-4)


def test_who_knows_the_pointers_earns_the_optimum_step_by_step(best: float) -> None:
    from benchmarks.outside.play import optimum

    assert optimum(ROWS)["reward"] == pytest.approx(best, abs=1e-4)


def test_it_is_made_from_its_id_with_the_conventions_of_the_others() -> None:
    env = gym.make(ID, render_mode="ansi", price=0.2, split="validation")
    observation, info = env.reset(seed=3, options={"example": 11})
    assert env.observation_space.contains(observation) and info["action_mask"].all() and info["example"] == 11
    info = env.step(7)[4]
    assert info["route"].tolist() == [True, *[False] * 7] and info["price"] == pytest.approx(0.2)
    batch: Any = gym.make_vec(ID, num_envs=3, split="validation", autoreset_mode="disabled")
    batch.reset(options={"example": 11})
    _, rewards, over, _, infos = batch.step(np.array([7, 0, 0]))
    assert over.tolist() == [True, False, False] and infos["compute"][0] == pytest.approx(info["compute"])
    assert rewards[0] == pytest.approx(infos["score"][0] - 0.1 * infos["compute"][0])
    with pytest.raises(UserError, match="leave them out with a run"):
        gym.make(ID, layers=4)


def test_a_wrapper_that_rescales_leaves_something_to_see() -> None:
    batch: Any = gym.make_vec(ID, num_envs=200)
    observations, _ = batch.reset(seed=0)
    low, high = batch.single_observation_space.low, batch.single_observation_space.high
    assert (low[:32] == -np.sqrt(31, dtype=np.float32)).all() and (high[:32] == np.sqrt(31, dtype=np.float32)).all()
    scaled = (observations - low) / (high - low) * 2 - 1
    assert np.abs(scaled).max() <= 1 and scaled[:, :32].std(axis=0).mean() > 0.05
    env = RescaleObservation(gym.make(ID), np.float32(-1), np.float32(1))
    np.testing.assert_allclose(env.reset(seed=0)[0], scaled[0], atol=1e-5)


class Asked:
    """An agent that is asked as those of Stable-Baselines3 are, and always wants the longest jump."""

    def __init__(self, memory: Any = None) -> None:
        self.memory = memory

    def predict(self, observation: Any, deterministic: bool) -> tuple[Any, Any]:
        return np.full(len(observation), 7), self.memory


class Masked(Asked):
    """The same, of the jumps that are legal and end at a layer, where there is one."""

    def predict(self, observation: Any, deterministic: bool, action_masks: Any = None) -> tuple[Any, Any]:  # type: ignore[override]
        assert action_masks.shape == (len(observation), 8)
        return np.maximum(action_masks.sum(axis=1) - 2, 0), None


def test_an_agent_that_takes_masks_is_given_them_and_one_that_remembers_is_refused() -> None:
    found = envs.evaluate(Masked(), "hops-v0", "validation", flops=0.0)
    assert found.ways["agent"].route.tolist() == [[True, *[False] * 6, True]] * 2000
    assert envs.evaluate(Asked(), "hops-v0", "validation", flops=0.0).ways["agent"].route.sum() == 2000
    assert found.ways["the run's policy"].reward > gym.spec("rl_skip/Hops-v0").reward_threshold  # type: ignore[operator]
    with pytest.raises(UserError, match="remembers earlier observations"):
        envs.evaluate(Asked(memory=("hidden",)), "hops-v0", "validation")
