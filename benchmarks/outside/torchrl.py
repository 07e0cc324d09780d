"""TorchRL's PPO, from its parts, with the hyperparameters of its own example for MuJoCo, on the native vector environment."""

from typing import Any

import gymnasium as gym
import torch
from torch import nn

from benchmarks.outside.play import ID, Array, Choose

NUM_ENVS, FRAMES, EPOCHS, MINIBATCH = 16, 2048, 10, 64
HIDDEN = [64, 64]


def train(name: str, steps: int, seed: int) -> tuple[Choose, int]:
    """The actor after about so many steps, and the steps."""
    from tensordict.nn import TensorDictModule
    from torchrl.collectors import Collector
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
    from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
    from torchrl.envs import GymWrapper
    from torchrl.modules import MLP, OneHotCategorical, ProbabilisticActor, ValueOperator
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    torch.manual_seed(seed)
    made: Any = gym.make_vec(ID, num_envs=NUM_ENVS, autoreset_mode="disabled", seed=seed)
    env, size, actions = GymWrapper(made), made.single_observation_space.shape[0], int(made.single_action_space.n)
    net = MLP(in_features=size, out_features=actions, num_cells=HIDDEN, activation_class=nn.Tanh)
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=OneHotCategorical,
        return_log_prob=True,
    )
    critic = ValueOperator(MLP(in_features=size, out_features=1, num_cells=HIDDEN, activation_class=nn.Tanh), in_keys=["observation"])
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    loss = ClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_coeff=0.0, critic_coeff=0.25, normalize_advantage=True)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-4, eps=1e-5)
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(FRAMES), sampler=SamplerWithoutReplacement(), batch_size=MINIBATCH)
    taken = 0
    for batch in Collector(env, actor, frames_per_batch=FRAMES, total_frames=steps):
        taken += batch.numel()
        for _ in range(EPOCHS):
            with torch.no_grad():
                advantage(batch)
            buffer.empty()
            buffer.extend(batch.reshape(-1))
            for _ in range(FRAMES // MINIBATCH):
                parts = loss(buffer.sample())
                optimizer.zero_grad()
                (parts["loss_objective"] + parts["loss_critic"]).backward()
                nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()

    def choose(observations: Array, _masks: Array, _begun: Array) -> Array:
        with torch.no_grad():
            return net(torch.as_tensor(observations)).argmax(dim=1).numpy()

    return choose, taken
