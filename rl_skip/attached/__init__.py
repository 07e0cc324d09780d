"""A jump policy on any model: finding its layers, calling them for the rows that run them, and the handle."""

from rl_skip.attached.attaching import attach
from rl_skip.attached.handle import Handle
from rl_skip.attached.huggingface import HuggingFaceStack
from rl_skip.attached.routed import from_pretrained

__all__ = ["Handle", "HuggingFaceStack", "attach", "from_pretrained"]
