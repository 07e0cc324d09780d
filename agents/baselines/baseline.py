"""What the baselines of the policy share: how they learn, are measured, and what they write into their run folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from agents.agent import Agent, Results, TrainedRun
from agents.run.forecast import seconds_of
from agents.run.learner import Learner
from agents.run.moments import load_moments
from agents.run.report import TIMED_ROWS, TIMING
from agents.run.telemetry import score_metric
from rl_skip.core.batches import deployed
from rl_skip.core.clock import REPEATS, seconds_per_batch
from rl_skip.core.errors import UserError
from rl_skip.core.forward import routed_forward
from rl_skip.core.plugins import label_of
from rl_skip.core.routing import Router
from rl_skip.core.task import Examples, score_key
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.curves import CURVE, Curve, Point, save_curve
from rl_skip.measure.evaluation import Evaluation, evaluate

__all__ = ["Baseline", "Setting", "Unsuited", "baseline_report", "batch_metrics", "print_baseline"]

CURVE_PART = "curve"
"""The part of a run's end that measures every point."""
TRIED_ROWS = 256


class Unsuited(UserError):
    """A baseline cannot be trained on this network."""


@dataclass(frozen=True)
class Setting:
    """One way to run a baseline: a point of its curve."""

    label: str
    router: Router


class Baseline(Agent):
    """Base of the agents that train no policy, and leave a curve: as many updates as a policy has, from where its training began.

    Args:
        learner: the network and its optimiser; policy and critic are left as they are.
        extra: what the baseline trains beside the network, such as gates; by an Adam of its own, at the policy's learning rate.
    """

    record: ClassVar[BaselineRecord]
    """Its record in a comparison."""
    routed: ClassVar[bool] = True
    """Whether its routes name layers of the whole stack."""
    leaves = CURVE
    see = "compare RUN --baselines {folder}"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "record" in vars(cls):
            cls.trained_for = "one budget" if cls.record.per_budget else "every budget"

    def __init__(self, learner: Learner, extra: nn.Module | None = None) -> None:
        self.learner = learner
        self.extra = (nn.Module() if extra is None else extra).to(learner.device)
        self.trained = list(self.extra.parameters())
        rate = learner.config.schedule.policy_learning_rate
        self.optimizer = torch.optim.Adam(self.trained, lr=rate) if self.trained else None

    @property
    def budget(self) -> float:
        """The mean compute that it is trained for."""
        budget = self.learner.config.pricing.budget
        assert budget is not None, "the options are refused without one"
        return budget

    def calibrate(self) -> None:
        """Called once, after the training: whatever is chosen on validation data."""

    def settings(self) -> list[Setting]:
        """All ways to run it, as trained so far."""
        raise NotImplementedError(f"{type(self).__name__} must implement settings")

    def validation_setting(self) -> Setting:
        """The operating point at which a run in progress is validated."""
        return self.settings()[0]

    def learn_from_labels(self, update: int, router: Router) -> dict[str, Tensor]:
        """One supervised update on the network's outputs for a batch on the routes of `router`."""
        learner = self.learner
        rows = learner.batch_rows(update)
        batch = learner.train.take(rows)
        learner.prepare(learns=learner.tunes)
        rollout = routed_forward(learner.stack, router, batch.inputs)
        loss = learner.taught_loss(rollout.outputs, batch, rows)
        metrics = self.learn(loss, update) | score_metric(learner.task, "rollout", rollout.outputs, batch.labels)
        return batch_metrics(loss, rollout.compute, rollout.route) | metrics

    def learn(self, loss: Tensor, update: int) -> dict[str, Tensor]:
        """One step of all that learns down the gradient of `loss`; nothing where the network is frozen and there is nothing else."""
        learner = self.learner
        rate = torch.tensor(learner.set_learning_rates(update))
        if not loss.requires_grad:
            return {"train/learning_rate": rate}
        if self.optimizer is not None:
            self.optimizer.param_groups[0]["lr"] = learner.descent.policy_optimizer.param_groups[0]["lr"]
        return {"train/grad_norm": learner.descent.apply(loss, self.optimizer), "train/learning_rate": rate}

    def evaluate(self, examples: Examples) -> Evaluation:
        """All examples at the operating point used for validation."""
        return self.measure(examples)

    def finish(self, run: TrainedRun) -> Results:
        """Calibrates and measures it, writes its curve into the run folder, and prints its points."""
        report = baseline_report(self, run)
        if "points" not in report:
            return Results(report, {})
        print_baseline(report, self.record.title, run.folder, run.console, self.learner.task.score_name)
        key = score_key(self.learner.task.score_name)
        best = max(report["points"], key=lambda point: point[f"validation_{key}"])
        return Results(report, {f"final/{name}": best[name] for name in (key, "compute")})

    def foreseen(self) -> dict[str, float]:
        rows = self.learner.validation.take(slice(0, TRIED_ROWS))
        seconds, points = seconds_of(lambda: self.evaluate(rows)) / len(rows), self.points
        return {CURVE_PART: 2 * points * seconds * len(self.learner.validation), TIMING: points * seconds * TIMED_ROWS * REPEATS}

    @property
    def points(self) -> int:
        """How many ways to run it there will be."""
        return len(self.settings())

    def measure(self, examples: Examples, setting: Setting | None = None) -> Evaluation:
        """Runs all examples in evaluation mode; at the operating point used for validation unless another is named."""
        with deployed(self.extra):
            return evaluate(self.learner.stack, (setting or self.validation_setting()).router, self.learner.task, examples)

    def state_dict(self) -> dict[str, Any]:
        """What the baseline needs beside the learner to go on."""
        return {"extra": self.extra.state_dict(), "optimizer": {} if self.optimizer is None else self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        self.extra.load_state_dict(state["extra"])
        if self.optimizer is not None:
            load_moments(self.optimizer, state["optimizer"])


def batch_metrics(supervised: Tensor, compute: Tensor, route: Tensor) -> dict[str, Tensor]:
    """Metrics of one batch, as scalars on the device; `compute` is (B,), `route` is (B, L)."""
    rates = {f"layers/run_rate_{i}": rate for i, rate in enumerate(route.float().mean(dim=0))}
    return {"train/supervised_loss": supervised, "rollout/compute": compute.mean()} | rates


def baseline_report(baseline: Baseline, run: TrainedRun) -> dict[str, Any]:
    """Calibrates and measures a trained baseline, and writes its curve into the run folder.

    Returns:
        Score, compute and milliseconds for a batch of each point, on test data. What failed is missing.
    """
    learner, config, report = baseline.learner, baseline.learner.config, run.report
    key = score_key(learner.task.score_name)
    with run.part(CURVE_PART):
        baseline.calibrate()
        test = learner.task.load("test").to(learner.device)
        about = {"agent": label_of(config.agent), "budget": config.pricing.budget, "seconds": run.seconds, "rows": len(test), "split": "test"}
        settings = baseline.settings()
        validation, tested = ([baseline.measure(split, setting) for setting in settings] for split in (learner.validation, test))
        curve = Curve(baseline.record, config.seed, *(tuple(map(_point(baseline), settings, evaluations)) for evaluations in (validation, tested)))
        save_curve(run.folder, curve)
        report |= about
        report["points"] = [
            {"label": setting.label, key: on_test.score, "compute": on_test.compute, f"validation_{key}": on_validation.score}
            for setting, on_test, on_validation in zip(settings, tested, validation, strict=True)
        ]
    if "points" in report:
        with run.part(TIMING):
            report["timed_rows"] = min(TIMED_ROWS, len(learner.validation))
            for point, taken in zip(report["points"], _milliseconds(baseline, settings), strict=True):
                point["milliseconds"] = taken
    return report


def _point(baseline: Baseline) -> Callable[[Setting, Evaluation], Point]:
    budget = baseline.learner.config.pricing.budget

    def point(setting: Setting, evaluation: Evaluation) -> Point:
        route = evaluation.route if baseline.routed else None
        return Point(setting.label, None, budget, evaluation.correct, evaluation.compute_by_row, route)

    return point


def _milliseconds(baseline: Baseline, settings: list[Setting]) -> list[float]:
    inputs = baseline.learner.validation.take(slice(0, TIMED_ROWS)).inputs
    stack = baseline.learner.stack
    calls: dict[str, Callable[[], object]] = {
        setting.label: lambda router=setting.router: routed_forward(stack, router, inputs) for setting in settings  # type: ignore[misc]
    }
    with deployed(stack, baseline.extra):
        taken = seconds_per_batch(calls, baseline.learner.device)
    return [1000 * taken[setting.label] for setting in settings]


def print_baseline(report: dict[str, Any], title: str, folder: Path, console: Console, score_name: str) -> None:
    """Prints the points and what to do next."""
    table = Table(title=f"{report['rows']} test rows, {report['seconds']:.0f} s of training", title_justify="left")
    timed = all("milliseconds" in point for point in report["points"])
    clock = [f"ms per {report['timed_rows']} row{'s' * (report['timed_rows'] > 1)}"] if timed else []
    for column in (title, score_name, "compute", *clock):
        table.add_column(column, justify="left" if column == title else "right")
    for point in report["points"]:
        taken = [f"{point['milliseconds']:.1f}"] if timed else []
        table.add_row(point["label"], f"{point[score_key(score_name)]:.1%}", f"{point['compute']:.3f}", *taken)
    console.print(table)
    console.print("next:", f"  python -m rl_skip compare RUN --baselines {folder}", sep="\n", highlight=False)
