"""Trains every rival of a run, with the run's own options, from the run's own start, into `RUN/rivals`."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from agents.agent import AgentConfig
from agents.checkpoints import Stopped
from agents.config import PriceConfig, TrainConfig
from agents.rival import Unsuited
from agents.session import is_finished, train
from agents.start import START
from rl_skip.compare.comparison import BUDGETS
from rl_skip.compare.rivals import RIVALS as FOLDER
from rl_skip.evaluation import evaluate
from rl_skip.runs import is_run, load_run

__all__ = ["rivals_of", "train_rivals"]

NEAR = 0.03
"""How far from what the policy spends a rival's budget may be to be set beside it."""


def rivals_of(folder: Path, budgets: Iterable[float] = BUDGETS) -> dict[str, TrainConfig]:
    """The options of every rival of a run, by the name of its folder in `RUN/rivals`.

    They differ from the run's in who is trained, and for what compute; the one-shot policy in what it looks at.
    """
    run = replace(TrainConfig.from_json(folder), resume=None, overwrite=False)
    unpriced = PriceConfig()
    rivals = {f"{agent}-{budget:g}": (agent, replace(unpriced, budget=budget)) for budget in budgets for agent in ("static", "shallow", "gumbel")}
    rivals |= {"exits": ("exits", unpriced)}
    found = {name: replace(run, agent=agent, agent_config=AgentConfig(), pricing=pricing) for name, (agent, pricing) in rivals.items()}
    if run.policy.policy_scope != "input":
        pricing = replace(run.pricing, guarantee=None)
        found["one-shot"] = replace(run, policy=replace(run.policy, policy_scope="input"), pricing=pricing)
    return {name: replace(config, out=str(folder / FOLDER / name)) for name, config in found.items()}


def train_rivals(folder: Path, *, budgets: Iterable[float] = BUDGETS, data: str | None = None, console: Console | None = None) -> None:
    """Trains the rivals of a finished run that are not finished; those that were stopped go on.

    A rival that this network cannot have is left out, and that is said.

    Args:
        folder: RUN.
        budgets: the mean computes for which those are trained that are trained for one; what the policy spends as exported
            is added where none is near it.
        data: where the data are, if not where the run read them.
        console: where progress is shown; the standard error by default.

    Raises:
        UserError: if there is no finished run, its network is none that its options describe, or its data cannot be read.
        SystemExit: on Ctrl-C or SIGTERM, once a checkpoint is written; the same call goes on there.
    """
    console = console or Console(stderr=True)
    model, task = load_run(folder, data=data)
    own = model.budget
    if own is None:
        own = evaluate(model.stack, model.policy, task, task.load("validation"), price=model.price).compute
    asked = tuple(dict.fromkeys(budgets))
    if min((abs(own - budget) for budget in asked), default=1.0) > NEAR:  # what the policy spends as exported is compared too
        asked = (*asked, min(round(own, 2), 1.0))
    rivals = rivals_of(folder, asked)
    threads = torch.get_num_threads()
    try:
        for number, (name, config) in enumerate(rivals.items(), start=1):
            _train_one(folder, f"rival {number} of {len(rivals)}, {name}", config, data, console)
    finally:
        torch.set_num_threads(threads)


def _train_one(folder: Path, title: str, config: TrainConfig, data: str | None, console: Console) -> None:
    place, start = config.folder, folder / START

    def say(line: str) -> None:
        console.print(f"{title}: {line}", soft_wrap=True, markup=False, highlight=False)

    if is_run(place):
        if is_finished(place, config.agent):
            say("finished before")
            return
        config = TrainConfig.from_json(place)
    config = config if data is None else replace(config, data=data)
    say("training" if config.resume is None else "going on")
    try:
        train(config, console, start=start if start.is_file() else None)
    except Unsuited as unsuited:
        say(f"left out: {unsuited}")
    except Stopped as stopped:
        say("stopped; the same command goes on where it stood")
        raise SystemExit(stopped.exit_code) from None
