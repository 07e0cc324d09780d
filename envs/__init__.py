"""The environment around a stack: `gym.make("envs:rl_skip/LayerSkip-v0", task="digits")` and its vector forms."""

from gymnasium.envs.registration import register

from envs.core import Ends, Price, Score, SkipCore, Step
from envs.options import EnvOptions
from envs.sb3 import SB3SkipVecEnv, make_sb3_env
from envs.single import LayerSkipEnv
from envs.vector import LayerSkipVectorEnv

__all__ = [
    "EnvOptions",
    "Ends",
    "LayerSkipEnv",
    "LayerSkipVectorEnv",
    "Price",
    "SB3SkipVecEnv",
    "Score",
    "SkipCore",
    "Step",
    "make_sb3_env",
]

register(id="rl_skip/LayerSkip-v0", entry_point="envs:LayerSkipEnv", vector_entry_point="envs:LayerSkipVectorEnv")
