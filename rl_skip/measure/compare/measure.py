"""One run measured: its policy at every price, and beside it all baselines that need no training, on the same rows."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rl_skip.core.dial import price_grid
from rl_skip.core.errors import UserError
from rl_skip.core.progress import begin_stage
from rl_skip.core.reward import LINEAR, Reward
from rl_skip.core.task import Task
from rl_skip.export.policy_folder import SkipModel
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.book import RouteBook
from rl_skip.measure.compare.curves import Curve, Point, price_label
from rl_skip.measure.compare.measured import BASELINES, Bench, MeasuredBaseline, measured_curve
from rl_skip.measure.compare.result import BEST_FIXED, POLICY, RoutesTaken
from rl_skip.measure.compare.rows import Rows
from rl_skip.measure.compare.style import BLUE
from rl_skip.measure.evaluation import Evaluation
from rl_skip.measure.every_price import evaluate_prices

__all__ = ["AtBudget", "Measurement", "measure", "policy_curve"]

THE_POLICY = BaselineRecord(POLICY, "policy", about="as exported, and with its dial turned to each budget", colour=BLUE, marker="o", line="-")


@dataclass(frozen=True)
class AtBudget:
    """Where the dial stands for a budget, and what each test row earns there."""

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
    """One run's network and policy, measured."""

    folder: Path
    seed: int
    model: SkipModel
    task: Task
    rows: Rows
    curves: dict[str, Curve]
    """By the names of their records, the policy's first; controls have a point for each of the policy's, under its label."""
    operating: tuple[AtBudget, ...]
    majority_score: Tensor
    """(N,), the score of each test row where nothing is run and the class most frequent on validation data is answered."""
    taken: RoutesTaken
    reward: Reward = LINEAR
    """What the policy was rewarded for."""


def measure(
    folder: Path,
    seed: int,
    model: SkipModel,
    task: Task,
    rows: Rows,
    budgets: Iterable[float],
    own: Iterable[MeasuredBaseline] = (),
    reward: Reward = LINEAR,
) -> Measurement:
    """Measures a run's policy, and beside it all bundled baselines that need no training.

    Args:
        rows: on the model's device.
        budgets: where the dial is turned to besides the price that the run was exported with.
        own: a person's own baselines, to be measured too.
        reward: what the policy was rewarded for.

    Raises:
        UserError: if two baselines have the same name, or one gives no curve.
    """
    points = [(None, model.price), *((budget, _price_for(model, budget)) for budget in (budgets if model.table.points else ()))]
    prices = sorted({*(price for _, price in points), *_prices(model)}, reverse=True)
    begin_stage(f"{folder}: policy")
    validation, test = (
        {at.price: at for at in evaluate_prices(model.stack, model.policy, task, split, prices, reward=reward)} for split in rows.both()
    )
    begin_stage(f"{folder}: fixed routes")
    books = [RouteBook(model.stack, task, split, allow_exit=model.rules.allow_exit) for split in rows.both()]
    bench = Bench(model, task, rows, (books[0], books[1]), (validation, test), reward)
    curves = {POLICY: _policy_points((validation, test), seed, THE_POLICY)}
    for baseline in dict.fromkeys([*map(BASELINES.find, BASELINES.names()), *own]):
        if baseline.record.name in curves:
            raise UserError(f"there is a baseline {baseline.record.name!r} already; give yours another name")
        begin_stage(f"{folder}: {baseline.record.title}")
        curve = measured_curve(baseline, bench, seed)
        if curve is not None:
            curves[baseline.record.name] = curve
    exported = test[model.price]
    return Measurement(
        folder=folder,
        seed=seed,
        model=model,
        task=task,
        rows=rows,
        curves=curves,
        operating=tuple(_at_budget(budget, price, test[price], curves[BEST_FIXED], books[1], reward) for budget, price in points),
        majority_score=task.majority_score(rows.validation.labels, rows.test.labels).cpu(),
        taken=RoutesTaken(
            exported.route, exported.prediction, exported.correct, exported.compute_by_row, task.class_of(rows.test.labels).cpu()
        ),
        reward=reward,
    )


def policy_curve(model: SkipModel, task: Task, rows: Rows, seed: int, record: BaselineRecord) -> Curve:
    """The curve of another trained policy on its own network, such as a one-shot policy."""
    prices = sorted({model.price, *_prices(model)}, reverse=True)
    evaluations = [{at.price: at for at in evaluate_prices(model.stack, model.policy, task, split, prices)} for split in rows.both()]
    return _policy_points(evaluations, seed, record)


def _prices(model: SkipModel) -> list[float]:
    """Those of the table and others over its range; none for a policy that was trained for one price."""
    if not model.table.points:
        return []
    layout = model.rules.layout
    return [*(point.price for point in model.table.points), *price_grid(layout.price_low, layout.price_high)]


def _price_for(model: SkipModel, budget: float) -> float:
    """The dial's price for a budget; the highest price for one below all of the table."""
    cheapest = model.table.points[0]
    return cheapest.price if budget < cheapest.compute else model.table.price_for(budget)


def _policy_points(evaluations: Iterable[dict[float, Evaluation]], seed: int, record: BaselineRecord) -> Curve:
    points = (
        tuple(Point(price_label(price), price, None, at.correct, at.compute_by_row, at.route) for price, at in by_price.items())
        for by_price in evaluations
    )
    return Curve(record, seed, *points)


def _at_budget(budget: float | None, price: float, policy: Evaluation, fixed: Curve, book: RouteBook, reward: Reward) -> AtBudget:
    def earned(point: Point) -> Tensor:
        return reward.total(point.correct, point.compute, price)  # (N,)

    best = max(range(len(fixed.validation)), key=lambda n: float(earned(fixed.validation[n]).double().mean()))
    return AtBudget(
        budget=budget,
        price=price,
        policy=policy.reward_by_row().float(),
        fixed=earned(fixed.test[best]),
        oracle=None if book.routes is None else reward.total(*book.best_by_row(price, reward), price),
    )
