"""One run measured: its policy at every price, and all that can be set beside it without training, on the same rows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rl_skip.compare.book import RouteBook
from rl_skip.compare.curves import Curve, Point
from rl_skip.compare.result import ANOTHER_ROW, BEST_FIXED, FULL_DEPTH, ORACLE, POLICY, RANDOM, RoutesTaken
from rl_skip.core.random_routes import random_routes_at
from rl_skip.dial import price_grid
from rl_skip.errors import UserError
from rl_skip.evaluation import Evaluation, evaluate, searched_routes
from rl_skip.export import SkipModel
from rl_skip.tasks import Examples, Split, Task

__all__ = ["AtBudget", "Measurement", "Rows", "measure", "policy_curve", "price_label"]

ORACLE_PRICES = tuple(10.0 ** (k / 4) for k in range(-12, 3))
"""0.001 to 3.2, at which the oracle's curve is drawn."""
RANDOM_DRAWS = 4
SEARCH_ROWS = 500
"""Validation rows of the beam search, where not all routes can be tried."""


@dataclass(frozen=True)
class Rows:
    """The rows that everything is measured on."""

    validation: Examples
    test: Examples
    places: tuple[Tensor, Tensor]
    """Which rows of the task's splits they are, in order; of validation and of test."""
    whole: tuple[int, int]
    """How many rows the splits have."""

    @classmethod
    def load(cls, task: Task, device: torch.device | str, limit: int | None = None) -> "Rows":
        """All rows of both splits, or at most `limit` of each, drawn at random but always the same.

        Raises:
            UserError: if they are too few to compare anything on.
        """
        splits: tuple[Split, Split] = ("validation", "test")
        parts = [task.load(split) for split in splits]
        for split, part in zip(splits, parts, strict=True):
            if min(len(part), limit or len(part)) < 2:
                raise UserError(f"a comparison needs at least 2 {split} rows, and there are {min(len(part), limit or 2)}; set --data or --rows")
        generator = torch.Generator().manual_seed(0)
        places = tuple(torch.randperm(len(part), generator=generator)[:limit].sort().values for part in parts)
        validation, test = (part.take(chosen).to(device) for part, chosen in zip(parts, places, strict=True))
        return cls(validation, test, (places[0], places[1]), (len(parts[0]), len(parts[1])))

    def both(self) -> tuple[Examples, Examples]:
        """Validation first."""
        return self.validation, self.test


@dataclass(frozen=True)
class AtBudget:
    """Where the dial stands for a budget, and what each test row earns there, as score − price · compute."""

    budget: float | None
    """None: as exported."""
    price: float
    policy: Tensor
    """(N,), reward of the policy."""
    fixed: Tensor
    """(N,), of the fixed route with the highest reward on validation data at this price."""
    oracle: Tensor | None
    """(N,), of each row's own best route; None above 12 layers."""


@dataclass(frozen=True)
class Measurement:
    """What one run's network and policy do."""

    folder: Path
    seed: int
    model: SkipModel
    task: Task
    rows: Rows
    curves: dict[str, Curve]
    """By name; `RANDOM`, `ANOTHER_ROW` and `ORACLE` have a point for each of the policy's, under its label."""
    operating: tuple[AtBudget, ...]
    floor: Tensor
    """(N,), the score of each test row where nothing is run and the class most frequent on validation data is answered."""
    taken: RoutesTaken


def price_label(price: float) -> str:
    """What a curve's point is called that runs at a price."""
    return f"price {price:.5g}"


def measure(folder: Path, seed: int, model: SkipModel, task: Task, rows: Rows, budgets: Iterable[float]) -> Measurement:
    """Measures a run's policy, and beside it full depth, fixed routes, random routes, another row's eyes, and the oracle.

    Args:
        rows: on the model's device.
        budgets: where the dial is turned to besides the price that the run was exported with.
    """
    asked = [(None, model.price), *((budget, _price_for(model, budget)) for budget in (budgets if model.table.points else ()))]
    prices = sorted({*(price for _, price in asked), *_prices(model)}, reverse=True)
    found = [{price: evaluate(model.stack, model.policy, task, part, price=price) for price in prices} for part in rows.both()]
    books = [RouteBook(model.stack, task, part, allow_exit=model.rules.allow_exit) for part in rows.both()]
    fixed = _fixed_curve(model, task, rows, books, seed)
    full = tuple((_one_route(book, torch.ones(model.stack.depth, dtype=torch.bool)),) for book in books)
    curves = [_policy_points(found, seed, POLICY, "policy"), Curve(FULL_DEPTH, "full", seed, *full), fixed]
    curves.append(_beside_policy(RANDOM, "random", books, found, seed, _random_rows(model, full[0][0].mean_compute)))
    curves.append(_beside_policy(ANOTHER_ROW, "eyes", books, found, seed, RouteBook.another_rows_eyes))
    if books[0].routes is not None:
        known = _oracle_points(books[1], {*prices, *ORACLE_PRICES})
        curves.append(Curve(ORACLE, "oracle", seed, known, known))  # it knows the labels, so it need not choose on other rows
    exported = found[1][model.price]
    return Measurement(
        folder=folder,
        seed=seed,
        model=model,
        task=task,
        rows=rows,
        curves={curve.name: curve for curve in curves},
        operating=tuple(_at_budget(budget, price, found[1][price], fixed, books[1]) for budget, price in asked),
        floor=task.floor(rows.validation.labels, rows.test.labels).cpu(),
        taken=RoutesTaken(
            exported.route, exported.prediction, exported.correct, exported.compute_by_row, task.class_of(rows.test.labels).cpu()
        ),
    )


def policy_curve(model: SkipModel, task: Task, rows: Rows, seed: int, name: str, kind: str) -> Curve:
    """The curve of another trained policy on its own network, such as a one-shot policy."""
    prices = sorted({model.price, *_prices(model)}, reverse=True)
    found = [{price: evaluate(model.stack, model.policy, task, part, price=price) for price in prices} for part in rows.both()]
    return _policy_points(found, seed, name, kind)


def _prices(model: SkipModel) -> list[float]:
    """Those of the table and others over its range; none for a policy that was trained for one price."""
    if not model.table.points:
        return []
    layout = model.rules.layout
    return [*(point.price for point in model.table.points), *price_grid(layout.price_low, layout.price_high)]


def _price_for(model: SkipModel, budget: float) -> float:
    """What the dial answers; the most frugal price for a budget below all of the table."""
    cheapest = model.table.points[0]
    return cheapest.price if budget < cheapest.compute else model.table.price_for(budget)


def _policy_points(found: list[dict[float, Evaluation]], seed: int, name: str, kind: str) -> Curve:
    points = (
        tuple(Point(price_label(price), price, None, one.correct, one.compute_by_row, one.route) for price, one in part.items()) for part in found
    )
    return Curve(name, kind, seed, *points)


def _one_route(book: RouteBook, route: Tensor) -> Point:
    layers = ", ".join(map(str, route.nonzero().squeeze(1).tolist()))
    return Point(f"layers {layers}", None, None, *book.follow(route), route.expand(len(book.examples), -1))


def _fixed_curve(model: SkipModel, task: Task, rows: Rows, books: list[RouteBook], seed: int) -> Curve:
    """Every fixed route that is more accurate on validation data than all that cost less."""
    if books[0].routes is None:
        few = rows.validation.some(SEARCH_ROWS)
        routes, accuracy, compute = searched_routes(model.stack, task, few, allow_exit=model.rules.allow_exit)
    else:
        routes = books[0].routes
        accuracy, compute = (part.double().mean(dim=1) for part in (books[0].correct, books[0].compute))
    chosen: list[int] = []
    for n in sorted(range(len(routes)), key=lambda n: (float(compute[n]), -float(accuracy[n]))):
        if not chosen or accuracy[n] > accuracy[chosen[-1]]:
            chosen.append(n)
    return Curve(BEST_FIXED, "fixed", seed, *(tuple(_one_route(book, routes[n]) for n in chosen) for book in books))


def _beside_policy(
    name: str,
    kind: str,
    books: list[RouteBook],
    found: list[dict[float, Evaluation]],
    seed: int,
    run: Callable[[RouteBook, Evaluation], tuple[Tensor, Tensor]],
) -> Curve:
    """A curve with a point for each of the policy's, under the same label; prices that led to the same routes share the work."""
    parts: list[tuple[Point, ...]] = []
    for book, part in zip(books, found, strict=True):
        known: dict[bytes, tuple[Tensor, Tensor]] = {}
        points = []
        for price, one in part.items():
            key = bytes(one.route.numpy())
            if key not in known:
                known[key] = run(book, one)
            points.append(Point(price_label(price), price, None, *known[key]))
        parts.append(tuple(points))
    return Curve(name, kind, seed, *parts)


def _random_rows(model: SkipModel, full: float) -> Callable[[RouteBook, Evaluation], tuple[Tensor, Tensor]]:
    """Random routes at the policy's mean compute, the mean of a few draws. They are not charged for decisions."""

    def drawn(book: RouteBook, target: float) -> tuple[Tensor, Tensor]:
        found = []
        for seed in range(RANDOM_DRAWS):
            route = random_routes_at(target, len(book.examples), model.stack.layer_costs, model.rules, full=full, seed=seed)
            found.append(book.follow(route))
        correct, compute = (torch.stack(part).mean(dim=0) for part in zip(*found, strict=True))
        return correct, compute

    def run(book: RouteBook, policy: Evaluation) -> tuple[Tensor, Tensor]:
        missed = policy.compute - float(drawn(book, policy.compute)[1].double().mean())  # rows may differ in what their layers and gates cost
        return drawn(book, policy.compute + missed)

    return run


def _oracle_points(book: RouteBook, prices: Iterable[float]) -> tuple[Point, ...]:
    return tuple(Point(price_label(price), price, None, *book.best_by_row(price)) for price in sorted(prices, reverse=True))


def _at_budget(budget: float | None, price: float, policy: Evaluation, fixed: Curve, book: RouteBook) -> AtBudget:
    best = max(range(len(fixed.validation)), key=lambda n: fixed.validation[n].accuracy - price * fixed.validation[n].mean_compute)
    oracle = None
    if book.routes is not None:
        correct, compute = book.best_by_row(price)
        oracle = correct - price * compute
    return AtBudget(
        budget=budget,
        price=price,
        policy=policy.correct - price * policy.compute_by_row,
        fixed=fixed.test[best].correct - price * fixed.test[best].compute,
        oracle=oracle,
    )
