"""Trains every baseline of a run, with the run's own options, from the run's own start, into `RUN/baselines`."""

from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from agents.agent import AGENTS, REPORT, AgentConfig
from agents.baselines.baseline import Baseline, Unsuited
from agents.options.config import PriceConfig, TrainConfig
from agents.run.checkpoints import Stopped
from agents.run.forecast import duration
from agents.run.owner import owning
from agents.run.run_folder import is_finished
from agents.run.session import train
from agents.run.start import START
from rl_skip.core.bounded import read_json
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.comparison import BUDGETS
from rl_skip.measure.compare.plan import BASELINES_FOLDER, Planned, read_plan, write_plan
from rl_skip.measure.compare.trained import ONE_SHOT
from rl_skip.measure.evaluation import evaluate
from rl_skip.measure.runs import is_run, load_run

__all__ = ["TRAINED", "baselines_of", "train_baselines"]

TRAINED = tuple(kind.record for kind in map(AGENTS.find, AGENTS.names()) if issubclass(kind, Baseline))
"""The trained baselines of a run, whose agents have their records' names; a one-shot policy is trained too."""
NEAR = 0.03
"""How far from what the policy spends a baseline's budget may be to be set beside it."""


def baselines_of(
    folder: Path, budgets: Iterable[float] = BUDGETS, allow_code: bool = False
) -> dict[str, tuple[BaselineRecord, TrainConfig]]:
    """Record and options of every baseline of a run, by the name of its folder in `RUN/baselines`.

    They differ from the run's in agent and budget; the one-shot policy in its scope. Each trains in one process, and in one pass.
    """
    run = replace(TrainConfig.from_json(folder, allow_code), resume=None, overwrite=False, processes=1, shard=False)
    run = replace(run, schedule=replace(run.schedule, accumulate=1))
    unpriced = PriceConfig()
    each = [(f"{record.name}-{budget:g}", record, replace(unpriced, budget=budget)) for budget in budgets for record in TRAINED if record.per_budget]
    once = [(record.name, record, unpriced) for record in TRAINED if not record.per_budget]
    baselines = {
        name: (record, replace(run, agent=record.name, agent_config=AgentConfig(), pricing=pricing)) for name, record, pricing in [*each, *once]
    }
    if run.policy.policy_scope != "input":
        pricing = replace(run.pricing, guarantee=None, guarantee_kind=unpriced.guarantee_kind)
        baselines[ONE_SHOT.name] = ONE_SHOT, replace(run, policy=replace(run.policy, policy_scope="input"), pricing=pricing)
    parent = folder / BASELINES_FOLDER
    return {name: (record, replace(config, out=str(parent / name))) for name, (record, config) in baselines.items()}


def train_baselines(
    folder: Path,
    *,
    budgets: Iterable[float] = BUDGETS,
    only: Collection[str] | None = None,
    as_exported: bool = True,
    data: str | None = None,
    console: Console | None = None,
    allow_code: bool = False,
) -> None:
    """Trains the baselines of a finished run that are not finished; those that were stopped go on.

    A baseline that this network cannot have is left out, with a message. What was to be trained, and what was left out, is
    written into `RUN/baselines/plan.json`, where `compare` reads it.

    Args:
        folder: RUN.
        budgets: the mean computes for which those are trained that are trained for one.
        only: the names of those that are trained, as `--agent` takes them; None: all.
        as_exported: whether what the policy spends as exported is added to the budgets where none is near it.
        data: where the data are, if not where the run read them.
        console: where progress is shown; the standard error by default.
        allow_code: whether the Python files that the run names may be run.

    Raises:
        UserError: if there is no finished run, another process trains it or its baselines, its network is not the one that its options
            describe, or its data cannot be read.
        SystemExit: on Ctrl-C or SIGTERM, once a checkpoint is written; the same call goes on there.
    """
    with owning(folder):
        _train_all(folder, budgets, only, as_exported, data, console or Console(stderr=True), allow_code)


def _train_all(
    folder: Path, budgets: Iterable[float], only: Collection[str] | None, as_exported: bool, data: str | None, console: Console, allow_code: bool
) -> None:
    wanted = tuple(dict.fromkeys(budgets))
    if as_exported:
        own = _spent(folder, data, allow_code)
        if all(abs(own - budget) > NEAR for budget in wanted):
            wanted = (*wanted, min(round(own, 2), 1.0))
    baselines = {name: found for name, found in baselines_of(folder, wanted, allow_code).items() if only is None or found[0].name in only}
    plan = read_plan(folder) | {name: Planned(record.title) for name, (record, _) in baselines.items()}
    write_plan(folder, plan)
    _say_how_long(folder, baselines.values(), console)
    threads = torch.get_num_threads()
    try:
        for number, (name, (record, config)) in enumerate(baselines.items(), start=1):
            left_out = _train_one(folder, f"baseline {number} of {len(baselines)}, {name}", config, data, console)
            if left_out is not None:
                plan[name] = Planned(record.title, left_out)
                write_plan(folder, plan)
    finally:
        torch.set_num_threads(threads)


def _say_how_long(folder: Path, baselines: Iterable[tuple[BaselineRecord, TrainConfig]], console: Console) -> None:
    """From how long the run itself trained: a baseline has as many updates, and each takes about as long."""
    left = sum(not is_finished(config.folder, config.agent) for _, config in baselines)
    report = read_json(folder / REPORT, f"remove it, and go on with --resume {folder}") if (folder / REPORT).is_file() else {}
    if left and "seconds" in report:
        each, whole = duration(report["seconds"]), duration(left * report["seconds"])
        console.print(f"{left} baselines to train, about {whole}: the run itself took {each}, and each has as many updates, or fewer", soft_wrap=True)


def _spent(folder: Path, data: str | None, allow_code: bool) -> float:
    """What a run's policy spends as exported."""
    model, task = load_run(folder, data=data, allow_code=allow_code)
    if model.budget is not None:
        return model.budget
    return evaluate(model.stack, model.policy, task, task.load("validation"), price=model.price).compute


def _train_one(folder: Path, title: str, config: TrainConfig, data: str | None, console: Console) -> str | None:
    """Returns why the baseline is left out, where the network cannot have it."""
    own, start = config.folder, folder / START

    def say(line: str) -> None:
        console.print(f"{title}: {line}", soft_wrap=True, markup=False, highlight=False)

    if is_run(own):
        if is_finished(own, config.agent):
            say("finished before")
            return None
        config = TrainConfig.from_json(own, config.allow_code)
    config = config if data is None else replace(config, data=data)
    say("training" if config.resume is None else "going on")
    try:
        train(config, console, start=start if start.is_file() else None)
    except Unsuited as unsuited:
        say(f"left out: {unsuited}")
        return str(unsuited)
    except Stopped as stopped:
        say("stopped; the same command goes on where it stood")
        raise SystemExit(stopped.exit_code) from None
    return None
