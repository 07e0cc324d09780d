"""What the adapters share: spaces, actions to tensors, ends to info dictionaries, routes to lines of text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from envs.core import Ends, SkipCore
from rl_skip.core.errors import UserError
from rl_skip.core.policy import JumpRules

__all__ = [
    "Array",
    "METADATA",
    "action_space",
    "check_render_mode",
    "draw",
    "end_columns",
    "end_infos",
    "jumps_from",
    "observation_space",
    "to_numpy",
]

Array = NDArray[Any]
METADATA: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}
RAN, SKIPPED, AHEAD = "■", "□", "·"


def observation_space(rules: JumpRules) -> spaces.Space[NDArray[np.float32]]:
    """The observation as `ObservationLayout` describes it, with its bounds."""
    low, high = (end.numpy() for end in rules.layout.bounds())
    return spaces.Box(low, high, dtype=np.float32)


def action_space(rules: JumpRules) -> "spaces.Discrete[np.int64]":  # a string: not generic in Gymnasium 1.1
    """The jumps 0 … J."""
    return spaces.Discrete(rules.max_jump + 1)


def check_render_mode(render_mode: str | None) -> str | None:
    """The mode itself.

    Raises:
        UserError: if there is no such mode.
    """
    if render_mode is not None and render_mode not in METADATA["render_modes"]:
        raise UserError(f'the render mode is "ansi", "rgb_array" or None, got {render_mode!r}; set render_mode')
    return render_mode


def jumps_from(actions: ArrayLike | Sequence[Any], core: SkipCore) -> Tensor:
    """Actions of N environments → jumps (N,) long on the core's device.

    Raises:
        ValueError: if they are not N jumps in 0..J.
    """
    jumps, longest = _array(actions), core.rules.max_jump
    if jumps.shape != (core.num_envs,) or jumps.dtype.kind not in "iu":
        raise ValueError(f"actions must be {core.num_envs} integers, got shape {jumps.shape} of {jumps.dtype}")
    if jumps.min() < 0 or jumps.max() > longest:
        raise ValueError(f"actions must lie in 0..{longest}, got {jumps.min()} to {jumps.max()}")
    return torch.as_tensor(jumps.astype(np.int64), device=core.everyone.device)


def _array(actions: ArrayLike | Sequence[Any]) -> Array:
    try:
        return np.asarray(actions)
    except (TypeError, ValueError):  # ragged
        return np.asarray(None)


def to_numpy(tensor: Tensor) -> Array:
    """The values of a tensor, which may share its memory."""
    return tensor.cpu().numpy()


def end_columns(ends: Ends, core: SkipCore) -> dict[str, Array]:
    """What is known of R episodes that ended in a core, (R, ...) each by name; the action mask is that after the last layer."""
    score = to_numpy(ends.scores).astype(np.float64)
    return {
        "route": to_numpy(ends.route),
        "compute": to_numpy(ends.compute).astype(np.float64),
        "score": score,
        "label": _column(ends.labels),
        "prediction": _column(ends.predictions),
        "is_success": score > 0.5,
        "price": to_numpy(ends.prices).astype(np.float64),
        "example": to_numpy(ends.examples),
        "action_mask": np.repeat(core.legal[-1:], len(score), axis=0),
    }


def _column(values: Tensor) -> Array:
    """(R,), one number for each row; of labels for each token, one list."""
    if values.dim() == 1:
        return to_numpy(values)
    column = np.empty(len(values), dtype=object)
    column[:] = values.tolist()
    return column


def end_infos(ends: Ends, core: SkipCore) -> list[dict[str, Any]]:
    """One info dictionary for each episode that ended in a core."""
    columns = end_columns(ends, core)
    rows = zip(*(list(values) if values.ndim > 1 else values.tolist() for values in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def draw(core: SkipCore, ends: Ends | None) -> list[str]:
    """One line for each environment: ■ layers that ran, □ layers jumped over, · layers ahead.

    Where an episode ended in the last step, `ends`, that episode is drawn and not the next one.
    """
    state = core.state
    if state is None:
        raise ValueError("no episode has begun; call reset() before render()")
    position, compute, price = state.position.tolist(), state.compute.tolist(), state.price.tolist()
    lines = [_line(route, position[n], compute[n], price[n]) for n, route in enumerate(state.route.tolist())]
    for row, info in zip(ends.rows.tolist(), end_infos(ends, core), strict=True) if ends is not None else ():
        line = _line(info["route"].tolist(), core.stack.depth, info["compute"], info["price"])
        lines[row] = f"{line}  score {info['score']:.3f}  label {info['label']}  prediction {info['prediction']}"
    return lines


def _line(route: list[bool], position: int, compute: float, price: float) -> str:
    marks = [RAN if ran else SKIPPED if i < position else AHEAD for i, ran in enumerate(route)]
    layers = " ".join(f"{i}{mark}" for i, mark in enumerate(marks))
    return f"{layers}  compute {compute:.3f}  price {price:.3f}"
