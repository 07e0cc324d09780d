"""What of the network learns: all of it, its head, its norms and head, or adapters in its layers (LoRA, Hu et al. 2022) and head."""

from typing import Any

from torch import nn

from agents.options.config import Tune
from rl_skip.core.errors import UserError
from rl_skip.core.stack import LayerStack

__all__ = ["choose_parameters", "heads_of", "merge_adapters"]

LORA_RANK = 8
LORA_ALPHA = 16


def heads_of(stack: LayerStack) -> list[nn.Module]:
    """What turns hidden states into outputs: the stack's own head, and its readouts; empty where its head is not known."""
    heads = stack.head_modules()
    return heads if stack.readouts is None else [*heads, stack.readouts]


def choose_parameters(stack: LayerStack, tune: Tune) -> Any:
    """Lets only those parameters learn that `tune` names; "frozen" lets all, until the policy starts.

    Returns:
        The adapters, for `merge_adapters`, where there are any.

    Raises:
        UserError: if the network has no head, or takes no adapters.
    """
    if tune in ("all", "frozen"):
        return None
    adapters = None
    heads = heads_of(stack)
    if not heads:
        raise UserError("this network does not say which of its modules are its head; set --tune all or --tune frozen")
    chosen = {id(parameter) for head in heads for parameter in head.parameters()}
    if tune == "norms":
        norms = [module for module in stack.modules() if "norm" in type(module).__name__.lower()]
        chosen |= {id(parameter) for module in norms for parameter in module.parameters(recurse=False)}
    if tune == "lora":
        before = {id(parameter) for parameter in stack.parameters()}
        adapters = stack.add_adapters(LORA_RANK, LORA_ALPHA)
        chosen |= {id(parameter) for parameter in stack.parameters()} - before
    for parameter in stack.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
    return adapters


def merge_adapters(adapters: Any) -> None:
    """Adds what the adapters learned to the weights that they stand beside, and takes them away."""
    if adapters is not None:
        adapters.merge_and_unload()
