"""rl_skip: networks that skip the layers an input does not need, by a policy learned with reinforcement."""

from rl_skip.errors import UserError
from rl_skip.export import SkipModel, load, load_policy, save
from rl_skip.gated import SkipLayer
from rl_skip.policy import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.routing import Rollout, sweep
from rl_skip.stack import LayerStack, ModuleStack
from rl_skip.tasks import Examples, Split, Task

__version__ = "0.1.0"

__all__ = [
    "Examples",
    "JumpPolicy",
    "JumpRules",
    "LayerStack",
    "ModuleStack",
    "ObservationLayout",
    "Rollout",
    "SkipLayer",
    "SkipModel",
    "Split",
    "Task",
    "UserError",
    "load",
    "load_policy",
    "save",
    "sweep",
]
