"""`compare`: runs that differ in their seed, measured and set beside all their baselines, row by row."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rl_skip.core.errors import UserError
from rl_skip.measure.compare.curves import Curve, Point
from rl_skip.measure.compare.measure import Measurement, measure
from rl_skip.measure.compare.measured import MeasuredBaseline
from rl_skip.measure.compare.result import (
    BEST_FIXED,
    FULL_DEPTH,
    ORACLE,
    POLICY,
    BaselineCurve,
    BaselineResult,
    Comparison,
    CurvePoint,
    Interval,
    Operating,
)
from rl_skip.measure.compare.rows import Rows
from rl_skip.measure.compare.statistics import Bootstrap, area_by_row, best_within, frontier, p_value, route_entropy
from rl_skip.measure.compare.timing import batch_times
from rl_skip.measure.compare.trained import baseline_folders, missing_baselines, read_baselines, seed_of
from rl_skip.measure.compare.verdict import judge
from rl_skip.measure.runs import load_run, read_run, refuse_other_data

__all__ = ["BUDGETS", "compare", "compared"]

BUDGETS = (0.25, 0.5, 0.75)
SLACK = 0.02
"""How much more than the budget a baseline may spend, so that one trained for a budget and missing it by little is not left out."""


def compare(
    folders: Sequence[Path],
    *,
    budgets: Iterable[float] = BUDGETS,
    baselines: Iterable[Path] = (),
    own: Iterable[MeasuredBaseline] = (),
    rows: int | None = None,
    data: str | None = None,
    device: torch.device | str = "cpu",
    allow_code: bool = False,
) -> Comparison:
    """Measures runs of one task, one for each seed, on validation and test data.

    Args:
        folders: finished runs. The trained baselines in `RUN/baselines/*` are read too.
        budgets: the mean computes at which policy and baselines are compared, besides the policy as it was exported.
        baselines: run folders of more baselines; with several runs each goes to the run of its seed.
        own: baselines that need no training, besides the bundled ones.
        rows: how many rows of each split to measure on, chosen at random; all by default.
        data: where the data are, if not where the runs read them.
        device: where to measure.
        allow_code: as `load_run` takes it, for runs and baselines.

    Raises:
        UserError: if a run or a baseline cannot be read, or they do not fit together.
    """
    begun = time.monotonic()
    measurements: list[Measurement] = []
    own = tuple(own)
    trained: list[list[Curve]] = []
    notes: list[str] = []
    runs = [read_run(folder, allow_code=allow_code) for folder in folders]
    seeds = [seed_of(folder) for folder in folders]
    extra = _by_seed(list(baselines), folders, seeds)
    for folder, run, seed in zip(folders, runs, seeds, strict=True):
        for other in [folders[0], *baseline_folders(folder), *extra[folder]]:
            refuse_other_data(folder, other)
        model, task = load_run(folder, data=data, device=device, allow_code=allow_code)
        chosen = Rows.load(task, device, rows)
        measurement = measure(folder, seed, model, task, chosen, budgets, own, run.reward)
        _check_together(measurement, measurements)
        measurements.append(measurement)
        curves, left_out = read_baselines([*baseline_folders(folder), *extra[folder]], run.task, chosen, data, device, allow_code)
        trained.append(curves)
        notes += left_out + missing_baselines(folder)
    return compared(measurements, trained, notes, begun=begun)


def _by_seed(baselines: list[Path], folders: Sequence[Path], seeds: list[int]) -> dict[Path, list[Path]]:
    """Which run each baseline is set beside."""
    if len(set(seeds)) < len(seeds):
        raise UserError(f"the runs have seeds {', '.join(map(str, seeds))}; name runs that differ in their seed")
    by_folder: dict[Path, list[Path]] = {folder: [] for folder in folders}
    for baseline in baselines:
        if len(folders) == 1:
            by_folder[folders[0]].append(baseline)
            continue
        seed = seed_of(baseline)
        if seed not in seeds:
            raise UserError(f"the baseline {baseline} has seed {seed}, and none of the runs has; leave it out of --baselines")
        by_folder[folders[seeds.index(seed)]].append(baseline)
    return by_folder


def _check_together(measurement: Measurement, others: list[Measurement]) -> None:
    if not others:
        return
    first = others[0]
    for what, value, expected in (
        ("task", measurement.task.name, first.task.name),
        ("depth", measurement.model.stack.depth, first.model.stack.depth),
        ("test rows", len(measurement.rows.test), len(first.rows.test)),
        ("dial", bool(measurement.model.table.points), bool(first.model.table.points)),
        ("reward", measurement.reward.formula, first.reward.formula),
        ("features", _feature_names(measurement), _feature_names(first)),
    ):
        if value != expected:
            differing = f"{measurement.folder} has {what} {value}, {first.folder} has {expected}"
            raise UserError(f"{differing}; name runs of one task that differ in their seed alone")


def _feature_names(measured: Measurement) -> str:
    return ", ".join(feature.name for feature in measured.model.rules.layout.features)


def compared(measurements: list[Measurement], trained: list[list[Curve]], notes: Iterable[str] = (), *, begun: float | None = None) -> Comparison:
    """Joins measurements of several seeds.

    Args:
        trained: for each measurement, the curves of its trained baselines.
        notes: sentences for the report.
        begun: when the comparison began, on the monotonic clock.
    """
    begun = time.monotonic() if begun is None else begun
    first, notes = measurements[0], list(notes)
    for run, curves in zip(measurements, trained, strict=True):
        if clash := next((curve.record.name for curve in curves if curve.record.name in run.curves), None):
            raise UserError(f"two baselines are called {clash!r}, one trained and one of your own; call yours by another name")
    every = [run.curves | {curve.record.name: curve for curve in curves} for run, curves in zip(measurements, trained, strict=True)]
    records = {name: curve.record for curves in every for name, curve in curves.items()}
    names = sorted(records, key=lambda name: (records[name].control, records[name].trained))  # otherwise as they come, the policy first
    for name in [name for name in names if not all(name in curves for curves in every)]:
        count = sum(name in curves for curves in every)
        notes.append(f"{records[name].title} was measured for {count} of {len(every)} runs, so it is left out")
        names.remove(name)
    if ORACLE not in names:
        notes.append(
            f"{first.model.stack.depth} layers have too many routes to try them all: there is no oracle, and fixed routes come from a search"
        )
    if not first.model.table.points:
        notes.append("the policy was trained for one price and has no dial, so it is compared as exported alone")
    together = _Together(measurements, every, Bootstrap(len(first.taken.labels), len(measurements)))
    operating = tuple(together.operating(k, names) for k in range(len(first.operating)))
    full = first.curves[FULL_DEPTH].test[0].mean_compute
    device = first.rows.test.labels.device
    times = batch_times(first.model, first.rows.test.inputs, first.taken.route.to(device), float(first.taken.compute.mean()), device, full)
    return Comparison(
        runs=tuple(str(measured.folder) for measured in measurements),
        task=first.task.name,
        classes=first.task.classes,
        depth=first.model.stack.depth,
        rows=len(first.taken.labels),
        seeds=tuple(measured.seed for measured in measurements),
        curves=tuple(together.curve(name) for name in names),
        operating=operating,
        times=times,
        verdict=judge(str(first.folder), first.model.stack.depth, operating, times),
        notes=tuple(notes),
        taken=first.taken,
        reward=first.reward.formula,
        seconds=time.monotonic() - begun,
        score_name=first.task.score_name,
    )


class _Together:
    """The curves of S measurements, which all have the same baselines."""

    def __init__(self, measurements: list[Measurement], curves: list[dict[str, Curve]], bootstrap: Bootstrap) -> None:
        self.measurements, self.curves, self.bootstrap = measurements, curves, bootstrap

    def curve(self, name: str) -> BaselineCurve:
        """Every seed's choice at each validation compute where one of them changes its choice."""
        curves = [curves[name] for curves in self.curves]
        steps = sorted({curve.validation[n].mean_compute for curve in curves for n in frontier(curve.validation)})
        points: dict[tuple[int, ...], CurvePoint] = {}
        for step in steps:
            chosen = [best_within(curve.validation, step) for curve in curves]
            picked = [curve.test[n] for curve, n in zip(curves, chosen, strict=True) if n is not None]
            if len(picked) == len(curves):
                compute = sum(point.mean_compute for point in picked) / len(picked)
                points[tuple(n for n in chosen if n is not None)] = CurvePoint(picked[0].label, compute, self._score(picked))
        areas = [area_by_row(curve.validation, curve.test, run.majority_score) for curve, run in zip(curves, self.measurements, strict=True)]
        ordered = sorted(points.values(), key=lambda point: point.compute)
        return BaselineCurve(curves[0].record, tuple(ordered), self.bootstrap.interval(torch.stack(areas)))

    def operating(self, k: int, names: list[str]) -> Operating:
        """The k-th operating point."""
        points = [measured.operating[k] for measured in self.measurements]
        policy = [_at_price(curves[POLICY], point.price) for curves, point in zip(self.curves, points, strict=True)]
        budget, spent = points[0].budget, _mean(validation.mean_compute for validation, _ in policy)
        reached = budget is None or spent <= budget + SLACK
        baselines = [self._baseline(name, policy, budget, reached) for name in names]
        rewards = {POLICY: torch.stack([point.policy for point in points]), BEST_FIXED: torch.stack([point.fixed for point in points])}
        oracle = [point.oracle for point in points if point.oracle is not None]
        gap = None
        if oracle:
            rewards[ORACLE] = torch.stack(oracle)
            gap = self.bootstrap.ratio(rewards[POLICY] - rewards[BEST_FIXED], rewards[ORACLE] - rewards[BEST_FIXED])
        routes = [_routes(test) for _, test in policy]
        return Operating(
            budget=budget,
            prices=tuple(point.price for point in points),
            validation_compute=spent,
            baselines=tuple(baseline for baseline in baselines if baseline is not None),
            gap_closed=gap,
            rewards={name: float(values.double().mean()) for name, values in rewards.items()},
            distinct_routes=_mean(len(route.unique(dim=0)) for route in routes),
            route_entropy=_mean(route_entropy(route) for route in routes),
            fixed_as_cheap=self._baseline(BEST_FIXED, policy, None),
            reached=reached,
        )

    def _baseline(self, name: str, policy: list[tuple[Point, Point]], budget: float | None, reached: bool = True) -> BaselineResult | None:
        """The point beside the policy's, or for every seed the best within what policy and budget allow; the budget alone if it is not reached."""
        chosen: list[Point] = []
        for curves, (validation, test) in zip(self.curves, policy, strict=True):
            curve = curves[name]
            if name == POLICY or curve.record.control:
                if not reached and name != POLICY:
                    return None  # it spends what the policy does
                assert test.price is not None
                chosen.append(_at_price(curve, test.price)[1])
                continue
            limit = max(validation.mean_compute, budget or 0.0) if reached else budget or 0.0
            n = 0 if name == FULL_DEPTH else best_within(curve.validation, limit + SLACK)
            if n is None:
                return None
            chosen.append(curve.test[n])
        lead = torch.stack([test.correct - point.correct for (_, test), point in zip(policy, chosen, strict=True)])
        layers = tuple(_routes(chosen[0])[0].nonzero().squeeze(1).tolist()) if name == BEST_FIXED else None
        compute = _mean(point.mean_compute for point in chosen)
        record = self.curves[0][name].record
        return BaselineResult(record, chosen[0].label, compute, self._score(chosen), self.bootstrap.interval(lead), p_value(lead), layers)

    def _score(self, points: list[Point]) -> Interval:
        return self.bootstrap.interval(torch.stack([point.correct for point in points]))


def _at_price(curve: Curve, price: float) -> tuple[Point, Point]:
    """The points on validation and test data that run at a price."""
    n = next(n for n, point in enumerate(curve.test) if point.price == price)
    return curve.validation[n], curve.test[n]


def _routes(point: Point) -> Tensor:
    assert point.route is not None
    return point.route


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
