"""What the figures of a comparison look like."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from rl_skip.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "NOTE_CHARACTERS",
    "OLIVE",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILLION",
    "WINE",
    "new_figure",
    "plain",
    "save",
    "title",
]

BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"  # Okabe and Ito
INK, GREY, WINE, OLIVE = "#1a1a1a", "#808080", "#882255", "#999933"  # from Tol's muted scheme: Okabe and Ito's yellow is too pale on white
DPI = 150
NOTE_CHARACTERS = 15.5
"""Characters of the note below a figure, or of another text of 8 points, that fit into an inch."""


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches. It has no window, and nothing is left of it when it is dropped.

    Raises:
        UserError: if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib; pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def title(figure: "Figure", what: str, how: str) -> None:
    """Writes above the figure what it shows, and below it on which rows and how to read it."""
    figure.suptitle(what, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    characters = int(NOTE_CHARACTERS * figure.get_figwidth())
    lines = [line for paragraph in how.splitlines() for line in textwrap.wrap(paragraph, characters)]
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=8, color="#404040")


def plain(axes: "Axes") -> None:
    """Takes away the frame's upper and right edge."""
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: "Figure", file: Path) -> Path:
    """Writes the picture. Returns the file."""
    figure.savefig(file, dpi=DPI)
    return file
