"""The environment around a stack: `gym.make("envs:rl_skip/LayerSkip-v0", task="digits")`, `"envs:rl_skip/Hops-v0"`, and their vector forms."""

from gymnasium.envs.registration import register

from envs.core import Beginning, Ends, Price, Score, SkipCore, Step
from envs.evaluating import AgentEvaluation, evaluate
from envs.options import EnvOptions
from envs.sb3 import SB3SkipVecEnv, make_sb3_env
from envs.single import LayerSkipEnv
from envs.vector import LayerSkipVectorEnv

__all__ = [
    "AgentEvaluation",
    "Beginning",
    "EnvOptions",
    "Ends",
    "LayerSkipEnv",
    "LayerSkipVectorEnv",
    "Price",
    "SB3SkipVecEnv",
    "Score",
    "SkipCore",
    "Step",
    "evaluate",
    "make_sb3_env",
]

# Without wrappers of Gymnasium's own, so that `env.price = 0.2` reaches the environment; it checks actions and their order itself.
register(
    id="rl_skip/LayerSkip-v0",
    entry_point="envs:LayerSkipEnv",
    vector_entry_point="envs:LayerSkipVectorEnv",
    disable_env_checker=True,
    order_enforce=False,
)

# A network that is frozen and comes with the package, so that agents can be compared. The best that is known runs k layers for k pointers and earns
# 0.942, 1 − 0.1 · (4.5 / 8 + the decisions) and 0.1% wrong; who reaches 95% of it counts as having solved it.
register(
    id="rl_skip/Hops-v0",
    entry_point="envs:LayerSkipEnv",
    vector_entry_point="envs:LayerSkipVectorEnv",
    reward_threshold=0.895,
    disable_env_checker=True,
    order_enforce=False,
    kwargs={"run": "hops-v0"},
)
