"""Inputs on which the policy spends least and most, each with its route drawn beside it."""

import textwrap
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rl_skip.core.inputs import Inputs
from rl_skip.core.task import Examples, Task
from rl_skip.measure.compare.result import RoutesTaken
from rl_skip.measure.compare.style import BLUE, GREY, INK, NOTE_CHARACTERS, VERMILLION, new_figure, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["cheapest_and_dearest", "draw_examples", "highest_and_lowest", "right_and_wrong"]

SHOWN = 6
"""Rows of each kind."""
FRAMES_A_SECOND = 100
LINE = 38
"""Characters of a text in one line."""
LONGEST_TEXT = 150
LONGEST_CLASS = 32
SHORT_CLASSES = 12
"""Characters of two names of classes that stand in one line."""
DECIMALS = 2
"""Of a compute, as it is shown."""


def cheapest_and_dearest(taken: RoutesTaken, count: int) -> tuple[Tensor, Tensor]:
    """The rows that cost least and most, no row in both.

    Of rows that cost the same, as far as the figure shows it, each class is shown once before any is shown twice.

    Returns:
        Row numbers, (≤ count,) each, from the cheapest on and from the dearest on.
    """
    return _both_ends(taken.compute.round(decimals=DECIMALS), taken.labels, count)


def highest_and_lowest(taken: RoutesTaken, count: int) -> tuple[Tensor, Tensor]:
    """The rows of the highest score and of the lowest, (≤ count,) each, likewise."""
    return _both_ends(-taken.correct, taken.labels, count)


def _both_ends(value: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The rows of the least `value` (N,) and those of the greatest, (≤ count,) each, no row in both."""
    turn, values = _turns(labels), value.tolist()
    order = sorted(range(len(turn)), key=lambda row: (values[row], turn[row]))
    least = order[: min(count, (len(order) + 1) // 2)]
    greatest = sorted(set(order) - set(least), key=lambda row: (-values[row], turn[row]))
    return torch.tensor(least, dtype=torch.long), torch.tensor(greatest[:count], dtype=torch.long)


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
    """The inputs that cost least on the left, those that cost most on the right.

    Where all cost the same there are neither: then rows that were right on the left, rows that were wrong on the right, or, where the score is
    not one or the other, those of the highest and of the lowest score.
    """
    depth = taken.route.shape[1]
    headings, columns = ("least compute", "most compute"), cheapest_and_dearest(taken, SHOWN)
    note = "filled: the layer ran; empty: it was not computed"
    if len(taken.compute.round(decimals=DECIMALS).unique()) == 1:
        note += "\nThe policy spends the same on every row, so none is cheaper than another."
        if _is_graded(taken):
            headings, columns = (f"highest {task.score_name}", f"lowest {task.score_name}"), highest_and_lowest(taken, SHOWN)
        else:
            headings, columns = ("right", "wrong"), right_and_wrong(taken, SHOWN)
    texts = _in_words(task, test)
    if texts is None and _is_sound(test.inputs):
        note += "\nSounds: time to the right, one second in all; pitch upwards; brighter is louder."
    verdicts = {row: _verdict(taken, task, row) for rows in columns for row in rows.tolist()}
    longest = max(len(line) for words, _ in verdicts.values() for line in words.splitlines())
    route_width = max(1.6, 0.24 * depth, longest / NOTE_CHARACTERS)
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
                _draw_route(right, taken, row, verdicts[row], numbered=place == 0)
    return figure


def _draw_route(axes: "Axes", taken: RoutesTaken, row: int, verdict: tuple[str, str], numbered: bool) -> None:
    depth = taken.route.shape[1]
    ran = taken.route[row].tolist()
    colours = [BLUE if run else "white" for run in ran]
    axes.scatter(range(depth), [0] * depth, s=110, marker="s", c=colours, edgecolors=[BLUE if run else GREY for run in ran], linewidths=0.8)
    if numbered:
        for layer in range(depth):
            axes.text(layer, 0.62, str(layer), ha="center", va="bottom", fontsize=7, color=INK)
        axes.text(-0.6, 1.35, "layer", fontsize=7, color=INK)
    words, colour = verdict
    spent = f"compute {taken.compute[row]:.{DECIMALS}f}"
    axes.text(-0.6, -0.7, f"{spent}\n{words}", va="top", fontsize=8, color=colour, in_layout=False)
    axes.set(xlim=(-0.7, depth - 0.3), ylim=(-2.2, 2.0))


def _is_graded(taken: RoutesTaken) -> bool:
    """Whether rows are more or less right, and not right or wrong."""
    return bool(((taken.correct != 0) & (taken.correct != 1)).any())


def _verdict(taken: RoutesTaken, task: Task, row: int) -> tuple[str, str]:
    """How good an answer was, in a line or two, and their colour."""
    score = f"{task.score_name} {taken.correct[row]:.3f}"
    if len(task.classes) == 1:
        return score, INK
    label, predicted = (_cut(task.classes[int(column[row])], LONGEST_CLASS) for column in (taken.labels, taken.prediction))
    if _is_graded(taken):
        return f"{score}, label {label},\npredicted {predicted}", INK
    if taken.correct[row]:
        return f"label {label}: right", INK
    apart = "\n" if len(label) + len(predicted) > SHORT_CLASSES else " "
    return f"label {label}: wrong,{apart}predicted {predicted}", VERMILLION


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
        axes.text(0, 0.52, _shortened(texts[row]), va="center", fontsize=8, color=INK, transform=axes.transAxes, in_layout=False)
    elif isinstance(inputs, Tensor):
        axes.imshow(_image(inputs[row]).numpy(), cmap="gray", interpolation="nearest")
    else:
        frames = inputs["frames"][row][inputs["mask"][row].bool()]  # (F, features)
        seconds = len(frames) / FRAMES_A_SECOND
        axes.imshow(frames.T.numpy(), origin="lower", aspect="auto", cmap="magma", extent=(0, seconds, 0, frames.shape[1]))
        axes.set_xlim(0, inputs["frames"].shape[1] / FRAMES_A_SECOND)


def _shortened(text: str) -> str:
    """The beginning of a text, or of both texts of a pair, in lines that fit beside a route."""
    lines = text.strip().splitlines()
    if len(lines) == 2:  # a pair: a long text leaves the other at least half of the room
        rooms = [LONGEST_TEXT - min(len(other), LONGEST_TEXT // 2) for other in reversed(lines)]
        lines = [_cut(line, room) for line, room in zip(lines, rooms, strict=True)]
    else:
        lines = _cut(text.strip(), LONGEST_TEXT).splitlines()
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
