"""Tianshou 2's PPO, from its parts, with the hyperparameters that they bring."""

from typing import Any

import gymnasium as gym
import torch
from torch import nn

from benchmarks.outside.play import ID, Array, Choose

NUM_ENVS = 16
HIDDEN = [64, 64]


def train(name: str, steps: int, seed: int) -> tuple[Choose, int]:
    """The actor after about so many steps, and the steps."""
    from tianshou.algorithm import PPO
    from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic

    torch.manual_seed(seed)
    one: Any = gym.make(ID)
    envs = DummyVectorEnv([lambda: gym.make(ID) for _ in range(NUM_ENVS)])
    envs.seed(seed)

    def body() -> Net:
        return Net(state_shape=one.observation_space.shape, hidden_sizes=HIDDEN, activation=nn.Tanh)

    actor = DiscreteActor(preprocess_net=body(), action_shape=one.action_space.n, softmax_output=False)
    policy = DiscreteActorPolicy(actor=actor, action_space=one.action_space, observation_space=one.observation_space)
    critic = DiscreteCritic(preprocess_net=body())
    algorithm = PPO(policy=policy, critic=critic, optim=AdamOptimizerFactory(lr=3e-4))
    collector = Collector(algorithm, envs, VectorReplayBuffer(2048, NUM_ENVS))
    once = OnPolicyTrainerParams(
        training_collector=collector, max_epochs=1, epoch_num_steps=steps, update_step_num_repetitions=10, show_progress=False, verbose=False
    )
    algorithm.run_training(once)

    def choose(observations: Array, _masks: Array, _begun: Array) -> Array:
        with torch.no_grad():
            return actor(observations)[0].argmax(dim=1).numpy()

    return choose, collector.collect_step
