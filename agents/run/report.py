"""The table at the end of a run: the policy beside full depth, the best fixed route and random routes, on test data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from agents.run.learner import Learner
from rl_skip.core.dial import PriceTable
from rl_skip.core.forward import routed_forward
from rl_skip.core.random_routes import random_routes_at
from rl_skip.core.reward import LINEAR, Reward
from rl_skip.core.task import score_key
from rl_skip.measure.evaluation import best_fixed_route, evaluate, seconds_per_batch
from rl_skip.measure.every_price import at_any_price

__all__ = ["final_report", "print_report"]

TIMED_ROWS = 64
COLUMNS = ("compute", "reward", "milliseconds", "distinct_routes")
"""What is reported of every task besides its score; some have measures of their own too."""
SEARCH_ROWS = 1000
"""Validation rows on which the best fixed route is searched: 1,000 tell routes apart that differ by two points, and end soon."""


def final_report(learner: Learner, table: PriceTable, price: float, seconds: float, reward: Reward = LINEAR) -> dict[str, Any]:
    """Measures on test data at the operating price; everything in it was chosen on validation data before.

    Returns:
        For each way of running: score, compute, reward, and milliseconds for a batch; and the dial's points.
    """
    stack, task, rules = learner.stack, learner.task, learner.rules
    test = task.load("test").to(learner.device)
    measured = at_any_price(stack, learner.policy, task, test, reward=reward)
    policy, full = measured(price), evaluate(stack, learner.full_route, task, test, price=price, reward=reward)
    searched = learner.validation.some(SEARCH_ROWS)
    fixed = best_fixed_route(stack, task, searched, max_compute=policy.compute, allow_exit=rules.allow_exit)
    random = random_routes_at(policy.compute, len(test), stack.layer_costs, rules, full=full.compute)
    routes = {"full depth": learner.full_route, "best fixed route": fixed.to(learner.device), "random routes": random.to(learner.device)}
    others = {name: evaluate(stack, routes[name], task, test, price=price, reward=reward) for name in ("best fixed route", "random routes")}
    evaluations = {"policy": policy, "full depth": full} | others
    times, key = _milliseconds(learner, price, routes), score_key(task.score_name)
    report: dict[str, Any] = {
        name: {key: at.score, "compute": at.compute, "reward": at.reward, "milliseconds": times[name]} for name, at in evaluations.items()
    }
    for name, evaluation in evaluations.items():
        report[name] |= task.measures(evaluation.correct)
    report["policy"]["distinct_routes"] = policy.distinct_routes
    report["best fixed route"]["layers"] = fixed.nonzero().squeeze(1).tolist()
    dial = [measured(point.price) for point in table.points]
    report["dial"] = [{"price": at.price, key: at.score, "compute": at.compute} for at in dial]
    return report | {"price": price, "seconds": seconds, "rows": len(test), "split": "test", "timed_rows": min(TIMED_ROWS, len(test))}


def _milliseconds(learner: Learner, price: float, routes: dict[str, Tensor]) -> dict[str, float]:
    stack = learner.stack.eval()
    rows = min(TIMED_ROWS, len(learner.validation))
    inputs = learner.validation.take(slice(0, rows)).inputs

    def along(route: Tensor) -> Callable[[], object]:
        return lambda: routed_forward(stack, route if route.dim() == 1 else route[:rows], inputs)

    calls: dict[str, Callable[[], object]] = {"policy": lambda: routed_forward(stack, learner.policy, inputs, price=price)}
    calls |= {name: along(route) for name, route in routes.items()}
    return {name: 1000 * seconds for name, seconds in seconds_per_batch(calls, learner.device).items()}


def print_report(report: dict[str, Any], folder: Path, console: Console, score_name: str, own_stack: bool = False) -> None:
    """Prints the table, the dial and what to do next: commands, or for a network of one's own the call that loads it."""
    table = Table(title=f"{report['rows']} test rows, price {report['price']:.3g}, {report['seconds']:.0f} s of training", title_justify="left")
    key = score_key(score_name)
    more = [name for name in report["policy"] if name not in (key, *COLUMNS)]
    for column in ("", score_name, "compute", *(name.replace("_", " ") for name in more), f"ms per {report['timed_rows']} rows"):
        table.add_column(column, justify="left" if not column else "right")
    for name in ("policy", "full depth", "best fixed route", "random routes"):
        row = report[name]
        measures = (f"{row[measure]:.3f}" for measure in more)
        table.add_row(name, f"{row[key]:.1%}", f"{row['compute']:.3f}", *measures, f"{row['milliseconds']:.1f}")
    console.print(table)
    if report["dial"]:
        points = "  ".join(f"{point[key]:.1%} at {point['compute']:.3f}" for point in report["dial"])
        console.print(f"the dial on test data: {points}")
    if report["policy"]["milliseconds"] >= report["full depth"]["milliseconds"]:
        console.print("on this machine, at this batch size, skipping is not faster than running every layer")
    console.print("next:", f"  tensorboard --logdir {folder.parent}", sep="\n")
    if own_stack:
        console.print(f'  rl_skip.load("{folder / "policy"}", stack)', highlight=False)
        return
    console.print(f"  python -m rl_skip eval {folder}")
    console.print(f"  python -m rl_skip export {folder} {folder.name}-policy")
