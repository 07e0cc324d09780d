"""Inputs that the policy finds easy and hard, each with its route drawn beside it."""

import textwrap
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rl_skip.core.inputs import Inputs
from rl_skip.core.task import Examples, Task
from rl_skip.measure.compare.result import RoutesTaken
from rl_skip.measure.compare.style import BLUE, GREY, INK, VERMILLION, new_figure, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_examples", "easiest_and_hardest", "right_and_wrong"]

SHOWN = 6
"""Rows of each kind."""
FRAMES_A_SECOND = 100
LINE = 38
"""Characters of a text in one line."""
LONGEST_TEXT = 150


def easiest_and_hardest(taken: RoutesTaken, count: int) -> tuple[Tensor, Tensor]:
    """The rows whose routes cost least and most, no row in both.

    Of rows that cost the same, each class is shown once before any is shown twice.

    Returns:
        Row numbers, (≤ count,) each, in the order of their compute.
    """
    turn = _turns(taken.labels)
    compute = (taken.compute * 1e6).round().tolist()
    order = sorted(range(len(turn)), key=lambda row: (compute[row], turn[row]))
    easy = order[: min(count, (len(order) + 1) // 2)]
    dearest = sorted(set(order) - set(easy), key=lambda row: (-compute[row], turn[row]))
    return torch.tensor(easy, dtype=torch.long), torch.tensor(dearest[:count], dtype=torch.long)


def right_and_wrong(taken: RoutesTaken, count: int) -> tuple[Tensor, Tensor]:
    """Rows that were right and rows that were wrong, each class once before any is shown twice, (≤ count,) each."""
    chosen = []
    for rows in ((taken.correct > 0.5).nonzero().squeeze(1), (taken.correct <= 0.5).nonzero().squeeze(1)):
        turn = torch.tensor(_turns(taken.labels[rows]), dtype=torch.long)
        chosen.append(rows[turn.argsort(stable=True)][:count])
    return chosen[0], chosen[1]


def _turns(labels: Tensor) -> list[int]:
    """For each row, how many of its class come before it."""
    seen: dict[int, int] = {}
    turns = []
    for label in labels.tolist():
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    return turns


def draw_examples(taken: RoutesTaken, task: Task, test: Examples) -> "Figure":
    """The inputs with the cheapest routes on the left, those with the dearest on the right.

    A policy that takes one route for all has neither: then rows that were right on the left, rows that were wrong on the right.
    """
    depth = taken.route.shape[1]
    one_route = len(taken.route.unique(dim=0)) == 1
    columns = (right_and_wrong if one_route else easiest_and_hardest)(taken, SHOWN)
    headings = ("right", "wrong") if one_route else ("easy: the cheapest routes", "hard: the dearest routes")
    note = "filled: the layer ran; empty: it was jumped over and not computed"
    if one_route:
        note += "\nThe policy takes one and the same route for every row, so none is easier to it than another."
    texts = _in_words(task, test)
    if texts is None and _is_sound(test.inputs):
        note += "\nSounds: time to the right, one second in all; pitch upwards; brighter is louder."
    route_width = max(1.6, 0.24 * depth)
    picture_width = 1.1 if texts is None and _is_image(test.inputs) else 2.4
    figure = new_figure(2 * (picture_width + route_width) + 0.6, 1.4 + 0.85 * SHOWN)
    axes = figure.subplots(SHOWN, 4, squeeze=False, width_ratios=[picture_width, route_width] * 2)
    title(figure, f"Inputs and the layers they run: {task.name}", note)
    for column, (rows, heading) in enumerate(zip(columns, headings, strict=True)):
        axes[0, 2 * column].set_title(heading, loc="left", fontsize=10, fontweight="bold")
        for place in range(SHOWN):
            left, right = axes[place, 2 * column], axes[place, 2 * column + 1]
            left.axis("off")
            right.axis("off")
            if place < len(rows):
                row = int(rows[place])
                _draw_input(left, test.inputs, row, texts)
                _draw_route(right, taken, task, row, numbered=place == 0)
    return figure


def _draw_route(axes: "Axes", taken: RoutesTaken, task: Task, row: int, numbered: bool) -> None:
    depth = taken.route.shape[1]
    ran = taken.route[row].tolist()
    colours = [BLUE if run else "white" for run in ran]
    axes.scatter(range(depth), [0] * depth, s=110, marker="s", c=colours, edgecolors=[BLUE if run else GREY for run in ran], linewidths=0.8)
    if numbered:
        for layer in range(depth):
            axes.text(layer, 0.62, str(layer), ha="center", va="bottom", fontsize=7, color=INK)
        axes.text(-0.6, 1.35, "layer", fontsize=7, color=INK)
    label, predicted = (task.classes[int(column[row])] for column in (taken.labels, taken.prediction))
    right = bool(taken.correct[row])
    verdict = f"label {label}: right" if right else f"label {label}: wrong, predicted {predicted}"
    if len(task.classes) == 1:
        verdict = f"{task.score_name} {taken.correct[row]:.3f}"
    axes.text(-0.6, -0.7, f"compute {taken.compute[row]:.2f}\n{verdict}", va="top", fontsize=8, color=INK if right else VERMILLION)
    axes.set(xlim=(-0.7, depth - 0.3), ylim=(-2.2, 2.0))


def _in_words(task: Task, test: Examples) -> list[str] | None:
    """A text for each row, where it is no image and no sound."""
    if task.in_words is not None:
        return task.in_words(test)
    return None if _is_image(test.inputs) or _is_sound(test.inputs) else _numbers(test.inputs)


def _numbers(inputs: Inputs) -> list[str]:
    """The first numbers of each row, for want of anything better."""
    values = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    return [" ".join(f"{value:g}" for value in row) for row in values.reshape(len(values), -1)[:, :12].tolist()]


def _is_image(inputs: Inputs) -> bool:
    return isinstance(inputs, Tensor) and inputs.is_floating_point() and (inputs.dim() == 3 or (inputs.dim() == 4 and inputs.shape[1] in (1, 3, 4)))


def _is_sound(inputs: Inputs) -> bool:
    return isinstance(inputs, dict) and "frames" in inputs


def _draw_input(axes: "Axes", inputs: Inputs, row: int, texts: list[str] | None) -> None:
    if texts is not None:
        axes.text(0, 0.52, _shortened(texts[row]), va="center", fontsize=8, color=INK, transform=axes.transAxes)
    elif isinstance(inputs, Tensor):
        axes.imshow(_image(inputs[row]).numpy(), cmap="gray", interpolation="nearest")
    else:
        frames = inputs["frames"][row][inputs["mask"][row].bool()]  # (F, features)
        seconds = len(frames) / FRAMES_A_SECOND
        axes.imshow(frames.T.numpy(), origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, frames.shape[1]))
        axes.set_xlim(0, inputs["frames"].shape[1] / FRAMES_A_SECOND)


def _shortened(text: str) -> str:
    """The beginning of a text, or of both texts of a pair, in lines that fit beside a route."""
    lines = text.splitlines()
    if len(lines) == 2:  # a pair: a long text leaves the other at least half of the room
        rooms = [LONGEST_TEXT - min(len(other), LONGEST_TEXT // 2) for other in reversed(lines)]
        lines = [_cut(line, room) for line, room in zip(lines, rooms, strict=True)]
    else:
        lines = _cut(text, LONGEST_TEXT).splitlines()
    return "\n".join(part for line in lines for part in textwrap.wrap(line, LINE))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _image(pixels: Tensor) -> Tensor:
    """(H, W) or (C, H, W) of any range → (H, W) or (H, W, C) in [0, 1]."""
    low, high = pixels.min(), pixels.max()
    scaled = (pixels - low) / (high - low).clamp(min=1e-6)
    if scaled.dim() == 2:
        return scaled
    return scaled[0] if scaled.shape[0] == 1 else scaled.movedim(0, 2)
