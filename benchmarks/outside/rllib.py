"""RLlib's PPO, with the hyperparameters that it brings, in one process."""

from typing import Any

import gymnasium as gym
import torch

from benchmarks.outside.play import ID, Array, Choose

NUM_ENVS = 16


def train(name: str, steps: int, seed: int) -> tuple[Choose, int]:
    """The module after about so many steps, and the steps."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.tune.registry import register_env

    register_env("hops", lambda _config: gym.make(ID))
    config = PPOConfig().environment("hops").env_runners(num_env_runners=0, num_envs_per_env_runner=NUM_ENVS).learners(num_learners=0)
    algorithm: Any = config.debugging(seed=seed).build_algo()
    taken = 0
    while taken < steps:
        taken = int(algorithm.train()["num_env_steps_sampled_lifetime"])
    module = algorithm.get_module()
    algorithm.stop()

    def choose(observations: Array, _masks: Array, _begun: Array) -> Array:
        with torch.no_grad():
            return module.forward_inference({"obs": torch.as_tensor(observations)})["action_dist_inputs"].argmax(dim=1).numpy()

    return choose, taken
