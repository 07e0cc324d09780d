"""The table at the end of a run: the policy beside what a person could run in its place, on test data."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from agents.agent import TrainedRun
from agents.run.learner import Learner
from agents.run.remarks import SAME, remarks
from rl_skip.core.clock import REPEATS, seconds_per_batch
from rl_skip.core.dial import GRID_POINTS, PriceTable
from rl_skip.core.exits import left_at
from rl_skip.core.forward import routed_forward
from rl_skip.core.measured_costs import MeasuredCosts
from rl_skip.core.processes import together
from rl_skip.core.random_routes import random_routes_at
from rl_skip.core.reward import LINEAR, Reward
from rl_skip.core.routing import Router
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, score_key
from rl_skip.measure.compare.leaving import EntropyExits, ExitTable, exit_table, exits_seen, one_threshold
from rl_skip.measure.compare.statistics import Bootstrap
from rl_skip.measure.costs import BATCH_SIZES, measure_costs
from rl_skip.measure.evaluation import BEAM, EXHAUSTIVE_DEPTH, Evaluation, best_fixed_route, evaluate
from rl_skip.measure.every_price import at_any_price, leaves_only, shown_by_one_pass
from rl_skip.measure.runs import MODEL

__all__ = ["AT_EVAL_PRICE", "TABLE", "TIMED_ROWS", "TIMING", "TIMINGS", "final_report", "print_next", "print_report", "rows_of_report"]

TABLE, DIAL, TIMING = "table", "dial", "timing"
"""The parts of the report."""
AT_EVAL_PRICE = "at_eval_price"
"""The policy at the price of the validations, in the report."""
TIMED_ROWS = 64
TIMINGS = 2 * REPEATS
"""How often about the timed rows run through the whole network: full depth every time, the other ways through a part of it."""
COLUMNS = ("compute", "reward", "milliseconds", "distinct_routes")
"""What is reported of every task besides its score; some have measures of their own too."""
FULL, FIXED, ONE_THRESHOLD, RANDOM = "full depth", "best fixed route", "one threshold", "random routes"
THRESHOLDS = 100
WORTH_NAMING = 0.005
"""Reward that something earns more than the policy, in units of score: half a point."""
SEARCH_ROWS = 1000
"""Validation rows on which the best fixed route is searched: 1,000 tell routes apart that differ by two points, and end soon."""


def final_report(
    learner: Learner,
    table: PriceTable,
    price: float,
    run: TrainedRun,
    *,
    reward: Reward = LINEAR,
    eval_price: float | None = None,
    eval_reward: Reward | None = None,
) -> dict[str, Any]:
    """Measures on test data at the operating price; everything in it was chosen on validation data before.

    Args:
        run: whose report is written as its parts are done.
        reward: what a row earns.
        eval_price: at which the run was validated while it trained. Default: the operating price.
        eval_reward: what a row earned then, a budget's penalty included. Default: `reward`.

    Returns:
        For each way of running: score, compute, reward, and milliseconds for a batch; the dial's points; by how much the policy leads; and
        what is to be said of a policy that does the same with all rows. What failed is missing.
    """
    stack, task, report = learner.stack, learner.task, run.report
    key, ways = score_key(task.score_name), []
    with run.part(TABLE):
        test = task.load("test").to(learner.device)
        report |= {"price": price, "seconds": run.seconds, "rows": len(test), "split": "test"}
        measured, tested = _on_test(learner, test, reward)
        policy = measured(price)
        report["policy"] = _row(learner, policy) | {"distinct_routes": policy.distinct_routes}
        ways = _on_routes(learner, test, policy, reward) if tested is None else _leaving(learner, tested, policy, reward)
        validated = replace(measured(price if eval_price is None else eval_price), objective=eval_reward or reward)
        report[AT_EVAL_PRICE] = {"price": validated.price, **_row(learner, validated)}
        report |= {way.name: _row(learner, way.on_test) for way in ways}
        report[FIXED]["layers"] = next(way.on_test for way in ways if way.name == FIXED).route[0].nonzero().squeeze(1).tolist()
        report["leads"] = _leads(policy, {way.name: way.on_test for way in ways if way.in_its_place})
    if not ways:
        return report
    with run.part(DIAL):
        report["dial"] = [_on_dial(learner, measured(point.price)) for point in table.points]
        told = remarks(learner, policy, report[FULL][key], report["dial"], run.folder, _earning_more(policy, ways))
        report["remarks"] = [*run.alarms, *told]
    if stack.split is not None:
        said = "time is not measured: the network is split over processes, and one of them cannot run it"
        run.console.print(said, soft_wrap=True, highlight=False)
        return report
    with run.part(TIMING):
        if not together().first:
            return report  # the others wait, so that they take no time from what is timed
        report["timed_rows"] = min(TIMED_ROWS, len(learner.validation), len(test))
        report["break_even"] = _break_even(learner)
        for name, taken in _milliseconds(learner, price, {way.name: way.router for way in ways}, report["timed_rows"]).items():
            report[name]["milliseconds"] = taken
    return report


def _row(learner: Learner, at: Evaluation) -> dict[str, Any]:
    """What the report holds of one way to run the network."""
    task, stack = learner.task, learner.stack
    operations = {"operations": _operations(stack, at)} if isinstance(stack.costs, MeasuredCosts) else {}
    return {score_key(task.score_name): at.score, "compute": at.compute, "reward": at.reward, **operations, **task.measures(at.correct)}


def _on_dial(learner: Learner, at: Evaluation) -> dict[str, float]:
    """A point of the budget dial on test data."""
    row = _row(learner, at)
    return {"price": at.price} | {name: row[name] for name in (score_key(learner.task.score_name), "compute", "operations") if name in row}


def _operations(stack: LayerStack, at: Evaluation) -> float:
    """The mean share of the layers' operations, where compute is a share of time."""
    return float((at.route.float() @ stack.layer_costs.cpu()).mean())


def _break_even(learner: Learner) -> dict[str, float]:
    """By batch size, the share of the layers up to which deciding after each layer is faster than running all of them."""
    rows = learner.validation.take(slice(0, TIMED_ROWS)).inputs
    measured = measure_costs(learner.stack, BATCH_SIZES, learner.device, example=rows, policy=learner.policy)
    return {str(times.batch_size): times.break_even for times in measured.batches}


def rows_of_report(learner: Learner) -> int:
    """About how many rows the table and the dial run through the network, there being as many test rows as validation rows."""
    rows, depth = len(learner.validation), learner.stack.depth
    if leaves_only(learner.stack, learner.policy):
        return (2 if shown_by_one_pass(learner.stack, learner.policy) else 4 + GRID_POINTS // 2) * rows
    layers = 2 ** (depth - 1) if depth <= EXHAUSTIVE_DEPTH else BEAM * depth**2 // 2  # of the routes searched, those that begin alike sharing theirs
    return (4 + GRID_POINTS // 2) * rows + min(rows, SEARCH_ROWS) * layers // depth


@dataclass(frozen=True)
class _Way:
    """A way to run the network beside the policy."""

    name: str
    on_test: Evaluation
    router: Router | Tensor
    """For the clock: a router, or a route (L,) or (N, L) bool."""
    in_its_place: bool = True
    """Whether a person could run it in place of the policy at its compute."""


def _on_routes(learner: Learner, test: Examples, policy: Evaluation, reward: Reward) -> list[_Way]:
    stack, task, rules = learner.stack, learner.task, learner.rules
    fixed = best_fixed_route(stack, task, learner.validation.some(SEARCH_ROWS), max_compute=policy.compute, allow_exit=rules.allow_exit)
    full = evaluate(stack, learner.full_route, task, test, price=policy.price, reward=reward)
    random = random_routes_at(policy.compute, len(test), stack.layer_costs, rules, full=full.compute)
    found = [_Way(FULL, full, learner.full_route, in_its_place=False)]
    for name, route, in_its_place in ((FIXED, fixed, True), (RANDOM, random, False)):
        on_device = route.to(learner.device)
        found.append(_Way(name, evaluate(stack, on_device, task, test, price=policy.price, reward=reward), on_device, in_its_place))
    return found


def _on_test(learner: Learner, test: Examples, reward: Reward) -> tuple[Callable[[float], Evaluation], ExitTable | None]:
    """What tells how the policy does on test data at a price, and what leaving after each layer would give, where that is all it may do."""
    stack, task, policy = learner.stack, learner.task, learner.policy
    if shown_by_one_pass(stack, policy):
        tested, outcomes = exits_seen(stack, policy, task, test)
        return lambda price: outcomes.evaluation(policy, price, reward), tested
    measured = at_any_price(stack, policy, task, test, reward=reward)
    return measured, exit_table(stack, task, test) if leaves_only(stack, policy) else None


def _leaving(learner: Learner, tested: ExitTable, policy: Evaluation, reward: Reward) -> list[_Way]:
    """The same where every route ends with an exit, from one pass of each split; and one threshold for all exits."""
    stack, depth = learner.stack, learner.stack.depth
    validation = exit_table(stack, learner.task, learner.validation)

    def way(name: str, layer: Tensor, compute: Tensor, router: Router | Tensor | None = None, in_its_place: bool = True) -> _Way:
        at = tested.evaluation(layer, compute, policy.price, reward)
        return _Way(name, at, at.route.to(learner.device) if router is None else router, in_its_place)

    means = validation.alone.double().mean(dim=0)
    affordable = [k for k in range(depth) if float(means[k]) <= policy.compute] or [0]
    best = max(affordable, key=lambda k: float(validation.score[:, k].double().mean()))
    limits = {limit: left_at(validation.entropy < limit) for limit in one_threshold(validation.entropy, THRESHOLDS)}
    spent = {limit: float(validation.asked.gather(1, layer.unsqueeze(1)).double().mean()) for limit, layer in limits.items()}
    limit = max((limit for limit in limits if spent[limit] <= policy.compute), key=lambda limit: spent[limit], default=max(limits))
    layers = policy.compute - float(tested.unlooked.double().mean())  # what is left of it for them
    random = random_routes_at(layers, policy.rows, stack.layer_costs, learner.rules).sum(dim=1) - 1  # (N,)
    rows = torch.ones(policy.rows, dtype=torch.long)
    return [
        way(FULL, (depth - 1) * rows, tested.alone, learner.full_route, in_its_place=False),
        way(FIXED, best * rows, tested.alone, (torch.arange(depth) <= best).to(learner.device)),
        way(ONE_THRESHOLD, left_at(tested.entropy < limit), tested.asked, EntropyExits(limit)),
        way(RANDOM, random, tested.alone, in_its_place=False),
    ]


def _leads(policy: Evaluation, others: dict[str, Evaluation]) -> dict[str, dict[str, float]]:
    """By how much the policy's score is above each other's, with the ends of a 95% interval over rows."""
    bootstrap = Bootstrap(policy.rows, seeds=1)
    leads = {name: bootstrap.interval((policy.correct - other.correct).unsqueeze(0)) for name, other in others.items()}
    return {name: {"value": lead.value, "low": lead.low, "high": lead.high} for name, lead in leads.items()}


def _earning_more(policy: Evaluation, ways: list[_Way]) -> dict[str, float]:
    """The ways along other routes that earn more reward than the policy at its price, beyond doubt and worth naming, and how much more."""
    bootstrap = Bootstrap(policy.rows, seeds=1)
    others = [way for way in ways if float((way.on_test.route == policy.route).all(dim=1).float().mean()) < SAME]
    leads = {way.name: bootstrap.interval((way.on_test.reward_by_row() - policy.reward_by_row()).unsqueeze(0)) for way in others}
    return {name: lead.value for name, lead in leads.items() if lead.low > 0 and lead.value > WORTH_NAMING}


def _milliseconds(learner: Learner, price: float, ways: dict[str, Router | Tensor], rows: int) -> dict[str, float]:
    stack = learner.stack.eval()
    inputs = learner.validation.take(slice(0, rows)).inputs

    def along(way: Router | Tensor) -> Callable[[], object]:
        return lambda: routed_forward(stack, way[:rows] if isinstance(way, Tensor) and way.dim() == 2 else way, inputs)

    calls: dict[str, Callable[[], object]] = {"policy": lambda: routed_forward(stack, learner.policy, inputs, price=price)}
    calls |= {name: along(way) for name, way in ways.items()}
    return {name: 1000 * seconds for name, seconds in seconds_per_batch(calls, learner.device).items()}


def print_report(report: dict[str, Any], console: Console, score_name: str) -> None:
    """Prints the table, the dial and when skipping pays by the clock. What is missing is left out."""
    if "policy" in report:
        console.print(_table(report, score_name))
    for remark in report.get("remarks", ()):
        console.print(remark, soft_wrap=True, markup=False, highlight=False)
    for name, lead in report.get("leads", {}).items():
        ends = f"95% interval {100 * lead['low']:+.1f} to {100 * lead['high']:+.1f}"
        told = "" if lead["low"] > 0 or lead["high"] < 0 else ": these rows do not tell them apart"
        console.print(f"the policy's lead over {name}: {100 * lead['value']:+.1f} points, {ends}{told}", highlight=False)
    if report.get("dial"):
        points = "  ".join(f"{point[score_key(score_name)]:.1%} at {point['compute']:.3f}" for point in report["dial"])
        console.print(f"the dial on test data: {points}")
    if report.get("break_even"):
        pays = ", ".join(f"{share:.2f} at {size} row{'s' * (size != '1')}" for size, share in report["break_even"].items())
        console.print(f"on this machine deciding for each row pays up to a compute of {pays}", soft_wrap=True, highlight=False)
    if report.get("policy", {}).get("milliseconds", 0.0) >= report.get(FULL, {}).get("milliseconds", math.inf):
        console.print("on this machine, at this batch size, skipping is not faster than running every layer")


def print_next(folder: Path, console: Console, own_stack: bool = False) -> None:
    """Prints what to do with a finished run: commands, or for a network of one's own the call that loads it."""
    console.print("next:", f"  tensorboard --logdir {folder.parent}", sep="\n")
    if own_stack:
        console.print(f'  rl_skip.load("{folder / "policy"}", stack)', highlight=False)
        return
    console.print(f"  python -m rl_skip eval {folder}")
    if (folder / MODEL).is_dir():
        console.print(f'  rl_skip.from_pretrained("{folder}")', highlight=False, soft_wrap=True)
    console.print(f"  python -m rl_skip export {folder} {folder.name}-policy")


def _table(report: dict[str, Any], score_name: str) -> Table:
    key = score_key(score_name)
    table = Table(title=f"{report['rows']} test rows, price {report['price']:.3g}, {report['seconds']:.0f} s of training", title_justify="left")
    rows = [name for name in ("policy", FULL, FIXED, ONE_THRESHOLD, RANDOM) if name in report]
    more = [name for name in report["policy"] if name not in (key, *COLUMNS)]
    timed = all("milliseconds" in report[name] for name in rows)
    clock = [f"ms per {report['timed_rows']} row{'s' * (report['timed_rows'] > 1)}"] if timed else []
    for column in ("", score_name, "compute", *(name.replace("_", " ") for name in more), *clock):
        table.add_column(column, justify="left" if not column else "right")
    for name in rows:
        row = report[name]
        measures, taken = [f"{row[measure]:.3f}" for measure in more], [f"{row['milliseconds']:.1f}"] if timed else []
        table.add_row(name, f"{row[key]:.1%}", f"{row['compute']:.3f}", *measures, *taken)
    return table
