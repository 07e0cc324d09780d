"""Baselines that need no training of their own: what each is, and how it is measured on a run's network and data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rl_skip.core.errors import UserError
from rl_skip.core.features import MOST_CLASSES
from rl_skip.core.plugins import Registry, own_code
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.random_routes import random_routes_at
from rl_skip.core.reward import LINEAR, Reward
from rl_skip.core.routing import Router
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Task
from rl_skip.export.policy_folder import SkipModel
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.book import RouteBook
from rl_skip.measure.compare.curves import Curve, Point, price_label
from rl_skip.measure.compare.leaving import (
    EntropyExits,
    ExitTable,
    Patience,
    exit_table,
    one_threshold,
    threshold_for_each_class,
    threshold_for_each_exit,
)
from rl_skip.measure.compare.result import BEST_FIXED, FULL_DEPTH, ORACLE, RANDOM, SHUFFLED
from rl_skip.measure.compare.rows import Rows
from rl_skip.measure.compare.style import GREEN, GREY, INK, OLIVE, ORANGE, PURPLE, SKY, VERMILLION, WINE
from rl_skip.measure.evaluation import Evaluation, evaluate, searched_routes

__all__ = ["BASELINES", "Bench", "MeasuredBaseline", "measured_curve"]

ORACLE_PRICES = tuple(10.0 ** (k / 4) for k in range(-12, 3))
"""0.001 to 3.2, at which the oracle's curve is drawn."""
RANDOM_DRAWS = 4
THRESHOLD, EACH_THRESHOLD, CLASS_THRESHOLD, PATIENCE = "threshold", "each-threshold", "class-threshold", "patience"
SEARCH_ROWS = 500
"""Validation rows of the beam search, where not all routes can be tried."""


@dataclass(frozen=True)
class Bench:
    """What a baseline is measured on: a run's network, its data, and what its policy did there."""

    model: SkipModel
    """Network and policy, as exported."""
    task: Task
    """Whose training rows a baseline may load; those of validation and test are in `rows`."""
    rows: Rows
    books: tuple[RouteBook, RouteBook]
    """What routes earn, on validation and on test rows."""
    policy: tuple[dict[float, Evaluation], dict[float, Evaluation]]
    """What the policy did at each of its prices, on validation and on test rows."""
    reward: Reward = LINEAR
    """What the policy was rewarded for."""

    @property
    def stack(self) -> LayerStack:
        """The network."""
        return self.model.stack

    @cached_property
    def exits(self) -> ExitTable:
        """What leaving after each layer gives each validation row, of a stack with readouts."""
        return exit_table(self.stack, self.task, self.rows.validation)


Way = Router | JumpPolicy | Tensor
"""A way to run the network: a router, a policy whose likeliest jump is taken, or a route (L,) bool for all rows."""
Points = tuple[tuple[Point, ...], tuple[Point, ...]]
"""On validation and on test rows, the same in the same order."""


@dataclass(frozen=True)
class MeasuredBaseline:
    """A baseline that needs no run of its own. Bundled ones are in `BASELINES`; `compare --baseline file.py:name` adds a person's own.

    Example:
        >>> def first_layers(bench: Bench) -> dict[str, Tensor]:
        ...     L = bench.stack.depth
        ...     return {f"first {k}": torch.arange(L) < k for k in range(1, L)}
        >>> record = BaselineRecord("first", "first layers", advice="prune the network")
        >>> MeasuredBaseline(record, first_layers).record.title
        'first layers'
    """

    record: BaselineRecord
    measure: Callable[[Bench], Mapping[str, Way] | Points | None]
    """How it runs, each way with its label; or the points of its curve, where it has measured them itself; None where it does not apply."""


BASELINES: Registry[MeasuredBaseline] = Registry("baseline", "--baseline")
"""Those that every comparison measures, in the order of its report."""


def measured_curve(baseline: MeasuredBaseline, bench: Bench, seed: int) -> Curve | None:
    """The curve of a baseline; None where it does not apply.

    Raises:
        UserError: if what its function returned is no curve.
    """
    with own_code(f"the baseline {baseline.record.name}"):
        points = baseline.measure(bench)
    if points is None:
        return None
    if isinstance(points, Mapping):
        splits = [tuple(_point(str(label), way, book) for label, way in points.items()) for book in bench.books]
        points = (splits[0], splits[1])
    elif not (isinstance(points, tuple) and len(points) == 2 and all(isinstance(split, tuple) for split in points)):
        expected = "a dictionary of ways to run the network by their labels, or two tuples of points"
        raise UserError(f"the baseline {baseline.record.name} returned {type(points).__name__}, not {expected}")
    name = baseline.record.name
    if not points[1]:
        raise UserError(f"the baseline {name} gave no way to run the network; let it return at least one")
    if baseline.record.control and not bench.policy[1].keys() <= {point.price for point in points[1]}:
        raise UserError(f"the baseline {name} is a control, so it must have a point for each of the policy's prices; or leave control out")
    return Curve(baseline.record, seed, *points)


def _point(label: str, way: Way, book: RouteBook) -> Point:
    if isinstance(way, Tensor):
        return Point(label, None, None, *book.follow(way), way.expand(len(book.examples), -1))
    evaluation = evaluate(book.stack, way, book.task, book.examples)
    return Point(label, None, None, evaluation.correct, evaluation.compute_by_row, evaluation.route)


# ------------------------------------------------------------------------------------------------------- on fixed routes


def _route_label(route: Tensor) -> str:
    return "layers " + ", ".join(map(str, route.nonzero().squeeze(1).tolist()))


def _full_depth(bench: Bench) -> dict[str, Way]:
    everything = torch.ones(bench.stack.depth, dtype=torch.bool)
    return {_route_label(everything): everything}


def _best_fixed(bench: Bench) -> dict[str, Way]:
    """Every fixed route of a higher score on validation data than all that cost less."""
    book = bench.books[0]
    if book.routes is None:
        few = bench.rows.validation.some(SEARCH_ROWS)
        routes, scores, compute = searched_routes(bench.stack, bench.task, few, allow_exit=bench.model.rules.allow_exit)
    else:
        routes = book.routes
        scores, compute = (by_row.double().mean(dim=1) for by_row in (book.correct, book.compute))
    chosen: list[int] = []
    for n in sorted(range(len(routes)), key=lambda n: (float(compute[n]), -float(scores[n]))):
        if not chosen or scores[n] > scores[chosen[-1]]:
            chosen.append(n)
    return {_route_label(routes[n]): routes[n] for n in chosen}


BASELINES.register(
    FULL_DEPTH,
    MeasuredBaseline(
        BaselineRecord(FULL_DEPTH, "full depth", about="every layer of the same network", colour=INK, marker="*", line=""),
        _full_depth,
    ),
)
BASELINES.register(
    BEST_FIXED,
    MeasuredBaseline(
        BaselineRecord(
            BEST_FIXED,
            "best fixed route",
            about="the single route of the same network that is best on validation data within the budget, by trying all of up to 12 layers, "
            "and by beam search above",
            colour=ORANGE,
            marker="s",
            line="--",
        ),
        _best_fixed,
    ),
)


# ------------------------------------------------------------------------------- beside the policy, at each of its prices


def _beside_policy(bench: Bench, run: Callable[[RouteBook, Evaluation], tuple[Tensor, Tensor]]) -> Points:
    """A point for each of the policy's, under the same label; prices that led to the same routes share the work."""
    splits: list[tuple[Point, ...]] = []
    for book, by_price in zip(bench.books, bench.policy, strict=True):
        known: dict[bytes, tuple[Tensor, Tensor]] = {}
        points = []
        for price, evaluation in by_price.items():
            key = bytes(evaluation.route.numpy())
            if key not in known:
                known[key] = run(book, evaluation)
            points.append(Point(price_label(price), price, None, *known[key]))
        splits.append(tuple(points))
    return splits[0], splits[1]


def _one_threshold(bench: Bench) -> dict[str, Way] | None:
    if bench.stack.readouts is None:
        return None
    return {f"threshold {threshold:.4g}": EntropyExits(threshold) for threshold in one_threshold(bench.exits.entropy)}


def _threshold_for_each(bench: Bench) -> dict[str, Way] | None:
    if bench.stack.readouts is None:
        return None
    found = {f"price {price:.4g}": threshold_for_each_exit(bench.exits, price) for price in ORACLE_PRICES}
    return {label: EntropyExits(thresholds) for label, thresholds in found.items()}


def _threshold_for_each_class(bench: Bench) -> dict[str, Way] | None:
    classes = len(bench.task.classes)
    if bench.stack.readouts is None or not 2 <= classes <= MOST_CLASSES or bench.rows.validation.labels.dim() != 1:
        return None
    found = {f"price {price:.4g}": threshold_for_each_class(bench.exits, classes, price) for price in ORACLE_PRICES}
    return {label: EntropyExits(thresholds, by_class=True) for label, thresholds in found.items()}


def _patience(bench: Bench) -> dict[str, Way] | None:
    if bench.stack.readouts is None or bench.rows.validation.labels.dim() > 1:  # which is about classes
        return None
    return {f"patience {steps}": Patience(steps) for steps in range(1, bench.stack.depth - 1)} or None


def _random(bench: Bench) -> Points:
    """Random routes at the policy's mean compute, the mean of a few draws. Their compute has no decisions in it."""
    full = float(bench.books[0].follow(torch.ones(bench.stack.depth, dtype=torch.bool))[1].double().mean())  # above 1 where there are gates

    def drawn(book: RouteBook, target: float) -> tuple[Tensor, Tensor]:
        draws = []
        for seed in range(RANDOM_DRAWS):
            route = random_routes_at(target, len(book.examples), bench.stack.layer_costs, bench.model.rules, full=full, seed=seed)
            draws.append(book.follow(route))
        correct, compute = (torch.stack(column).mean(dim=0) for column in zip(*draws, strict=True))
        return correct, compute

    def run(book: RouteBook, policy: Evaluation) -> tuple[Tensor, Tensor]:
        missed = policy.compute - float(drawn(book, policy.compute)[1].double().mean())  # rows may differ in what their layers and gates cost
        return drawn(book, policy.compute + missed)

    return _beside_policy(bench, run)


def _shuffled(bench: Bench) -> Points:
    return _beside_policy(bench, RouteBook.shuffled_routes)


def _oracle(bench: Bench) -> Points | None:
    """It knows the labels, so it need not choose on other rows: its points on test rows stand for both."""
    book = bench.books[1]
    if book.routes is None:
        return None
    prices = sorted({*bench.policy[1], *ORACLE_PRICES}, reverse=True)
    return (tuple(Point(price_label(price), price, None, *book.best_by_row(price, bench.reward)) for price in prices),) * 2


BASELINES.register(
    THRESHOLD,
    MeasuredBaseline(
        BaselineRecord(
            THRESHOLD,
            "one threshold for all exits",
            about="on the same network: a row leaves after the first layer whose readout has an entropy below it",
            advice="leave by the entropy of its readouts",
            colour=SKY,
            marker="X",
            line=(1, 1),
        ),
        _one_threshold,
    ),
)
BASELINES.register(
    EACH_THRESHOLD,
    MeasuredBaseline(
        BaselineRecord(
            EACH_THRESHOLD,
            "a threshold for each exit",
            about="on the same network: chosen on validation rows, for several prices, for the most score less price times compute",
            advice="leave by the entropy of its readouts",
            colour=VERMILLION,
            marker="P",
            line="--",
        ),
        _threshold_for_each,
    ),
)
BASELINES.register(
    CLASS_THRESHOLD,
    MeasuredBaseline(
        BaselineRecord(
            CLASS_THRESHOLD,
            "a threshold for each class",
            about="on the same network, of up to 16 classes: the threshold is that of the class that the readout would answer; chosen likewise",
            advice="leave by the entropy of its readouts",
            colour=OLIVE,
            marker="d",
            line=(3, 1, 1, 1),
        ),
        _threshold_for_each_class,
    ),
)
BASELINES.register(
    PATIENCE,
    MeasuredBaseline(
        BaselineRecord(
            PATIENCE,
            "patience",
            about="on the same network: a row leaves once several readouts in a row agree",
            advice="leave when its readouts agree",
            colour=WINE,
            marker="p",
            line=":",
        ),
        _patience,
    ),
)
BASELINES.register(
    RANDOM,
    MeasuredBaseline(
        BaselineRecord(RANDOM, "random routes", about="at the policy's mean compute", control=True, colour=GREY, marker="x", line=":"),
        _random,
    ),
)
BASELINES.register(
    SHUFFLED,
    MeasuredBaseline(
        BaselineRecord(
            SHUFFLED,
            "shuffled-routes control",
            about="each row follows the route that the policy chose for another row, in expectation over the others. Where that is as good, "
            "the policy does not look at its input",
            control=True,
            colour=PURPLE,
            marker="D",
            line="-.",
        ),
        _shuffled,
    ),
)
BASELINES.register(
    ORACLE,
    MeasuredBaseline(
        BaselineRecord(
            ORACLE,
            "oracle",
            about="for each row the best of all its routes at the policy's price, chosen with the label known: a bound, not a goal",
            control=True,
            colour=GREEN,
            marker="^",
            line=(6, 1.5, 1, 1.5, 1, 1.5),
        ),
        _oracle,
    ),
)
