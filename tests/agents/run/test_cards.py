"""The figures for TensorBoard's cards show the numbers that they are given, with axes, in letters that can be read there."""

from typing import Any

import matplotlib.text
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from agents.run.cards import draw_flow, draw_routes, draw_run_rates, draw_trade_off
from rl_skip.core.task import Task
from rl_skip.measure.compare.result import RoutesTaken

CARD, LETTER = 330, 8
"""Pixels of a card's width, and of a letter's height, that can be read."""


def taken(*rows: tuple[int, tuple[int, ...]]) -> RoutesTaken:
    labels = torch.tensor([label for label, _ in rows])
    route = torch.tensor([route for _, route in rows]).bool()
    nothing = torch.zeros(len(rows))
    return RoutesTaken(route, labels, nothing, nothing, labels)


def task_of(classes: int) -> Task:
    return Task("beasts", tuple(f"beast number {label}" for label in range(classes)), lambda split: None, embedding=None, tokens=1)  # type: ignore[arg-type, return-value]


def heat(figure: Any) -> list[list[float]]:
    values: list[list[float]] = figure.axes[0].images[0].get_array().tolist()
    return values


FEW = taken((0, (1, 0, 0)), (0, (1, 1, 0)), (1, (1, 1, 1)), (1, (1, 0, 1)))
REPORT = {
    "policy": {"compute": 0.4, "accuracy": 0.9},
    "full depth": {"compute": 1.0, "accuracy": 0.95},
    "random routes": {"compute": 0.4, "accuracy": 0.7},
    "dial": [{"price": 0.1, "compute": 0.6, "accuracy": 0.93}, {"price": 1.0, "compute": 0.2, "accuracy": 0.8}],
}
MANY = taken(*((label, tuple([1] * (1 + label % 24) + [0] * (23 - label % 24))) for label in range(77)))
FIGURES = {
    "trade-off": lambda: draw_trade_off(REPORT, "accuracy"),
    "routes": lambda: draw_routes(FEW, task_of(2), "validation"),
    "routes of many": lambda: draw_routes(MANY, task_of(77), "validation"),
    "flow": lambda: draw_flow(FEW, "validation"),
    "flow of many": lambda: draw_flow(MANY, "validation"),
    "run rates": lambda: draw_run_rates([8, 16, 24], torch.tensor([[1.0, 0.5], [1.0, 0.2], [1.0, 0.1]])),
}


@pytest.mark.parametrize("name", FIGURES)
def test_axes_have_names_and_every_letter_can_be_read_on_a_card(name: str) -> None:
    figure = FIGURES[name]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert figure.axes[0].get_xlabel() and figure.axes[0].get_ylabel() and figure.get_suptitle()
    shown = [text for text in figure.findobj(matplotlib.text.Text) if text.get_visible() and text.get_text()]
    to_card = CARD / figure.bbox.width
    assert min(text.get_fontsize() * figure.dpi / 72 * to_card for text in shown) >= LETTER
    drawn = figure.get_tightbbox()  # in inches
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= figure.get_figwidth() and drawn.y1 <= figure.get_figheight(), "cut off"
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        ticks = [label.get_window_extent() for label in axis.get_ticklabels() if label.get_text()]
        assert not any(before.overlaps(after) for before, after in zip(ticks, ticks[1:], strict=False))


def test_the_routes_are_shares_of_each_class_and_of_all_rows() -> None:
    assert heat(FIGURES["routes"]()) == [[100, 50, 0], [100, 50, 100], [100, 50, 50]]


def test_of_many_classes_those_are_shown_that_run_the_fewest_and_the_most() -> None:
    figure = FIGURES["routes of many"]()
    layers = [sum(row) / 100 for row in heat(figure)]
    assert len(layers) == 13 and max(layers[:6]) < 3 and min(layers[6:12]) > 20
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][0] == "beast number 0" and len(figure.axes[0].get_xticks()) <= 12


def test_the_flow_says_where_the_rows_of_each_layer_went() -> None:
    shares = heat(FIGURES["flow"]())
    assert shares == [[0, 50, 25, 25], [0, 0, 50, 50], [0, 0, 0, 100]]


def test_the_trade_off_has_the_dial_and_everything_in_the_table() -> None:
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in FIGURES["trade-off"]().axes[0].get_lines()}
    assert lines == {
        "policy, by price": [(0.2, 0.8), (0.6, 0.93)],
        "full depth": [(1.0, 0.95)],
        "random routes": [(0.4, 0.7)],
        "as exported": [(0.4, 0.9)],
    }


def test_the_run_rates_run_to_the_right_and_are_dark_where_every_row_runs() -> None:
    figure = FIGURES["run rates"]()
    (image,) = figure.axes[0].images
    assert image.get_array().tolist() == [[100, 100, 100], pytest.approx([50, 20, 10])]
    assert image.get_extent()[:2] == [8, 24] and image.get_clim() == (0, 100)
    light, dark = (sum(image.cmap(image.norm(value))[:3]) for value in (0, 100))
    assert dark < light / 2
