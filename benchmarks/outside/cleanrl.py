"""CleanRL's `ppo.py`, unmodified: run as its users run it, with `--capture-video`, and its agent looked at when it has ended."""

import os
import runpy
import sys
from pathlib import Path

import torch

from benchmarks.outside.play import ID, Array, Choose

SCRIPT = "CLEANRL_PPO"
"""The variable that names the file."""


def train(name: str, steps: int, seed: int) -> tuple[Choose, int]:
    """The agent of the script after about so many steps, and the steps. Videos are in the working directory.

    Raises:
        FileNotFoundError: if no video was made.
    """
    sys.argv = ["ppo.py", "--env-id", ID, "--seed", str(seed), "--total-timesteps", str(steps), "--capture-video"]
    found = runpy.run_path(os.environ[SCRIPT], run_name="__main__")
    if not any(Path("videos").rglob("*.mp4")):
        raise FileNotFoundError(f"{os.environ[SCRIPT]} made no video")
    agent = found["agent"]

    def choose(observations: Array, _masks: Array, _begun: Array) -> Array:
        with torch.no_grad():
            return agent.actor(torch.as_tensor(observations)).argmax(dim=1).numpy()

    return choose, found["global_step"]
