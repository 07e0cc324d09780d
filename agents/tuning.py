"""What of the network learns: all of it, its head, its norms and head, or adapters in its layers (LoRA, Hu et al. 2022) and head."""

from typing import Any

from torch import nn

from agents.config import Tune
from rl_skip.attached.huggingface import HuggingFaceStack
from rl_skip.attached.pretrained import needed, quiet
from rl_skip.errors import UserError
from rl_skip.gated import HeadedStack
from rl_skip.stack import LayerStack, ModuleStack

__all__ = ["choose_parameters", "merge_adapters"]

LORA_RANK = 8
LORA_ALPHA = 16
LINEAR = ("Linear", "Conv1D")  # the latter in GPT-2


def choose_parameters(stack: LayerStack, tune: Tune) -> Any:
    """Lets only those parameters learn that `tune` names; "none" lets all, until the policy starts.

    Returns:
        The adapters, for `merge_adapters`, where there are any.

    Raises:
        UserError: if the network has no head, or takes no adapters.
    """
    if tune in ("all", "none"):
        return None
    adapters = None
    chosen = {id(parameter) for part in _heads(stack) for parameter in part.parameters()}
    if tune == "norms":
        norms = [module for module in stack.modules() if "norm" in type(module).__name__.lower()]
        chosen |= {id(parameter) for module in norms for parameter in module.parameters(recurse=False)}
    if tune == "lora":
        before = {id(parameter) for parameter in stack.parameters()}
        adapters = _with_adapters(stack)
        chosen |= {id(parameter) for parameter in stack.parameters()} - before
    for parameter in stack.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return adapters


def merge_adapters(adapters: Any) -> None:
    """Adds what the adapters learned to the weights that they stand beside, and takes them away."""
    if adapters is not None:
        adapters.merge_and_unload()


def _heads(stack: LayerStack) -> list[nn.Module]:
    """What makes outputs of the last hidden state."""
    if isinstance(stack, ModuleStack | HeadedStack):
        return [stack.head]
    if isinstance(stack, HuggingFaceStack):
        if stack.head is not None:
            return [stack.head]
        inside = getattr(stack.model, "base_model_prefix", "")
        heads = [child for name, child in stack.model.named_children() if name != inside]
        if heads and len(heads) < len(list(stack.model.children())):
            return heads
    raise UserError("it is not known which part of this network is its head; set --tune all or --tune none")


def _with_adapters(stack: LayerStack) -> Any:
    if not isinstance(stack, HuggingFaceStack):
        raise UserError("adapters go into models from transformers; set --tune all, or --model to one")
    peft = needed("peft")
    targets = [
        f"{stack.path}.{i}.{name}" for i, layer in enumerate(stack.routed) for name, part in layer.named_modules() if type(part).__name__ in LINEAR
    ]
    with quiet():
        return peft.get_peft_model(stack.model, peft.LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules=targets))
