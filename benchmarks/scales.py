"""How what routing costs changes with one size at a time: the tables and the figure of `speed.py --scale`."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.turns import Taken

__all__ = ["SCALES", "Measure", "draw", "scale_lines"]

SCALES: dict[str, tuple[float, ...]] = {
    "rows": (1, 4, 16, 64),
    "layers": (4, 8, 12, 24),
    "width": (64, 128, 256, 384, 768),
    "tokens": (8, 32, 64, 128),
    "left": (0.25, 0.5, 0.75, 1.0),
}
"""The sizes of each; of what is left, the share of the layers that run."""
NAMES = {"rows": "rows in a batch", "layers": "layers", "width": "width", "tokens": "tokens", "left": "share of the layers that run"}
ROUTED, ASKED, EVERYTHING = "routed", "routed, policy asked", "everything runs, routed"
COLUMNS = (EVERYTHING, ROUTED, ASKED)
COLOURS = {EVERYTHING: "#7f7f7f", ROUTED: "#1f77b4", ASKED: "#d62728"}
Measure = Callable[[str, float], dict[str, Taken]]
"""A scale and its value → over the plain loop, each of `COLUMNS`."""


def scale_lines(options: argparse.Namespace, measure: Measure) -> dict[str, dict[float, dict[str, Taken]]]:
    """Prints a table for each scale that is asked for. Returns what was measured, by scale and value."""
    found: dict[str, dict[float, dict[str, Taken]]] = {}
    for scale in options.scale:
        print(f"\n| {NAMES[scale]} | left | {' | '.join(COLUMNS)} |\n| ---: | ---: |{' ---: |' * len(COLUMNS)}")
        found[scale] = {}
        for value in SCALES[scale]:
            found[scale][value] = taken = measure(scale, value)
            print(f"| {value:g} | {left_at(scale, value):g} | {' | '.join(str(taken[name]) for name in COLUMNS)} |", flush=True)
    return found


def left_at(scale: str, value: float) -> float:
    """The share of the layers that run."""
    return value if scale == "left" else 0.5


def draw(found: dict[str, dict[float, dict[str, Taken]]], title: str, file: Path) -> None:
    """Draws a panel for each scale: medians over the plain loop, quartiles as bands, and the share of the layers that run, dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns, lines = min(len(found), 3), -(-len(found) // 3)
    size = 3.4 * columns + 0.8, 2.9 * lines + 0.9
    figure, panels = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for panel in panels.flat[len(found) :]:
        panel.set_axis_off()
    for panel, (scale, values) in zip(panels.flat, found.items(), strict=False):
        places = range(len(values))
        panel.plot(places, [left_at(scale, value) for value in values], "k--", linewidth=1, label="share of the layers that run")
        for name in COLUMNS:
            each: Sequence[Taken] = [taken[name] for taken in values.values()]
            panel.fill_between(places, [one.low for one in each], [one.high for one in each], color=COLOURS[name], alpha=0.2, linewidth=0)
            panel.plot(places, [one.ratio for one in each], "o-", color=COLOURS[name], markersize=4, label=name)
        panel.set_xticks(places, [f"{value:g}" for value in values])
        panel.set_xlabel(NAMES[scale])
        panel.grid(alpha=0.3)
    for line in panels:
        line[0].set_ylabel("time over the plain loop")
    panels[0][0].set_ylim(bottom=0)
    figure.suptitle(title, fontsize=9, wrap=True)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4 if columns == 3 else 2 if columns == 2 else 1, frameon=False, fontsize=9)
    figure.savefig(file, dpi=150)
    plt.close(figure)
    print(f"\n{file}")
