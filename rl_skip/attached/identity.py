"""Which model a policy belongs to: what is written beside it, and what is compared when it is attached again."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from rl_skip.attached.finding import configured
from rl_skip.description import Description
from rl_skip.errors import UserError

__all__ = ["check_identity", "identity", "saved_identity"]

VOLATILE = {
    "architectures",
    "attn_implementation",
    "dtype",
    "id2label",
    "label2id",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "quantization_config",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Fields of a configuration that say how a model is used or stored, not what its layers are."""
COST_TOLERANCE = 1e-4


def identity(model: nn.Module, path: str, channel_dim: int, prompt_tokens: int | None = None) -> dict[str, Any]:
    """What tells the model from others, in plain JSON. Adapters around it do not count."""
    model = _without_adapters(model)
    name = configured(model, "_name_or_path")
    return {
        "kind": "attached",
        "model_class": type(model).__name__,
        "base_model": name or None,
        "revision": configured(model, "_commit_hash"),
        "config_hash": _config_hash(model),
        "layers": path,
        "channel_dim": channel_dim,
        "prompt_tokens": prompt_tokens,
    }


def saved_identity(description: Description, file: Path) -> dict[str, Any]:
    """What `identity` said of the model that the policy was saved for.

    Raises:
        UserError: if it was saved for a stack instead.
    """
    if description.network is None or not description.attached:
        raise UserError(f"{file} is of a policy for a stack of its own, not for a model to attach to: rl_skip.load({str(file.parent)!r})")
    return description.network


def check_identity(description: Description, model: nn.Module, path: str, layer_costs: Sequence[float] | None, file: Path) -> None:
    """Refuses a model that the policy was not saved for.

    Raises:
        UserError: naming the field that differs.
    """
    saved = saved_identity(description, file)
    found = identity(model, path, saved["channel_dim"])
    advice = "load the model that the policy was saved for"
    for name in ("model_class", "config_hash", "base_model", "revision"):
        mine, theirs = saved[name], found[name]
        if name == "base_model":  # a model keeps its name when its folder moves
            mine, theirs = (None if one is None else Path(one).name for one in (mine, theirs))
        if mine is not None and theirs is not None and mine != theirs:
            raise UserError(f"{file}: {name} is {saved[name]}, the given model's is {found[name]}; {advice}")
    for i, (mine, theirs) in enumerate(zip(description.layer_costs, layer_costs or description.layer_costs, strict=True)):
        if not abs(mine - theirs) <= COST_TOLERANCE:
            raise UserError(
                f"{file}: layer_costs[{i}] is {mine:.5f}, the given model's is {theirs:.5f}; load the model that the policy was saved for"
            )


def _without_adapters(model: nn.Module) -> nn.Module:
    inside = getattr(model, "get_base_model", None)  # of peft
    return inside() if callable(inside) else model


def _config_hash(model: nn.Module) -> str | None:
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if to_dict is None:
        return None
    fields = {name: value for name, value in to_dict().items() if name not in VOLATILE and not name.startswith("_")}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:16]
