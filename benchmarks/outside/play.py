"""What a trained agent earns: every test row of Hops played once, in the environment itself."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rl_skip.tasks import load_task

ID = "envs:rl_skip/Hops-v0"
DEPTH, POSITION = 8, -3
"""Layers, and where in an observation the row's place among them is."""
Array = NDArray[Any]
Choose = Callable[[Array, Array, Array], Array]
"""(observations (N, S), legal jumps (N, J + 1) bool, episodes that begin (N,) bool) → jumps (N,), the likeliest, not drawn."""


def play(choose: Choose, rows: int = 4_000) -> dict[str, float]:
    """Mean reward, accuracy, and compute with decisions, of the first test rows, at the environment's own price."""
    env: Any = gym.make_vec(ID, num_envs=rows, split="test", autoreset_mode="next_step")
    observations, infos = env.reset(seed=0, options={"example": np.arange(rows)})
    reward, right, compute = np.zeros(rows), np.zeros(rows), np.zeros(rows)
    over, begun = np.zeros(rows, dtype=bool), np.ones(rows, dtype=bool)
    while not over.all():
        jumps = choose(observations, env.action_masks(), begun)
        observations, paid, ended, _, infos = env.step(np.asarray(jumps, dtype=np.int64))
        reward += np.where(over, 0.0, paid)
        first = ended & ~over
        right[first], compute[first] = infos["score"][first] if first.any() else 0.0, infos["compute"][first] if first.any() else 0.0
        over, begun = over | ended, np.zeros(rows, dtype=bool)
    env.close()
    return {"reward": float(reward.mean()), "accuracy": float(right.mean()), "compute": float(compute.mean())}


def optimum(rows: int = 4_000) -> dict[str, float]:
    """The same of one who knows how many pointers each row asks for, and runs as many layers, one after another."""
    examples = load_task("hops").load("test")
    asked = examples.inputs[:rows, -1, 1].numpy()  # type: ignore[index]

    def choose(observations: Array, masks: Array, _begun: Array) -> Array:
        ran = np.rint(observations[:, POSITION] * DEPTH) + 1
        return np.where(ran < asked, 0, masks.sum(axis=1) - 1)  # the longest jump leaves

    return play(choose, rows)
