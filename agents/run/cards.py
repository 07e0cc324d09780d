"""Figures for TensorBoard's cards, which are 330 pixels wide: few words, each large enough to be read there."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rl_skip.core.task import Task, score_key
from rl_skip.measure.compare.result import RoutesTaken
from rl_skip.measure.compare.style import BLUE, GREEN, GREY, INK, ORANGE, VERMILLION, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_flow", "draw_routes", "draw_run_rates", "draw_trade_off"]

WIDTH, HEIGHT = 3.9, 3.1
"""Inches, such that a letter of 9 points has 12 pixels on a card of 380."""
SMALL, USUAL, TITLE = 8, 9, 10
"""Points."""
MOST_CLASSES = 12
"""More than that do not fit; then those are shown that take the fewest and the most layers."""
CELL_TEXT = 9
"""Layers up to which cells carry numbers."""
TICKS = 8
WAYS = {"full depth": (INK, "*"), "best fixed route": (VERMILLION, "s"), "one threshold": (ORANGE, "^"), "random routes": (GREY, "x")}
"""Those in the report, each with colour and marker."""


def _card(title: str, **labels: str) -> tuple["Figure", "Axes"]:
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    figure.suptitle(title, fontsize=TITLE, fontweight="bold", color=INK)
    axes.set(**labels)
    axes.tick_params(labelsize=SMALL)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(USUAL)
    return figure, axes


def _few(values: Sequence[int], most: int = TICKS) -> list[int]:
    """Some of many ticks, evenly apart."""
    return list(values)[:: -(-len(values) // most)]


def draw_trade_off(report: Mapping[str, Any], score_name: str) -> "Figure":
    """Score over compute on test data: the policy along its dial, and everything else in the report's table."""
    key = score_key(score_name)
    figure, axes = _card(f"{score_name} for the compute spent", xlabel="mean compute (1 = every layer)", ylabel=f"{score_name}, test rows")
    dial = sorted((point["compute"], point[key]) for point in report.get("dial", ()))
    if dial:
        axes.plot(*zip(*dial, strict=True), "o-", color=BLUE, markersize=4, linewidth=1.8, label="policy, by price")
    for name, (colour, marker) in WAYS.items():
        if name in report:
            at = report[name]["compute"], report[name][key]
            axes.plot(*at, linestyle="none", marker=marker, color=colour, markersize=9 if marker == "*" else 6, label=name)
    if "policy" in report:
        at = report["policy"]["compute"], report["policy"][key]
        ring: dict[str, Any] = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgecolor": GREEN, "markeredgewidth": 2}
        axes.plot(*at, linestyle="none", label="as exported", **ring)
    axes.set_xlim(0, 1.08)
    axes.margins(y=0.12)
    axes.yaxis.set_major_formatter(lambda value, _place: f"{100 * value:.4g}%")
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    plain(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=SMALL, frameon=False, columnspacing=1.0)
    return figure


def draw_routes(taken: RoutesTaken, task: Task, split: str) -> "Figure":
    """How often each layer runs, for each class and for all rows."""
    rates = taken.run_rate(len(task.classes))  # (C, L)
    order, which = list(range(len(task.classes))), "class"
    if len(order) > MOST_CLASSES:
        met = [label for label in order if bool((taken.labels == label).any())]
        by_layers = sorted(met, key=lambda label: float(rates[label].sum()))
        half = MOST_CLASSES // 2
        order, which = [*by_layers[:half], *by_layers[-half:]], f"class: fewest and most layers, of {len(order)}"
    rows = torch.cat([rates[order], taken.route.to(rates.dtype).mean(dim=0, keepdim=True)])
    figure, axes = _card(f"% of {split} rows that run each layer", xlabel="layer", ylabel=which)
    _heat(axes, rows)
    axes.axhline(len(order) - 0.5, color="white", linewidth=3)
    names = [name if len(name) <= 14 else f"{name[:13]}…" for name in (task.classes[label] for label in order)]
    axes.set_yticks(range(len(order) + 1), [*names, "all rows"])
    ticks = _few(range(rows.shape[1]), 12)
    axes.set_xticks(ticks, [str(layer) for layer in ticks])
    return figure


def draw_flow(taken: RoutesTaken, split: str) -> "Figure":
    """Of the rows that ran a layer, where they went next."""
    flow = taken.flow().double()  # (L, L + 1)
    depth = len(flow)
    shares = flow / flow.sum(dim=1, keepdim=True).clamp(min=1)
    figure, axes = _card(f"Where {split} rows go next, %", xlabel="next layer", ylabel="after layer")
    _heat(axes, shares)
    ticks = _few(range(depth))
    axes.set_yticks(ticks, [str(layer) for layer in ticks])
    places = [layer for layer in ticks if layer < depth - 1 or depth <= TICKS]
    axes.set_xticks([*places, depth], [*(str(layer) for layer in places), "out"])
    return figure


def _heat(axes: "Axes", rates: Tensor) -> None:
    axes.imshow((100 * rates).numpy(), cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if rates.shape[1] > CELL_TEXT or rates.shape[0] > MOST_CLASSES + 1:
        return
    for row in range(rates.shape[0]):
        for column in range(rates.shape[1]):
            rate = float(rates[row, column])
            if rate > 0:
                colour = "white" if rate > 0.55 else INK
                axes.text(column, row, f"{100 * rate:.0f}", ha="center", va="center", fontsize=SMALL, color=colour)


def draw_run_rates(steps: Sequence[float], rates: Tensor) -> "Figure":
    """How often each layer ran over the training: a row per layer, updates to the right, dark runs always.

    Args:
        steps: (K,), of the points.
        rates: (K, L), the share of rows that ran each layer.
    """
    depth = rates.shape[1]
    figure, axes = _card("% of rows that run each layer", xlabel="update", ylabel="layer")
    first, last = float(steps[0]), float(max(steps[-1], steps[0] + 1))
    drawn = axes.imshow(
        (100 * rates.T).numpy(), cmap="Blues", vmin=0, vmax=100, aspect="auto", interpolation="nearest", extent=(first, last, depth - 0.5, -0.5)
    )
    axes.set_yticks(_few(range(depth), 12))
    bar = figure.colorbar(drawn, ax=axes, pad=0.02)
    bar.ax.tick_params(labelsize=SMALL)
    return figure
