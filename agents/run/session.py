"""A training run from its options to its folder: warm-up, agent, checkpoints, report."""

import json
import random
import shlex
import shutil
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from agents.agent import TrainedRun, find_agent
from agents.options.config import TrainConfig
from agents.run.checkpoints import Checkpoints, StopRequests, load_random_states, random_states
from agents.run.learner import Learner
from agents.run.start import START, load_start, save_start
from agents.run.telemetry import Display, Telemetry
from agents.run.warmup import warm_up_for
from rl_skip.core.devices import pick_device
from rl_skip.core.errors import UserError
from rl_skip.core.files import atomic_write
from rl_skip.core.plugins import label_of
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Task, score_key
from rl_skip.learning.averages import Averages
from rl_skip.measure.runs import CONFIG, is_run
from rl_skip.nets.network import NetworkConfig
from rl_skip.tasks import load_task

__all__ = ["Session", "is_finished", "train"]

REPORT = "report.json"
REPORTS_PER_EPOCH = 2
NARROW = 256
"""Below this width the operations are so short that several threads mostly wait for one another."""
STATEFUL = ("learner", "warm_up", "agent", "averages")


def is_finished(folder: Path, agent: str) -> bool:
    """Whether a run folder holds the report and the result of its agent."""
    return (folder / REPORT).is_file() and (folder / find_agent(agent).leaves).exists()


def train(
    config: TrainConfig, console: Console | None = None, *, task: Task | None = None, stack: LayerStack | None = None, start: Path | None = None
) -> Path:
    """Trains, exports and reports; or goes on with the run that `config.resume` names. Returns the run folder.

    Args:
        task: a task of one's own in place of the one that the options name.
        stack: a network of one's own in place of the one that the options describe; it is trained as it is, in place.
        start: the state after the warm-up of a run with the same options and seed, in place of a warm-up.

    Raises:
        UserError: before anything is written, if the options, the data or the run folder do not allow it.
        Stopped: on Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    console = console or Console()
    config = config if task is None else replace(config, task=task.name, data=None)
    config = config if stack is None else replace(config, network=NetworkConfig(stack.depth, stack.width, heads=1))
    config.check_prices()
    folder = config.folder
    if config.resume is not None:
        TrainConfig.from_json(folder).refuse_changes(config)
        if is_finished(folder, config.agent):
            see = config.agent_class.see.format(folder=folder)
            _say(console, f"the run {folder} is finished, nothing is left to do; see python -m rl_skip {see}")
            return folder
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)
    device = pick_device(config.device)
    task = load_task(config.task, config.data, config.options) if task is None else task
    if config.resume is None:
        _refuse_to_replace(folder, config.overwrite)
    built = stack is None
    if stack is None and task.network is not None:
        torch.manual_seed(config.seed)
        stack = task.network(config.network)
        if (stack.depth, stack.width) != (config.network.layers, config.network.width):
            config = replace(config, network=NetworkConfig(stack.depth, stack.width, heads=1))
    if config.threads is not None or config.network.width < NARROW:
        torch.set_num_threads(config.threads or 1)
    session = Session(config, task, device, stack, built)
    session.agent.try_out()
    if start is not None:
        session.begin_at(start)
    if config.resume is None:
        if folder.exists():
            shutil.rmtree(folder)
        _make(folder)
        atomic_write(folder / CONFIG, json.dumps(config.to_json(), indent=2) + "\n")
    session.run(folder, console)
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"the run folder {folder} cannot be made ({error.strerror}); name another with --out") from None


def _refuse_to_replace(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not overwrite:
        raise UserError(f"the run folder {folder} exists; name another with --out, replace it with --overwrite, or go on with it: --resume {folder}")
    if folder.exists() and not is_run(folder) and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} is not a run folder, so it is not replaced; name another with --out")


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)


class Session:
    """One run: holds the learner and its agent, and takes them from the first update to the export."""

    def __init__(self, config: TrainConfig, task: Task, device: torch.device, stack: LayerStack | None = None, built: bool = True) -> None:
        self.config, self.task, self.built = config, task, built
        self.learner = Learner(config, task, device, stack)
        self.agent = config.agent_class(self.learner)
        self.warm_up = warm_up_for(self.learner)
        self.averages = Averages(device)
        self.done, self.seconds = 0, 0.0
        """Updates done, and seconds of training in earlier sittings."""

    def begin_at(self, start: Path) -> None:
        """Goes to the end of the warm-up, from another run with the same options and seed; an agent without a warm-up begins as usual."""
        if self.learner.warmup_updates > 0:
            load_start(self.learner, start)
            self.done = self.learner.warmup_updates

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on: plain tensors, numbers, strings, lists and dictionaries."""
        parts = {name: getattr(self, name).state_dict() for name in STATEFUL}
        return {"done": self.done, "seconds": self.seconds, "random": random_states(), **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        try:
            self.done, self.seconds = state["done"], state["seconds"]
            for name in STATEFUL:
                getattr(self, name).load_state_dict(state[name])
            load_random_states(state["random"])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the checkpoint does not fit the run's options and data ({reason}); restore its {CONFIG}, or set --data") from None

    def run(self, folder: Path, console: Console) -> None:
        """Trains from where the run stands, then lets the agent finish, and reports."""
        checkpoints = Checkpoints(folder, self.config.checkpoints)
        if self.config.resume is not None:
            self._go_back(folder, checkpoints, console)
        telemetry = Telemetry(folder, resume_after=None if self.config.resume is None else self.done)
        with closing(telemetry), StopRequests(f"go on with: python train.py --resume {shlex.quote(str(folder))}") as stop:
            self._train(folder, telemetry, checkpoints, stop, console)
            self._finish(folder, telemetry, console)

    def _go_back(self, folder: Path, checkpoints: Checkpoints, console: Console) -> None:
        state = checkpoints.latest(lambda line: _say(console, line))
        if state is None:
            _say(console, f"the run {folder} has no checkpoint that could be used, so it begins at update {self.done}")
        else:
            self.load_state_dict(state)

    def _finish(self, folder: Path, telemetry: Telemetry, console: Console) -> None:
        run = TrainedRun(folder, console, telemetry.writer, self.seconds, own_stack=not self.built)
        report, figures = self.agent.finish(run)
        telemetry.heat_map(self.learner.updates)
        telemetry.hyper_parameters(self.config.to_json(), {f"final/{name}": value for name, value in figures.items()})
        telemetry.flush()
        atomic_write(folder / REPORT, json.dumps(report, indent=2) + "\n")

    def _end_warm_up(self, folder: Path, console: Console) -> None:
        if self.agent.leaves_start:
            save_start(self.learner, folder / START)
        self.learner.end_warm_up()
        if self.agent.warms_up and (shortfall := self.warm_up.shortfall()) is not None:
            _say(console, shortfall)

    def _train(self, folder: Path, telemetry: Telemetry, checkpoints: Checkpoints, stop: StopRequests, console: Console) -> None:
        learner, averages = self.learner, self.averages
        every = max(learner.updates_per_epoch // REPORTS_PER_EPOCH, 1)
        begun = time.monotonic() - self.seconds
        since, samples = time.monotonic(), 0
        with Display(console, learner.updates, self.done, score_name=self.task.score_name) as display, stop.patiently():
            for update in range(self.done, learner.updates):
                warming = update < learner.warmup_updates
                if update == learner.warmup_updates:
                    self._end_warm_up(folder, console)
                with learner.stack.computing_in(learner.precision):
                    metrics = self.warm_up.update(update) if warming else self.agent.update(update)
                averages.add(metrics)
                samples += self.config.schedule.batch_size
                self.done, self.seconds = update + 1, time.monotonic() - begun
                last = self.done == learner.updates
                if last or self.done % every == 0:
                    values = averages.read() | self.agent.metrics() | {"time/samples_per_second": samples / (time.monotonic() - since)}
                    since, samples = time.monotonic(), 0
                    validated = self._validate(self.done)
                    telemetry.scalars(self.done, values | validated)
                    display.show("warm-up" if warming else label_of(self.config.agent), self.done, values)
                if last or stop.requested or checkpoints.due(self.done):
                    telemetry.flush()
                    checkpoints.write(self.done, self.state_dict())
                if stop.requested:
                    break

    def _validate(self, done: int) -> dict[str, float]:
        """Validation of the agent as it stands, every few epochs and at the end of the training."""
        learner = self.learner
        interval = self.config.schedule.eval_epochs * learner.updates_per_epoch
        if done <= learner.warmup_updates or (done // interval == (done - 1) // interval and done != learner.updates):
            return {}
        evaluation = self.agent.evaluate(learner.validation)
        return {f"eval/{score_key(learner.task.score_name)}": evaluation.score, "eval/compute": evaluation.compute, "eval/reward": evaluation.reward}
