"""Stable-Baselines3's and sb3-contrib's agents for discrete actions, with the hyperparameters that they bring, and MaskablePPO with the recipe."""

from typing import Any

import numpy as np

from benchmarks.outside.play import Array, Choose
from benchmarks.outside.recipe import maskable_ppo
from envs import make_sb3_env

RECIPE = "maskable-ppo-recipe"
NUM_ENVS = 4
"""Few, since a rollout of PPO is 2,048 steps of each."""


def train(name: str, steps: int, seed: int) -> tuple[Choose, int]:
    """An agent that was trained for about so many steps, and for how many."""
    agent = maskable_ppo(steps, seed) if name == RECIPE else made(name, seed)
    if name != RECIPE:
        agent.learn(steps)
    return Asked(agent), agent.num_timesteps


def made(name: str, seed: int) -> Any:
    """An agent before its training."""
    import sb3_contrib
    import stable_baselines3

    lstm = name == "recurrent-ppo"
    kinds = {
        "ppo": stable_baselines3.PPO,
        "a2c": stable_baselines3.A2C,
        "dqn": stable_baselines3.DQN,
        "maskable-ppo": sb3_contrib.MaskablePPO,
        "recurrent-ppo": sb3_contrib.RecurrentPPO,
        "trpo": sb3_contrib.TRPO,
        "qr-dqn": sb3_contrib.QRDQN,
        "ars": sb3_contrib.ARS,
    }
    env = make_sb3_env(NUM_ENVS, run="hops-v0")
    return kinds[name]("MlpLstmPolicy" if lstm else "MlpPolicy", env, seed=seed, device="cpu")


class Asked:
    """An agent asked for its likeliest jumps: one that takes masks with the legal ones, one that has a memory with what it remembers."""

    def __init__(self, agent: Any) -> None:
        self.agent, self.masked, self.memory = agent, "Maskable" in type(agent).__name__, None

    def __call__(self, observations: Array, masks: Array, begun: Array) -> Array:
        if self.masked:
            return np.asarray(self.agent.predict(observations, deterministic=True, action_masks=masks)[0])
        jumps, self.memory = self.agent.predict(observations, self.memory, episode_start=begun, deterministic=True)
        return np.asarray(jumps)
