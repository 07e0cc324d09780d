"""The description of a network in JSON, checked field by field."""

from typing import Any, get_args

from rl_skip.blocks import embedding_from_json
from rl_skip.errors import UserError
from rl_skip.fields import Fields, read_dataclass
from rl_skip.gated import BodyName
from rl_skip.network import NetworkConfig

__all__ = ["read_network", "read_network_config"]


def read_network_config(fields: Fields) -> NetworkConfig:
    """A `NetworkConfig` from JSON, checked field by field."""
    return read_dataclass(NetworkConfig, fields, may_lack=("tied",))


def read_network(fields: Fields, width: int, depth: int) -> dict[str, Any]:
    """The description of a network, checked field by field, for `network_from_json`."""
    if "kind" in fields.values and fields.text("kind", ("SkipLayer", "attached")) == "attached":
        for name in ("model_class", "layers"):
            fields.text(name)
        for name in ("base_model", "revision", "config_hash"):
            fields.text_or_none(name)
        fields.integer("channel_dim", -1)
        if fields.values.get("config") is not None:  # older files do not know it
            fields.object("config")
        if fields.values.get("prompt_tokens") is not None:
            fields.integer("prompt_tokens")
        return fields.values
    if "kind" in fields.values:
        _same(fields, "dims", width)
        _same(fields, "layer", depth)
        for name in ("head", "keys", "tokens"):
            fields.integer(name)
        fields.text("body", get_args(BodyName))
        fields.number("threshold", 0.0, 1.0)
        for name in ("memory_gate", "jump_mixing"):
            fields.flag(name)
        if fields.values["body"] == "attention" and width % fields.values["head"]:
            raise fields.wrong("head", f"a divisor of dims, {width}")
        return fields.values
    described = ("tokens", "classes", "embedding")
    read_network_config(Fields({name: value for name, value in fields.values.items() if name not in described}, fields.source, fields.prefix))
    _same(fields, "width", width)
    _same(fields, "layers", depth)
    for name in ("tokens", "classes"):
        fields.integer(name)
    _check_embedding(fields.object("embedding"))
    return fields.values


def _check_embedding(fields: Fields) -> None:
    kind = fields.text("kind", ("patches", "frames", "pointers"))
    if kind == "frames":
        expected = {"frames", "features", "stride"}
    elif kind == "pointers":
        expected = {"nodes", "longest"}
    else:
        expected = {"height", "image_width", "channels", "patch"}
        fields.integer("overlap", 0)
        if fields.get("patch_width") is not None:
            fields.integer("patch_width")
    for name in sorted(expected):
        fields.integer(name)
    try:
        embedding_from_json(fields.values)
    except UserError as error:
        raise UserError(f"{fields.source}: {fields.prefix.rstrip('.')}: {error}; write the file anew") from None


def _same(fields: Fields, name: str, expected: int) -> None:
    if fields.integer(name) != expected:
        raise fields.wrong(name, f"{expected}, as the policy's own")
