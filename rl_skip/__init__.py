"""rl_skip: networks that skip the layers an input does not need, by a policy learned with reinforcement."""

from importlib import import_module
from typing import TYPE_CHECKING

from rl_skip.core.version import __version__
from rl_skip.errors import UserError
from rl_skip.kinds import BUILT, KINDS

if TYPE_CHECKING:
    from rl_skip.attached import Handle, HuggingFaceStack, attach
    from rl_skip.compare.baseline import BaselineRecord
    from rl_skip.compare.measured import Bench, MeasuredBaseline
    from rl_skip.core.features import FEATURES, Feature, View
    from rl_skip.core.reward import REWARDS, Reward
    from rl_skip.core.routing import Decision, FixedRoute, PolicyRouter, Rollout, Router, RoutingState, routed_forward
    from rl_skip.costs import CostModel
    from rl_skip.evaluation import hidden_states
    from rl_skip.export import SkipModel, load, load_policy, save
    from rl_skip.network import NetworkConfig
    from rl_skip.policy import JumpPolicy, JumpRules, ObservationLayout
    from rl_skip.skip_layer import SkipLayer
    from rl_skip.stack import LayerStack, ModuleStack
    from rl_skip.tasks import Examples, Split, Task

__all__ = [
    "FEATURES",
    "REWARDS",
    "BaselineRecord",
    "Bench",
    "CostModel",
    "Decision",
    "Examples",
    "Feature",
    "FixedRoute",
    "Handle",
    "HuggingFaceStack",
    "JumpPolicy",
    "JumpRules",
    "LayerStack",
    "MeasuredBaseline",
    "ModuleStack",
    "NetworkConfig",
    "ObservationLayout",
    "PolicyRouter",
    "Reward",
    "Rollout",
    "Router",
    "RoutingState",
    "SkipLayer",
    "SkipModel",
    "Split",
    "Task",
    "UserError",
    "View",
    "__version__",
    "attach",
    "hidden_states",
    "load",
    "load_policy",
    "routed_forward",
    "save",
]

_PARTS = {
    "core.features": ("FEATURES", "Feature", "View"),
    "core.reward": ("REWARDS", "Reward"),
    "core.routing": ("Decision", "FixedRoute", "PolicyRouter", "Rollout", "Router", "RoutingState", "routed_forward"),
    "costs": ("CostModel",),
    "attached": ("Handle", "HuggingFaceStack", "attach"),
    "compare.baseline": ("BaselineRecord",),
    "compare.measured": ("Bench", "MeasuredBaseline"),
    "evaluation": ("hidden_states",),
    "export": ("SkipModel", "load", "load_policy", "save"),
    "network": ("NetworkConfig",),
    "policy": ("JumpPolicy", "JumpRules", "ObservationLayout"),
    "skip_layer": ("SkipLayer",),
    "stack": ("LayerStack", "ModuleStack"),
    "tasks": ("Examples", "Split", "Task"),
}
"""Where each name lives. It is imported when it is first asked for: a pruned network loads without policy and routing."""


KINDS.register_lazily(BUILT, "rl_skip.network:NETWORK")
KINDS.register_lazily("SkipLayer", "rl_skip.skip_layer:SKIP_LAYER")
KINDS.register_lazily("attached", "rl_skip.attached.pretrained:ATTACHED")


def __getattr__(name: str) -> object:
    for part, names in _PARTS.items():
        if name in names:
            return getattr(import_module(f"rl_skip.{part}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
