"""The figures of a comparison, for paper and for the colour-blind: each curve with a colour, a marker and a line style of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rl_skip.core.task import Examples, Task
from rl_skip.measure.compare.examples import draw_examples
from rl_skip.measure.compare.result import FULL_DEPTH, POLICY, Comparison, RoutesTaken, ScoreCurve
from rl_skip.measure.compare.style import BLUE, GREY, INK, VERMILLION, new_figure, plain, save, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_all", "draw_curve", "draw_flow", "draw_panel", "draw_run_rate", "label_beside"]

CURVE, RUN_RATE, FLOW, EXAMPLES = "curve.png", "run_rate.png", "flow.png", "examples.png"
CELL_TEXT = 26
"""Classes or layers beyond which the cells of the heat map carry no numbers."""
LABEL_GAP = 0.058
"""Distance of two labels beside a panel, as a share of its height."""
ARC_HEIGHT = 0.36
"""Height of an arc for each layer that it is long, where two layers are 1 apart."""
SMALL_FLOW = 0.03
"""Share of rows below which a way is drawn without a number."""


def draw_all(comparison: Comparison, folder: Path, task: Task, test: Examples) -> list[Path]:
    """Draws every figure of a comparison.

    Args:
        comparison: what to draw.
        folder: where the pictures go; made if it is missing.
        task: what the rows are.
        test: the N rows that `comparison.taken` speaks of, in the same order.

    Returns:
        The files: score over compute, run rate of layers and classes, where rows go after each layer, inputs with their routes.

    Raises:
        UserError: if matplotlib is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Figure] = {
        CURVE: draw_curve(comparison),
        RUN_RATE: draw_run_rate(comparison.taken, task),
        FLOW: draw_flow(comparison.taken, task),
        EXAMPLES: draw_examples(comparison.taken, task, test),
    }
    return [save(figure, folder / name) for name, figure in drawn.items()]


def draw_curve(comparison: Comparison) -> "Figure":
    """Score over compute with bands: the policy beside what needs no training, and beside the trained baselines."""
    trained = [curve for curve in comparison.curves if curve.record.trained]
    panels = [("on the policy's own network", [curve for curve in comparison.curves if not curve.record.trained])]
    if trained:
        reference = [curve for curve in comparison.curves if curve.record.name in (POLICY, FULL_DEPTH)]
        panels.append(("baselines with training of their own", reference + trained))
    figure = new_figure(6.2 * len(panels), 4.3)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    seeds = f"{len(comparison.seeds)} seeds" if len(comparison.seeds) > 1 else f"seed {comparison.seeds[0]}"
    title(
        figure,
        f"{comparison.score_name.capitalize()} for the compute spent: {comparison.task}",
        f"{comparison.rows} test rows, {seeds}; each point was chosen on validation data; bands are 95% intervals",
    )
    for panel, (name, curves) in zip(axes, panels, strict=True):
        draw_panel(panel, curves)
        panel.set_title(name, loc="left", color=INK)
    axes[0].set_ylabel(f"{comparison.score_name} on test data")
    for panel, (_, curves) in zip(axes, panels, strict=True):  # once all curves are drawn: the panels share an axis
        label_beside(panel, curves)
    return figure


def draw_panel(axes: "Axes", curves: Sequence[ScoreCurve]) -> None:
    """Draws curves with their bands into one panel, without their names; `label_beside` adds these."""
    for curve in curves:
        _draw_one_curve(axes, curve)
    axes.set_xlabel("mean compute (1 = every layer for every row)")
    axes.set_xlim(0, max(1.05, *(point.compute for curve in curves for point in curve.points)))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    plain(axes)
    axes.yaxis.set_major_formatter(lambda value, _place: f"{100 * value:g}%")


def _draw_one_curve(axes: "Axes", curve: ScoreCurve) -> None:
    colour, marker, line = curve.record.colour, curve.record.marker, curve.record.line
    compute = [point.compute for point in curve.points]
    scores = [point.score for point in curve.points]
    low, high = [score.low for score in scores], [score.high for score in scores]
    front = {POLICY: 4, FULL_DEPTH: 5}.get(curve.record.name, 3)
    if len(compute) == 1:
        axes.plot([compute[0]] * 2, [low[0], high[0]], color=colour, alpha=0.5, linewidth=3, solid_capstyle="butt", zorder=front - 1)
    else:
        axes.fill_between(compute, low, high, color=colour, alpha=0.13, linewidth=0, zorder=1)
    first = curve.record.name == POLICY
    size = 11 if marker == "*" else 5.5 if first else 7.5
    inside = colour if first or marker == "*" else "none"  # hollow: what lies on the same point shows through
    values, width = [score.value for score in scores], 2.4 if first else 1.5
    dashes: Any = (line or "none") if isinstance(line, str) else (0, line)
    axes.plot(compute, values, linestyle=dashes, marker=marker, color=colour, mfc=inside, lw=width, ms=size, mew=1.3, zorder=front)


def label_beside(axes: "Axes", curves: Sequence[ScoreCurve]) -> None:
    """Names each curve at the right edge, in the order of their ends, with a thin line to its last point."""
    bottom, top = axes.get_ylim()
    ends = [(curve.points[-1].compute, curve.points[-1].score.value) for curve in curves]
    heights = [(score - bottom) / (top - bottom) for _, score in ends]
    for curve, end, height in zip(curves, ends, _spread(heights, LABEL_GAP), strict=True):
        colour = curve.record.colour
        axes.annotate(
            curve.record.title,
            end,
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontweight="bold" if curve.record.name == POLICY else "normal",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "alpha": 0.6, "shrinkB": 4, "shrinkA": 2, "relpos": (0, 0.5)},
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """The heights, moved as little as possible until neighbours are `gap` apart, their order kept, within 0..1 where there is room.

    Isotonic regression by pooling neighbours that are too close (Ayer et al. 1955).
    """
    order = sorted(range(len(heights)), key=lambda n: heights[n])
    pools: list[list[float]] = []  # of each: what its members would be without the gaps
    for place, n in enumerate(order):
        pools.append([heights[n] - place * gap])
        while len(pools) > 1 and _mean(pools[-2]) >= _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [_mean(pool) for pool in pools for _ in pool]
    room = max(1 - gap * (len(order) - 1), 0.0)
    spread = [0.0] * len(heights)
    for place, n in enumerate(order):
        spread[n] = min(max(level[place], 0.0), room) + place * gap
    return spread


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def draw_run_rate(taken: RoutesTaken, task: Task) -> "Figure":
    """How often each layer runs, for each class and for all rows, and how many layers that makes."""
    classes, (rows, depth) = len(task.classes), taken.route.shape
    rates = torch.cat([taken.run_rate(classes), taken.route.float().mean(dim=0, keepdim=True)])  # (C + 1, L)
    names = [*task.classes, "all rows"]
    figure = new_figure(min(2.6 + 0.55 * depth + 1.6, 13), min(1.9 + 0.3 * (classes + 1), 14))
    heat, bars = figure.subplots(1, 2, sharey=True, width_ratios=[max(depth, 4), 3])
    title(figure, f"How often each layer runs, by class: {task.name}", f"the policy as exported, on {rows} test rows")
    heat.imshow((100 * rates).numpy(), cmap="Blues", vmin=0, vmax=100, aspect="auto")
    heat.axhline(classes - 0.5, color="white", linewidth=4)
    if max(classes, depth) <= CELL_TEXT:
        for (row, layer), rate in zip(_cells(rates), rates.flatten().tolist(), strict=True):
            heat.text(layer, row, f"{100 * rate:.0f}", ha="center", va="center", fontsize=8, color="white" if rate > 0.55 else INK)
    heat.set_xticks(range(depth), [str(layer) for layer in range(depth)])
    heat.set_yticks(range(classes + 1), names, fontsize=10 if classes <= CELL_TEXT else 5.5)
    heat.set(xlabel="layer", ylabel="class", title="share of rows that run it, %")
    heat.tick_params(length=0)
    layers = rates.sum(dim=1).tolist()
    bars.barh(range(classes + 1), layers, color=[BLUE] * classes + [INK], height=0.6)
    for row, count in enumerate(layers):
        bars.text(count + 0.03 * depth, row, f"{count:.1f}", va="center", fontsize=8)
    bars.set(xlabel=f"layers, of {depth}", title="mean layers run", xlim=(0, 1.25 * depth), xticks=[0, depth / 2, depth])
    bars.xaxis.set_major_formatter(lambda value, _place: f"{value:g}")
    bars.tick_params(axis="y", length=0, labelleft=False)
    plain(bars)
    bars.spines["left"].set_visible(False)
    heat.spines[:].set_visible(False)
    return figure


def _cells(rates: Tensor) -> list[tuple[int, int]]:
    return [(row, layer) for row in range(rates.shape[0]) for layer in range(rates.shape[1])]


def draw_flow(taken: RoutesTaken, task: Task) -> "Figure":
    """Layers in a row, with a line to the next one and an arc to each other place, each as thick as there are rows that take it."""
    rows, depth = taken.route.shape
    flow = taken.flow().double() / rows  # (L, L + 1)
    leaving = bool(flow[:-1, depth].sum() > 0)
    longest = max((j - i for i, j in flow.nonzero().tolist() if leaving or j < depth), default=1)
    bottom, top = -1.0, ARC_HEIGHT * longest + 0.6
    figure = new_figure(min(2.0 + 0.95 * (depth + 1), 15), min(1.2 + 0.8 * (top - bottom), 4.6))
    axes = figure.subplots()
    subtitle = f"thickness and numbers: share of the {rows} test rows; straight: the very next layer{_arcs_in_words(flow)}"
    title(figure, f"Where rows go after each layer: {task.name}", subtitle)
    for i, j in flow.nonzero().tolist():
        share = float(flow[i, j])
        if j == depth and not leaving:
            axes.plot([i, j], [0, 0], color=GREY, lw=1.5, zorder=1)
        elif j == i + 1:
            axes.plot([i, j], [0, 0], color=BLUE, lw=_thickness(share), solid_capstyle="butt", zorder=1)
            _number(axes, i + 0.5, -0.32, share)
        else:
            _arc(axes, i, j, share)
    ran = taken.route.double().mean(dim=0).tolist()
    for i, rate in enumerate(ran):
        axes.scatter([i], [0], s=520, facecolor="white" if rate == 0 else INK, edgecolor=INK, lw=1.2, zorder=4)
        axes.text(i, 0, str(i), ha="center", va="center", color=INK if rate == 0 else "white", fontweight="bold", zorder=5)
        axes.text(i, -0.75, f"{100 * rate:.0f}%", ha="center", va="center")
    axes.text(-0.45, 0, "layer", ha="right", va="center")
    axes.text(-0.45, -0.75, "rows that run it", ha="right", va="center")
    axes.text(depth, 0, "output", ha="center", va="center", zorder=5, bbox={"boxstyle": "round", "facecolor": "white", "edgecolor": INK})
    axes.set(xlim=(-1.7, depth + 0.6), ylim=(bottom, top))
    axes.axis("off")
    return figure


def _arcs_in_words(flow: Tensor) -> str:
    """What the arcs are that a figure of `flow` (L, L + 1) has; nothing where it has none."""
    depth = len(flow)
    ends = {j == depth for i, j in flow.nonzero().tolist() if j > i + 1}
    if not ends:
        return ""
    rows = "rows leave or jump" if len(ends) == 2 else "rows leave" if True in ends else "rows jump"
    return f"; arc: {rows}, and the layers below it are not computed"


def _thickness(share: float) -> float:
    return 0.8 + 17 * share


def _arc(axes: "Axes", i: int, j: int, share: float) -> None:
    from matplotlib.patches import Arc

    middle, span, height = (i + j) / 2, j - i, ARC_HEIGHT * (j - i)
    colour = VERMILLION
    arc: Any = Arc((middle, 0), span, 2 * height, theta1=0, theta2=180, color=colour, lw=_thickness(share), alpha=0.75, zorder=2)
    axes.add_patch(arc)
    _number(axes, middle, height, share)


def _number(axes: "Axes", x: float, y: float, share: float) -> None:
    if share >= SMALL_FLOW:
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
        axes.text(x, y, f"{100 * share:.0f}%", ha="center", va="center", fontsize=8, zorder=6, bbox=box)
