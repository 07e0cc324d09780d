"""rl_skip: networks that skip the layers an input does not need, by a policy learned with reinforcement."""

from importlib import import_module
from typing import TYPE_CHECKING

from rl_skip.core.errors import UserError
from rl_skip.core.kinds import BUILT, KINDS
from rl_skip.core.version import __version__

if TYPE_CHECKING:
    from rl_skip.attached import Handle, HuggingFaceStack, LearningHandle, SkipConfig, attach, from_pretrained
    from rl_skip.attached.trainer import SkipTrainer, SkipTraining
    from rl_skip.core.costs import CostModel
    from rl_skip.core.dial import Guarantee
    from rl_skip.core.features import FEATURES, Feature, View
    from rl_skip.core.forward import Rollout, routed_forward
    from rl_skip.core.policy import JumpPolicy, JumpRules, ObservationLayout
    from rl_skip.core.reward import REWARDS, Reward
    from rl_skip.core.routers import FixedRoute, PolicyRouter
    from rl_skip.core.routing import Decision, Router, RoutingState
    from rl_skip.core.stack import Carry, LayerStack
    from rl_skip.core.task import Examples, Split, Task, stratified_split
    from rl_skip.export.policy_folder import SkipModel, load, load_policy, save
    from rl_skip.export.pruned import PrunedNetwork, load_pruned
    from rl_skip.measure.compare.baseline import BaselineRecord
    from rl_skip.measure.compare.measured import Bench, MeasuredBaseline
    from rl_skip.measure.costs import measure_costs
    from rl_skip.measure.evaluation import hidden_states
    from rl_skip.nets.blocks import FrameEmbedding, PatchEmbedding
    from rl_skip.nets.module_stack import ModuleStack
    from rl_skip.nets.network import NetworkConfig
    from rl_skip.nets.skip_layer import SkipLayer
    from rl_skip.tasks import load_task

__all__ = [
    "FEATURES",
    "REWARDS",
    "BaselineRecord",
    "Bench",
    "Carry",
    "CostModel",
    "Decision",
    "Examples",
    "Feature",
    "FixedRoute",
    "FrameEmbedding",
    "Guarantee",
    "Handle",
    "HuggingFaceStack",
    "JumpPolicy",
    "JumpRules",
    "LayerStack",
    "LearningHandle",
    "MeasuredBaseline",
    "ModuleStack",
    "NetworkConfig",
    "ObservationLayout",
    "PatchEmbedding",
    "PolicyRouter",
    "PrunedNetwork",
    "Reward",
    "Rollout",
    "Router",
    "RoutingState",
    "SkipConfig",
    "SkipLayer",
    "SkipModel",
    "SkipTrainer",
    "SkipTraining",
    "Split",
    "Task",
    "UserError",
    "View",
    "__version__",
    "attach",
    "from_pretrained",
    "hidden_states",
    "load",
    "load_policy",
    "load_pruned",
    "load_task",
    "measure_costs",
    "routed_forward",
    "save",
    "stratified_split",
]

_NAMES = {
    "attached": ("Handle", "HuggingFaceStack", "LearningHandle", "SkipConfig", "attach", "from_pretrained"),
    "attached.trainer": ("SkipTrainer", "SkipTraining"),
    "core.costs": ("CostModel",),
    "core.dial": ("Guarantee",),
    "core.features": ("FEATURES", "Feature", "View"),
    "core.policy": ("JumpPolicy", "JumpRules", "ObservationLayout"),
    "core.reward": ("REWARDS", "Reward"),
    "core.forward": ("Rollout", "routed_forward"),
    "core.routers": ("FixedRoute", "PolicyRouter"),
    "core.routing": ("Decision", "Router", "RoutingState"),
    "core.stack": ("Carry", "LayerStack"),
    "core.task": ("Examples", "Split", "Task", "stratified_split"),
    "export.pruned": ("PrunedNetwork", "load_pruned"),
    "export.policy_folder": ("SkipModel", "load", "load_policy", "save"),
    "measure.compare.baseline": ("BaselineRecord",),
    "measure.compare.measured": ("Bench", "MeasuredBaseline"),
    "measure.costs": ("measure_costs",),
    "measure.evaluation": ("hidden_states",),
    "nets.blocks": ("FrameEmbedding", "PatchEmbedding"),
    "nets.module_stack": ("ModuleStack",),
    "nets.network": ("NetworkConfig",),
    "nets.skip_layer": ("SkipLayer",),
    "tasks": ("load_task",),
}
"""The module of each name, which is imported on first use: a pruned network loads without policy and routing."""


KINDS.register_lazily(BUILT, "rl_skip.nets.network:NETWORK")
KINDS.register_lazily("SkipLayer", "rl_skip.nets.skip_layer:SKIP_LAYER")
KINDS.register_lazily("attached", "rl_skip.attached.pretrained:ATTACHED")


def __getattr__(name: str) -> object:
    for module, names in _NAMES.items():
        if name in names:
            return getattr(import_module(f"rl_skip.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
