"""What a layer returns: where the hidden state is in it, and what becomes of the other parts of rows that skip the layer."""

import ast
import inspect
import textwrap
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rl_skip.core.errors import UserError

__all__ = ["HIDDEN", "Form", "blank", "check_form", "form_of", "returned_parts", "split_returned", "spread", "unknown_parts"]

HIDDEN = "hidden"
Form = tuple[str | None, ...]
"""What each part of a tuple is: `HIDDEN`, the argument of the layers after it that it becomes, or None where it is only collected."""
FIRST: Form = (HIDDEN, None)
WITH_CROSS_ATTENTION: Form = (HIDDEN, None, None)
POSITION_BIAS: Form = (HIDDEN, "position_bias", "encoder_decoder_position_bias")
FORMS: dict[str, Form] = {
    "BambaDecoderLayer": FIRST,
    "BloomBlock": FIRST,
    "CanineLayer": FIRST,
    "CodeGenBlock": FIRST,
    "Data2VecVisionLayer": FIRST,
    "DebertaLayer": FIRST,
    "DebertaV2Layer": FIRST,
    "FNetLayer": FIRST,
    "FalconDecoderLayer": FIRST,
    "FalconH1DecoderLayer": FIRST,
    "FlavaLayer": FIRST,
    "GPTJBlock": FIRST,
    "GPTNeoBlock": FIRST,
    "ImageGPTBlock": FIRST,
    "LEDEncoderLayer": FIRST,
    "LongT5Block": POSITION_BIAS,
    "LongformerLayer": WITH_CROSS_ATTENTION,
    "MPNetLayer": FIRST,
    "MT5Block": POSITION_BIAS,
    "MegatronBertLayer": WITH_CROSS_ATTENTION,
    "MptBlock": FIRST,
    "MraLayer": FIRST,
    "NystromformerLayer": FIRST,
    "ProphetNetEncoderLayer": FIRST,
    "RemBertLayer": WITH_CROSS_ATTENTION,
    "RoFormerLayer": WITH_CROSS_ATTENTION,
    "SpeechT5EncoderLayer": FIRST,
    "SwinLayer": FIRST,
    "SwitchTransformersBlock": POSITION_BIAS,
    "T5Block": POSITION_BIAS,
    "TimesformerLayer": FIRST,
    "VJEPA2Layer": FIRST,
    "VisualBertLayer": FIRST,
    "VitDetLayer": FIRST,
    "WavLMEncoderLayer": (HIDDEN, "position_bias"),
    "WavLMEncoderLayerStableLayerNorm": (HIDDEN, "position_bias"),
    "YosoLayer": FIRST,
}
"""Layers of transformers that return a tuple."""


def form_of(layer: nn.Module) -> Form | None:
    """The form of what a known layer returns; None where it is the hidden state alone."""
    return FORMS.get(type(layer).__name__)


def check_form(returns: Sequence[str | None]) -> Form:
    """A form that a person gave.

    Raises:
        UserError: if it is no sequence of names with the hidden state once among them.
    """
    form = tuple(returns) if isinstance(returns, list | tuple) else ()
    if form.count(HIDDEN) != 1 or not all(part is None or isinstance(part, str) for part in form):
        raise UserError(
            f'returns={returns!r} does not say which part of a layer\'s output is the hidden state: give a tuple with "{HIDDEN}" once, None for '
            f'what is only collected, and the names of arguments that parts become, such as ("{HIDDEN}", None)'
        )
    return form


def split_returned(layer: object, returned: Any, form: Form | None) -> tuple[Tensor, dict[str, Any], tuple[Any, ...]]:
    """What a layer returned: the hidden state, the parts that become arguments by their names, and the tuple with just the other parts in it.

    Raises:
        UserError: for anything but a tensor, or a tuple of the form.
    """
    if isinstance(returned, Tensor):
        return returned, {}, ()
    kind = type(layer).__name__
    if not isinstance(returned, tuple | list):
        raise UserError(f"{kind} returns a {type(returned).__name__}, expected its hidden state, or a tuple with it: attach to other layers")
    if form is None:
        raise UserError(unknown_parts(kind, type(returned).__name__))
    roles = dict(zip(form, returned, strict=False))
    if len(returned) > len(form) or not isinstance(roles.get(HIDDEN), Tensor):
        found = ", ".join("a tensor" if isinstance(part, Tensor) else type(part).__name__ for part in returned)
        raise UserError(f"{kind} returns ({found}), which is not of the form {form}: name each part, attach(…, returns=…)")
    named = {name: part for name, part in roles.items() if name not in (None, HIDDEN)}
    return roles[HIDDEN], named, tuple(None if name is not None else part for name, part in zip(form, returned, strict=False))


def unknown_parts(kind: str, returned: str = "tuple") -> str:
    """Why layers of such a class are refused, and what to do."""
    if returned == "dict":
        return f"{kind} returns a dict, expected its hidden state, or a tuple with it: attach to other layers"
    return f'{kind} returns a {returned} whose parts are not known: if its first is the hidden state, attach(…, returns=("{HIDDEN}", None))'


def spread(part: Any, like: Any, rows: Tensor, row_count: int, what: str) -> Any:
    """What a layer returned for the named rows, as if for all: zeros for those that skipped it.

    Args:
        part: of R rows.
        like: the same part of a layer that all rows ran.
        rows: (R,).
        row_count: B.
        what: what messages call it.

    Raises:
        UserError: if it does not have the rows first.
    """
    if isinstance(part, tuple | list) and isinstance(like, tuple | list):
        return type(part)(spread(one, other, rows, row_count, what) for one, other in zip(part, like, strict=False))
    if not isinstance(part, Tensor) or rows.shape[0] == row_count:
        return part
    if not isinstance(like, Tensor) or part.dim() == 0 or part.shape[0] != rows.shape[0] or like.shape[0] != row_count:
        raise UserError(f"{what} do not have the rows of the batch first, so those of rows that skip a layer cannot be left out: do not ask for them")
    return part.new_zeros(row_count, *part.shape[1:]).index_copy(0, rows, part)


def blank(part: Any) -> Any:
    """A part, as of a layer that no row ran: zeros."""
    if isinstance(part, tuple | list):
        return type(part)(blank(item) for item in part)
    return torch.zeros_like(part) if isinstance(part, Tensor) else part


def returned_parts(layer: nn.Module) -> str | None:
    """What the code of a layer says that it returns wherever it returns: "tuple", "list" or "dict"; None for anything else, or without code."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(type(layer).forward))))
    except (OSError, TypeError, SyntaxError):
        return None
    nodes = _own_nodes(tree.body[0])
    assigned = {
        target.id: node.value
        for node in nodes
        if isinstance(node, ast.Assign | ast.AugAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }  # the last assignment of each name
    kinds = {_kind(node.value, assigned) for node in nodes if isinstance(node, ast.Return) and node.value is not None}
    return kinds.pop() if len(kinds) == 1 else None


def _own_nodes(function: ast.AST) -> list[ast.AST]:
    """The nodes of a function, in the order of its text, without those of functions in it."""
    nodes: list[ast.AST] = []
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            nodes += [node, *_own_nodes(node)]
    return nodes


def _kind(value: ast.AST, assigned: dict[str, ast.expr], depth: int = 3) -> str | None:
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return _kind(value.left, assigned, depth) or _kind(value.right, assigned, depth)
    if isinstance(value, ast.Name) and value.id in assigned and depth:
        return _kind(assigned[value.id], assigned, depth - 1)
    return next((kind.__name__.lower() for kind in (ast.Tuple, ast.List, ast.Dict) if isinstance(value, kind)), None)
