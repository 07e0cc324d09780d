"""The recipe with which MaskablePPO solves Hops, as the page on the environment explains it.

    python benchmarks/outside/recipe.py [--seeds 0 1 2] [--steps 300000]

Measured by `envs.evaluate`, on all test rows, at the environment's own price.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from sb3_contrib import MaskablePPO

import envs


def maskable_ppo(steps: int, seed: int) -> MaskablePPO:
    """The agent after so many steps of the environment."""
    env = envs.make_sb3_env(num_envs=256, run="hops-v0")
    agent = MaskablePPO(
        "MlpPolicy",
        env,
        n_steps=16,
        batch_size=512,
        n_epochs=4,
        learning_rate=1e-3,
        gamma=1.0,
        gae_lambda=1.0,
        ent_coef=0.01,
        seed=seed,
        device="cpu",
    )
    with torch.no_grad():
        agent.policy.action_net.bias[0] += 4.0  # begins with going on to the next layer
    return agent.learn(steps)


def main() -> None:
    """Trains and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        started = time.perf_counter()
        agent = maskable_ppo(arguments.steps, seed)
        seconds = time.perf_counter() - started
        print(f"seed {seed}, {agent.num_timesteps:,} steps, {seconds:.0f} s\n{envs.evaluate(agent, 'hops-v0')}", flush=True)


if __name__ == "__main__":
    main()
