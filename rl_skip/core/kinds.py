"""The kinds of network that a description in JSON can name: each is checked and rebuilt beside its own class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rl_skip.core.plugins import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from rl_skip.core.fields import Fields
    from rl_skip.core.stack import LayerStack

__all__ = ["BUILT", "KINDS", "NetworkKind", "kind_of", "read_network"]

BUILT = "built"
"""The kind of a description that names none: a network that `build_network` builds."""


@dataclass(frozen=True)
class NetworkKind:
    """How networks of one kind are rebuilt from what `LayerStack.described` returned."""

    check: Callable[[Fields, int, int], None]
    """Refuses a field that is missing or wrong; called with the width and depth of the policy."""
    build: Callable[[dict[str, Any]], LayerStack]
    """The network, with freshly initialised weights."""
    missing: Callable[[dict[str, Any]], str | None] = lambda described: None
    """Why the description alone does not make a network, and what to do, to follow the folder's name; None: it does."""
    read_model: Callable[[Path, dict[str, Any]], LayerStack] | None = None
    """Reads the folder that `LayerStack.write_model` wrote, as described; None: these stacks write none."""
    check_model: Callable[[Any, LayerStack, Path], None] | None = None
    """Refuses a stack that `read_model` returned where the `Description` of a policy, in that file, is that of another model; None: all fit."""


KINDS: Registry[NetworkKind] = Registry("kind of network", "network.kind")


def kind_of(described: dict[str, Any]) -> NetworkKind:
    """The kind of a network that was described."""
    return KINDS.find(described.get("kind", BUILT))


def read_network(fields: Fields, width: int, depth: int) -> dict[str, Any]:
    """The description of a network, checked field by field.

    Args:
        width: D of the network that it must describe.
        depth: L of the network that it must describe.
    """
    if "kind" in fields.values:
        fields.text("kind", KINDS.names())
    kind_of(fields.values).check(fields, width, depth)
    return fields.values
