"""Which model a policy belongs to: what is written beside it, and what is compared when it is attached again."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rl_skip.attached.finding import configured
from rl_skip.attached.returns import check_form
from rl_skip.attached.sampled import check_samples, differing, sampled
from rl_skip.core.errors import UserError
from rl_skip.core.fields import Fields
from rl_skip.export.description import Description

__all__ = [
    "DIGEST",
    "WEIGHTS",
    "check_described",
    "check_identity",
    "digest",
    "identity",
    "learned_identity",
    "mark_of",
    "marked",
    "saved_identity",
    "weights_of",
]

VOLATILE = {
    "architectures",
    "attn_implementation",
    "bos_token_id",
    "decoder_start_token_id",
    "dtype",
    "eos_token_id",
    "id2label",
    "label2id",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "quantization_config",
    "return_dict",
    "sep_token_id",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
}
"""Fields of a configuration that say how a model is used, stored or trained, not what its layers are; besides those of a dropout."""
COST_TOLERANCE = 1e-4
DIGEST = "rl_skip_weights"
"""A field in the configuration of a model that was trained here, by which a policy distinguishes it from the model that it was made of."""
WEIGHTS = "weights"
"""Of the identity of a model that its user trains and writes: a few numbers of each weight, see `sampled`. Its name says only where it came from."""


def identity(
    model: nn.Module, path: str, channel_dim: int, prompt_tokens: int | None = None, returns: Sequence[str | None] | None = None
) -> dict[str, Any]:
    """The identity of the model, in plain JSON. Adapters around it do not count."""
    model = _without_adapters(model)
    name, config = configured(model, "_name_or_path"), _config(model)
    return {
        "kind": "attached",
        "model_class": type(model).__name__,
        "base_model": name or None,
        "revision": configured(model, "_commit_hash"),
        "config_hash": None if config is None else _hash(config),
        "config": config,
        "layers": path,
        "channel_dim": channel_dim,
        "prompt_tokens": prompt_tokens,
        "returns": None if returns is None else list(returns),
    }


def learned_identity(found: dict[str, Any], samples: dict[str, list[float]], mark: str | None) -> dict[str, Any]:
    """The identity of a model that learned with its policy: it is no longer the one that it was made of, and will lie where its user puts it.

    Args:
        found: of `identity`.
        samples: of `weights_of`.
        mark: the digest that its configuration had before it learned; None: it had none.
    """
    found = found | {WEIGHTS: samples}
    if mark is None or (found["config"] or {}).get(DIGEST) != mark:
        return found
    config = {name: value for name, value in found["config"].items() if name != DIGEST}
    return found | {"config": config, "config_hash": _hash(config)}


def weights_of(model: nn.Module, beside: str) -> dict[str, list[float]]:
    """A few numbers of each of a model's weights, but those of the part `beside`, which it got with the policy."""
    weights = {name: weight for name, weight in _without_adapters(model).state_dict().items() if not name.startswith(f"{beside}.")}
    return sampled(weights, configured(model, "vocab_size"))


def mark_of(model: nn.Module) -> str | None:
    """The digest in a model's configuration; None: there is none."""
    mark = configured(_without_adapters(model), DIGEST)
    return mark if isinstance(mark, str) else None


def check_described(fields: Fields, _width: int, _depth: int) -> None:
    """Refuses what `identity` cannot have written, field by field."""
    for name in ("model_class", "layers"):
        fields.text(name)
    for name in ("base_model", "revision", "config_hash"):
        fields.text_or_none(name)
    fields.integer("channel_dim", -1)
    if fields.values.get("config") is not None:  # older files do not know it
        fields.object("config")
    if WEIGHTS in fields.values:
        check_samples(fields, WEIGHTS)
    if fields.values.get("prompt_tokens") is not None:
        fields.integer("prompt_tokens")
    if fields.values.get("returns") is not None:
        check_form(fields.values["returns"])


def saved_identity(description: Description, file: Path) -> dict[str, Any]:
    """The identity of the model that the policy was saved for.

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
    given = identity(model, path, saved["channel_dim"])
    advice = "load the model that the policy was saved for"
    if WEIGHTS in saved and given["config"] is not None and DIGEST not in (saved.get("config") or {}):
        given["config"].pop(DIGEST, None)  # of what it was before it learned with this policy
    for name in ("model_class", "config_hash") if WEIGHTS in saved else ("model_class", "config_hash", "base_model", "revision"):
        expected, actual = saved[name], given[name]
        if name == "config_hash" and saved.get("config") is not None and given["config"] is not None:
            _check_config(saved["config"], given["config"], file)
            continue  # another release of transformers may know more fields, and so have another hash
        if name == "base_model":  # a model keeps its name when its folder moves
            expected, actual = (None if value is None else Path(value).name for value in (expected, actual))
        if expected is not None and actual is not None and expected != actual:
            raise UserError(f"{file}: {name} is {saved[name]}, the given model's is {given[name]}; {advice}")
    if WEIGHTS in saved and (other := differing(saved[WEIGHTS], _without_adapters(model).state_dict())) is not None:
        raise UserError(f"{file}: the policy learned with other weights than the given model's {other}; {advice}")
    for i, (expected, actual) in enumerate(zip(description.layer_costs, layer_costs or description.layer_costs, strict=True)):
        if not abs(expected - actual) <= COST_TOLERANCE:
            raise UserError(
                f"{file}: layer_costs[{i}] is {expected:.5f}, the given model's is {actual:.5f}; load the model that the policy was saved for"
            )


def digest(model: nn.Module) -> str:
    """A digest of a model's weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8 if tensor.dim() else tensor.dtype).numpy().tobytes())
    return found.hexdigest()[:16]


@contextmanager
def marked(model: nn.Module) -> Iterator[None]:
    """Within it, a model from transformers is known by a digest of its weights, and not by the name of the one that it was made of."""
    config: Any = model.config
    before = {name: getattr(config, name) for name in ("_name_or_path", "_commit_hash", DIGEST) if hasattr(config, name)}
    config._name_or_path, config._commit_hash = "", None
    setattr(config, DIGEST, digest(model))
    try:
        yield
    finally:
        delattr(config, DIGEST)
        for name, value in before.items():
            setattr(config, name, value)


def _without_adapters(model: nn.Module) -> nn.Module:
    inside = getattr(model, "get_base_model", None)  # of peft
    return inside() if callable(inside) else model


def _config(model: nn.Module) -> dict[str, Any] | None:
    """The configuration's fields that concern the layers, in plain JSON; None without one."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if to_dict is None:
        return None
    plain: dict[str, Any] = json.loads(json.dumps(_lasting(to_dict()), default=str))
    return plain


def _lasting(value: Any) -> Any:
    """Without the fields that do not count, those of configurations within the configuration too."""
    if not isinstance(value, dict):
        return value
    return {str(name): _lasting(field) for name, field in value.items() if not _passing(str(name))}


def _passing(name: str) -> bool:
    return name in VOLATILE or name.startswith("_") or name.endswith(("dropout", "drop", "pdrop", "_prob"))


def _hash(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def _check_config(saved: dict[str, Any], given: dict[str, Any], file: Path, within: str = "") -> None:
    """Refuses a configuration that differs in a field that both have, or in the digest of the weights."""
    for name in sorted(saved.keys() & given.keys() | {DIGEST} & (saved.keys() | given.keys())):
        expected, actual = saved.get(name), given.get(name)
        if isinstance(expected, dict) and isinstance(actual, dict):
            _check_config(expected, actual, file, f"{within}{name}.")
        elif expected != actual:
            differing = f"config.{within}{name} is {expected}, the given model's is {actual}"
            raise UserError(f"{file}: {differing}; load the model that the policy was saved for")
