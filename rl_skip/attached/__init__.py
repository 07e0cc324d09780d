"""A jump policy on any model: finding its layers, calling them for the rows that run them, and the handle."""

from rl_skip.attached.attaching import attach
from rl_skip.attached.handle import Handle
from rl_skip.attached.huggingface import HuggingFaceStack
from rl_skip.attached.learning import LearningHandle
from rl_skip.attached.routed import from_pretrained
from rl_skip.attached.skip_config import SkipConfig

__all__ = ["Handle", "HuggingFaceStack", "LearningHandle", "SkipConfig", "attach", "from_pretrained"]
