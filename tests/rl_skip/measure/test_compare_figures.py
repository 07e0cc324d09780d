"""What the figures show, read back from their parts; and that each kind of input is drawn."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Arc
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from agents.baselines.training import TRAINED
from rl_skip.core.errors import UserError
from rl_skip.core.inputs import Inputs
from rl_skip.core.task import Examples, Task
from rl_skip.measure.compare.examples import cheapest_and_dearest, draw_examples, right_and_wrong
from rl_skip.measure.compare.figures import draw_all, draw_curve, draw_flow, draw_run_rate
from rl_skip.measure.compare.measure import THE_POLICY
from rl_skip.measure.compare.measured import BASELINES
from rl_skip.measure.compare.result import FULL_DEPTH, POLICY, BaselineCurve, Comparison, CurvePoint, Interval, RoutesTaken, Verdict
from rl_skip.measure.compare.trained import EACH_BUDGET, ONE_SHOT

DEPTH, ROWS, CLASSES = 6, 60, ("ant", "bee", "cow")


RECORDS = {record.name: record for record in (*(BASELINES.find(name).record for name in BASELINES.names()), *TRAINED, ONE_SHOT, EACH_BUDGET)}


def curve(name: str, points: list[tuple[float, float]]) -> BaselineCurve:
    found = (CurvePoint(f"{compute}", compute, Interval(accuracy, accuracy - 0.02, accuracy + 0.01)) for compute, accuracy in points)
    return BaselineCurve(RECORDS.get(name, THE_POLICY), tuple(found), Interval(0.9, 0.8, 1.0))


def taken(exits: bool = False) -> RoutesTaken:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (ROWS,), generator=generator)
    route = torch.rand(ROWS, DEPTH, generator=generator) < 0.3 + 0.2 * labels.unsqueeze(1)
    route[:, 0] = True
    route[:, -1] |= not exits
    correct = (torch.rand(ROWS, generator=generator) < 0.8).float()
    prediction = torch.where(correct > 0, labels, (labels + 1) % 3)
    return RoutesTaken(route, prediction, correct, route.float().mean(dim=1), labels)


def comparison(curves: tuple[BaselineCurve, ...] = (curve("policy", [(0.4, 0.9)]),), rows: RoutesTaken | None = None) -> Comparison:
    rows = taken() if rows is None else rows
    return Comparison(("a",), "beasts", CLASSES, DEPTH, ROWS, (0,), curves, (), (), Verdict("policy", ()), (), rows)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("score_name", ["accuracy", "token likelihood"])
def test_the_axis_says_what_the_score_is_called(score_name: str) -> None:
    figure = draw_curve(replace(comparison(), score_name=score_name))
    assert figure.axes[0].get_ylabel() == f"{score_name} on test data"
    assert figure.get_suptitle().startswith(f"{score_name.capitalize()} for the compute spent")


@pytest.mark.parametrize("trained", [False, True])
def test_every_curve_is_drawn_where_it_was_measured_and_told_apart(trained: bool) -> None:
    points = [(0.25, 0.9), (0.5, 0.95), (0.75, 0.96)]
    shown = [POLICY, *(name for name, record in RECORDS.items() if trained or not record.trained)]
    curves = tuple(curve(name, points[:1] if name == FULL_DEPTH else points) for name in shown)
    figure = draw_curve(comparison(curves))
    assert len(figure.axes) == 1 + trained
    assert sorted(set(texts(figure))) == sorted(one.record.title for one in curves)
    figure.draw_without_rendering()
    for axes in figure.axes:
        shown = [line for line in axes.lines if line.get_marker() != "None"]
        assert len(shown) == len(axes.texts)
        assert len({line.get_marker() for line in shown}) == len({line.get_color() for line in shown}) == len(shown)
        for line in shown:
            drawn = list(zip(line.get_xdata(), line.get_ydata(), strict=True))
            assert drawn == points[: len(drawn)]
        boxes = [Text.get_window_extent(text) for text in axes.texts]  # of the name without its line
        assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])
        assert not any(box.overlaps(other.bbox) for box in boxes for other in figure.axes), "a name stands in a panel"


def test_the_heat_map_holds_the_share_of_each_class() -> None:
    rows = taken()
    heat, bars = draw_run_rate(rows, task()).axes
    image = torch.tensor(heat.images[0].get_array())  # (C + 1, L), percent
    for label in range(3):
        mine = [rows.route[n] for n in range(ROWS) if rows.labels[n] == label]
        for layer in range(DEPTH):
            assert float(image[label, layer]) == pytest.approx(100 * sum(bool(route[layer]) for route in mine) / len(mine), rel=1e-5)
    torch.testing.assert_close(image[3], 100 * rows.route.float().mean(dim=0))
    assert [bar.get_width() for bar in bars.patches] == pytest.approx((image / 100).sum(dim=1).tolist())
    assert [label.get_text() for label in heat.get_yticklabels()] == [*CLASSES, "all rows"]


@pytest.mark.parametrize("exits", [False, True])
def test_an_arc_for_each_jump_with_its_share(exits: bool) -> None:
    rows = taken(exits)
    jumps: dict[tuple[int, int], int] = {}
    for route in rows.route.tolist():
        ran = [layer for layer in range(DEPTH) if route[layer]] + [DEPTH]
        for i, j in zip(ran, ran[1:], strict=False):
            jumps[i, j] = jumps.get((i, j), 0) + 1
    figure = draw_flow(rows, task())
    (axes,) = figure.axes
    arcs = {(arc.center[0] - arc.width / 2, arc.center[0] + arc.width / 2) for arc in axes.patches if isinstance(arc, Arc)}
    assert arcs == {jump for jump in jumps if jump[1] > jump[0] + 1}
    direct = [(DEPTH - 1, DEPTH)] if not exits else []
    shares = sorted(f"{100 * count / ROWS:.0f}%" for jump, count in jumps.items() if jump not in direct and count / ROWS >= 0.03)
    running = [f"{100 * rate:.0f}%" for rate in rows.route.double().mean(dim=0).tolist()]
    assert sorted(text for text in texts(figure) if text.endswith("%")) == sorted(shares + running)


LEFT = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
JUMPED = [[1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("routes", "says"),
    [(LEFT, "arc: rows leave,"), (JUMPED, "arc: rows jump,"), (LEFT + JUMPED, "arc: rows leave or jump,"), ([[1, 1, 1, 1]], None)],
    ids=["leaves", "jumps", "both", "neither"],
)
def test_the_flow_says_what_the_policy_did(routes: list[list[int]], says: str | None) -> None:
    route = torch.tensor(routes).bool()
    none = torch.zeros(len(route))
    figure = draw_flow(RoutesTaken(route, none.long(), none, none, none.long()), task())
    note = figure.get_supxlabel().replace("\n", " ")
    assert "jump" not in figure.get_suptitle()
    assert (says in note) if says else "arc" not in note
    assert ("jump" in note) == ("jump" in (says or ""))


def test_a_narrow_figure_holds_its_whole_note() -> None:
    for depth in (3, DEPTH):
        rows = taken()
        figure = draw_flow(RoutesTaken(rows.route[:, :depth], rows.prediction, rows.correct, rows.compute, rows.labels), task())
        figure.draw_without_rendering()
        note = next(text for text in figure.texts if "thickness" in text.get_text())
        assert note.get_window_extent().x1 <= figure.bbox.x1


def test_no_row_costs_less_than_the_cheapest_or_more_than_the_dearest() -> None:
    rows = taken()
    cheap, dear = cheapest_and_dearest(rows, 6)
    others = [n for n in range(ROWS) if n not in [*cheap.tolist(), *dear.tolist()]]
    assert len({*cheap.tolist(), *dear.tolist()}) == 12
    assert rows.compute[cheap].max() <= rows.compute[others].min() and rows.compute[dear].min() >= rows.compute[others].max()
    few = RoutesTaken(*(getattr(rows, name)[:3] for name in ("route", "prediction", "correct", "compute", "labels")))
    assert sorted([*cheapest_and_dearest(few, 6)[0].tolist(), *cheapest_and_dearest(few, 6)[1].tolist()]) == [0, 1, 2]


def headings(figure: Figure) -> set[str]:
    return {axes.get_title(loc="left") for axes in figure.axes} - {""}


def test_columns_are_called_what_they_are() -> None:
    """By what rows spend; by what was right where all spend the same, as far as is shown; by the score where none is right or wrong."""
    rows = taken()
    test = Examples(torch.rand(ROWS, 5, 5), rows.labels)
    assert headings(draw_examples(rows, task(), test)) == {"least compute", "most compute"}
    level = replace(rows, compute=0.5 + 1e-3 * rows.compute)  # what deciding takes of short and of long rows
    assert headings(draw_examples(level, task(), test)) == {"right", "wrong"}
    graded = replace(level, correct=torch.linspace(0.001, 0.999, ROWS))
    figure = draw_examples(graded, replace(task(), score_name="likelihood", classes=("text",)), test)
    assert headings(figure) == {"highest likelihood", "lowest likelihood"}
    shown = {text.splitlines()[1] for text in texts(figure) if text.startswith("compute")}
    assert shown == {f"likelihood {graded.correct[n]:.3f}" for n in [*range(6), *range(ROWS - 6, ROWS)]}


def test_long_names_of_classes_stay_beside_their_row() -> None:
    rows, names = taken(), tuple(f"{name}_{'of_a_kind_' * 8}" for name in CLASSES)
    figure = draw_examples(rows, replace(task(["a text"] * ROWS), classes=names), Examples(torch.zeros(ROWS, 4).long(), rows.labels))
    figure.draw_without_rendering()
    for left, right in zip(figure.axes[::2], figure.axes[1::2], strict=True):
        (verdict,) = (text for text in right.texts if text.get_text().startswith("compute"))
        begin, end = left.get_window_extent().x1, right.get_window_extent().x1
        assert begin <= verdict.get_window_extent().x0 and verdict.get_window_extent().x1 <= end + 0.02 * figure.bbox.width


def test_rows_of_one_route_are_told_apart_by_what_was_right() -> None:
    rows = taken()
    right, wrong = right_and_wrong(rows, 6)
    assert rows.correct[right].tolist() == [1] * 6 and rows.correct[wrong].tolist() == [0] * 6
    assert sorted(rows.labels[right].tolist()) == [0, 0, 1, 1, 2, 2], "each class as often as the others"
    route = torch.zeros(ROWS, DEPTH, dtype=torch.bool)
    route[:, 0] = True
    same = RoutesTaken(route, rows.prediction, rows.correct, torch.full((ROWS,), 1 / DEPTH), rows.labels)
    figure = draw_examples(same, task(), Examples(torch.rand(ROWS, 5, 5), same.labels))
    assert headings(figure) == {"right", "wrong"}


def task(words: list[str] | None = None) -> Task:
    def load(split: str) -> Examples:
        raise AssertionError("figures read no data")

    return Task("beasts", CLASSES, load, lambda width: torch.nn.Linear(3, width), 5, in_words=None if words is None else lambda examples: words)


def sounds() -> dict[str, Tensor]:
    lengths = torch.randint(1, 20, (ROWS, 1))
    return {"frames": torch.randn(ROWS, 20, 8), "mask": torch.arange(20) < lengths}


@pytest.mark.parametrize(
    ("inputs", "words", "pictures"),
    [
        (torch.rand(ROWS, 1, 7, 9), None, 12),
        (torch.rand(ROWS, 3, 7, 7), None, 12),
        (sounds(), None, 12),
        (torch.randint(9, (ROWS, 4)), None, 0),
        (torch.randint(9, (ROWS, 4)), [f"row {n}, said in words " * 20 for n in range(ROWS)], 0),
    ],
    ids=["grey", "colour", "sound", "numbers", "words"],
)
def test_all_kinds_of_inputs_are_drawn(tmp_path: Path, inputs: Inputs, words: list[str] | None, pictures: int) -> None:
    found = comparison((curve("policy", [(0.4, 0.9), (0.6, 0.95)]), curve(FULL_DEPTH, [(1.0, 0.97)])))
    test = Examples(inputs, found.taken.labels)
    files = draw_all(found, tmp_path / "figures", task(words), test)
    assert [file.name for file in files] == ["curve.png", "run_rate.png", "flow.png", "examples.png"]
    for file in files:
        with Image.open(file) as image:
            assert min(image.size) > 400 and round(image.info["dpi"][0]) >= 130
            assert len(image.convert("L").getcolors() or range(1000)) > 20, "an empty picture"
    figure = draw_examples(found.taken, task(words), test)
    assert sum(len(axes.images) for axes in figure.axes) == pictures
    cheap, dear = cheapest_and_dearest(found.taken, 6)
    if pictures == 0:
        expected = [" ".join(str(int(value)) for value in inputs[n]) if words is None else f"row {n}," for n in [*cheap, *dear]]
        assert all(any(text.startswith(start) for text in texts(figure)) for start in expected)
    computes = sorted(text.splitlines()[0] for text in texts(figure) if text.startswith("compute"))
    assert computes == sorted(f"compute {found.taken.compute[n]:.2f}" for n in [*cheap, *dear])


def test_of_a_pair_both_texts_are_shown() -> None:
    found = comparison((curve("policy", [(0.4, 0.9), (0.6, 0.95)]), curve(FULL_DEPTH, [(1.0, 0.97)])))
    pairs = ["long " * 100 + "\nshort second", "short first\n" + "long " * 100, "many " * 100 + "\n" + "more " * 100, ""]
    test = Examples(torch.randint(9, (ROWS, 4)), found.taken.labels)
    drawn = texts(draw_examples(found.taken, task([pairs[n % 4] for n in range(ROWS)]), test))
    for start, end in (("long", "…\nshort second"), ("short first\nlong", "…"), ("many", "…")):
        shown = [text for text in drawn if text.startswith(start)]
        assert shown and all(text.endswith(end) and len(text) <= 152 for text in shown)
    assert all("…\nmore" in text for text in drawn if text.startswith("many"))


def test_without_matplotlib_the_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        draw_curve(comparison())
