"""A training run from its options to its folder: warm-up, agent, checkpoints, report."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from agents.agent import REPORT, WRITING, TrainedRun, Unreported
from agents.options.config import TrainConfig
from agents.run.beginning import nothing_left, print_line, suited
from agents.run.cadence import Cadence
from agents.run.checkpoints import Checkpoints, Stopped, StopRequests, load_random_states, random_states
from agents.run.display import Display
from agents.run.forecast import Forecast, Part, seconds_of, unchanged
from agents.run.launch import joined, refuse_shared_device
from agents.run.learner import Learner
from agents.run.overflow import output_not_finite, stopped_at, weight_not_finite
from agents.run.pictures import show_run_rates
from agents.run.remarks import CurveWatch
from agents.run.run_folder import begin, claim, end
from agents.run.sharding import check_options
from agents.run.split_tensors import gathered_state, scattered_state
from agents.run.splits import try_splits
from agents.run.start import START, load_start, save_start, teach_from
from agents.run.telemetry import Telemetry
from agents.run.warmup import RandomRoutes, warm_up_for
from rl_skip.core.devices import pick_device
from rl_skip.core.errors import UserError
from rl_skip.core.files import NoRoom
from rl_skip.core.finite import NotFinite
from rl_skip.core.plugins import is_own, label_of, own_code
from rl_skip.core.processes import talking, together
from rl_skip.core.progress import listening
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Task
from rl_skip.learning.averages import Averages
from rl_skip.measure.runs import CONFIG
from rl_skip.nets.network import NetworkConfig
from rl_skip.tasks import load_task
from rl_skip.tasks.data_report import DataReport

__all__ = ["Session", "train"]

NARROW = 256
"""Below this width the operations are so short that several threads mostly wait for one another."""
WARM_UP, VALIDATION = "warm-up", "validation"
VALIDATED_ROWS = 256
"""That are run to foresee how long all of them take."""
WORTH_TELLING = 5.0
"""Seconds that a run takes at least, if it is to be told how many."""
FITS_NOT = "restore its {}, or set --data; if an earlier version began the run, name under feature there what its policy saw"
"""What mends a checkpoint that does not fit."""
STATEFUL = ("learner", "warm_up", "agent", "averages")


def train(
    config: TrainConfig, console: Console | None = None, *, task: Task | None = None, stack: LayerStack | None = None, start: Path | None = None
) -> Path:
    """Trains, exports and reports; or goes on with the run that `config.resume` names. Returns the run folder.

    Args:
        task: a task of one's own in place of the one that the options name.
        stack: a network of one's own in place of the one that the options describe; it is trained as it is, in place.
        start: the state after the warm-up of a run with the same options, seed and data, in place of a warm-up; a file in that run's folder.

    Raises:
        UserError: before anything is written, if the options, the data or the run folder do not allow it.
        Unreported: after everything else, if a part of the report failed; what was trained is kept.
        Stopped: on Ctrl-C, SIGTERM or the end of the terminal, once a checkpoint is written.
    """
    with ExitStack() as owned:
        processes = owned.enter_context(joined())
        if console is None:
            console = Console() if processes.first else Console(file=owned.enter_context(open(os.devnull, "w")))
        config = config if task is None else replace(config, task=task.name, data=None)
        config = config if stack is None else replace(config, network=NetworkConfig(stack.depth, stack.width, heads=1))
        check_options(config, own_stack=stack is not None)
        if nothing_left(config, console):
            return config.folder
        config = config if config.resume is not None else replace(config, processes=processes.count)
        claim(config, owned)
        with StopRequests("nothing of this was trained yet; the same command does it"):
            session, report = _set_up(config, console, task, stack, start)
        if processes.first:
            begin(session.config, owned)
            report.write(config.folder)
        if config.resume is None and start is None:
            for line in report.lines():
                print_line(console, line)
        session.run(config.folder, console)
        if processes.first:
            report.write(config.folder)  # with the test data, which the end of the run has read
            end(config.folder)
    return config.folder


def _set_up(
    config: TrainConfig, console: Console, task: Task | None, stack: LayerStack | None, start: Path | None
) -> tuple["Session", DataReport]:
    """The run before its first update, and what was read for it; nothing is written."""
    random.seed(config.seed)
    np.random.seed(config.seed % 2**32)
    device, own = pick_device(config.device), task is not None or is_own(config.task)
    refuse_shared_device(device)
    task = load_task(config.task, config.data, config.options) if task is None else task
    begun = config.folder if config.resume is not None else start.parent if start is not None else None
    report = DataReport(task, begun, config.train_rows)
    if config.resume is None:
        config = suited(config, task, console)
    built = stack is None
    if stack is None and task.network is not None:
        torch.manual_seed(config.seed)
        stack = task.network(config.network)
        if (stack.depth, stack.width) != (config.network.layers, config.network.width):
            config = replace(config, network=NetworkConfig(stack.depth, stack.width, heads=1))
    if config.threads is not None or config.network.width < NARROW:
        torch.set_num_threads(config.threads or 1)
    with own_code(f"the network on the data of the task {task.name}") if own else nullcontext():
        session = Session(config, report.task, device, stack, built)
    if own:
        try_splits(session.learner)
    session.agent.try_out()
    if start is not None:
        session.begin_at(start)
    return session, report


class Session:
    """One run: holds the learner and its agent, and takes them from the first update to the export."""

    def __init__(self, config: TrainConfig, task: Task, device: torch.device, stack: LayerStack | None = None, built: bool = True) -> None:
        self.config, self.task, self.built = config, task, built
        known = not is_own(config.network.stack) and (task.network is None or not is_own(config.task))  # one's own may have learned before
        self.learner = Learner(config, task, device, stack, made_anew=built and known and not config.options.pretrained)
        self.agent = config.agent_class(self.learner)
        self.warm_up = warm_up_for(self.learner)
        if config.shard and not (self.agent.runs_all_layers and isinstance(self.warm_up, RandomRoutes)):
            advice = "set --readouts --no-jumps --gradient exact, or --no-shard"
            raise UserError(f"--shard keeps all processes at the same layer, and sampled routes do not; {advice}")
        self.averages = Averages(device)
        schedule, learner = config.schedule, self.learner
        self.cadence = Cadence(learner.updates, learner.warmup_updates, learner.updates_per_epoch, schedule.eval_epochs)
        self.done, self.seconds = 0, 0.0
        """Updates done, and seconds of training in earlier sittings."""
        self.reported = 0
        """After how many updates the last report was."""

    def begin_at(self, start: Path) -> None:
        """Goes to the end of the warm-up, from another run with the same options and seed.

        An agent without a warm-up begins as usual; where the other run has readouts, its teacher is that run's.
        """
        if self.learner.warmup_updates > 0:
            load_start(self.learner, start)
            if (said := weight_not_finite(self.learning)) is not None:
                raise NotFinite(f"{start}: {said}; remove it, and the warm-up is repeated")
            self.done = self.reported = self.learner.warmup_updates
        elif self.config.schedule.warmup_epochs > 0 and self.config.policy.readouts:
            teach_from(self.learner, start)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on: plain tensors, numbers, strings, lists and dictionaries."""
        parts = {name: getattr(self, name).state_dict() for name in STATEFUL}
        here = {"done": self.done, "seconds": self.seconds, "reported": self.reported, "random": random_states(), **parts}
        others = together().gather(self.learner.random_state())[1:]
        return here | ({"others": others} if others else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""
        try:
            self.done, self.reported = state["done"], state.get("reported", state["done"])  # earlier versions lack it
            if not (type(self.done) is type(self.reported) is int and 0 <= self.reported <= self.done <= self.learner.updates):
                raise ValueError(f"{self.done} of {self.learner.updates} updates, {self.reported} of them reported")
            self.seconds = float(state["seconds"])
            for name in STATEFUL:
                getattr(self, name).load_state_dict(state[name])
            if self.done > self.learner.warmup_updates:
                self.learner.given = None  # it has begun again
            load_random_states(state["random"])
            if not together().first:
                self.learner.load_random_state(state["others"][together().rank - 1])
        except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the checkpoint does not fit the run's options and data ({reason}); {FITS_NOT.format(CONFIG)}") from None

    def run(self, folder: Path, console: Console) -> None:
        """Trains from where the run stands, then lets the agent finish, and reports."""
        checkpoints, processes = Checkpoints(folder, self.config.checkpoints), together()
        self.learner.begin_together()
        if self.config.resume is not None:
            self._go_back(folder, checkpoints, console)
        resume_after = None if self.config.resume is None else self.reported
        telemetry = Telemetry(folder, partial(print_line, console), resume_after) if processes.first else None
        with nullcontext() if telemetry is None else closing(telemetry), StopRequests(f"go on with: {self.config.resume_command}") as stop:
            forecast = foresee(self)
            if forecast.left() >= WORTH_TELLING:
                print_line(console, f"this takes {forecast.in_words()}")
            if self.learner.stays_as_drawn:
                advice = "set --tune all, or --model to one that has learned"
                print_line(console, f"--tune {self.config.schedule.tune} leaves the weight matrices of a new network's layers random; {advice}")
            if telemetry is not None:
                telemetry.settings(self.config, self.task.score_name)
            watch = CurveWatch(self.learner, () if telemetry is None else telemetry.earlier)
            with Display(console, forecast, score_name=self.task.score_name) as display, listening(display):
                self._train(folder, telemetry, checkpoints, stop, console, display, watch)
                self._finish(folder, telemetry, checkpoints, console, watch)

    def _go_back(self, folder: Path, checkpoints: Checkpoints, console: Console) -> None:
        processes = together()
        state = checkpoints.latest(lambda line: print_line(console, line)) if processes.first else None
        state = scattered_state(state, {("learner", *path): part for path, part in self.learner.split_parts().items()})
        if state is None:
            print_line(console, f"the run {folder} has no checkpoint that could be used, so it begins at update {self.done}")
        else:
            self.load_state_dict(state)
            if (said := weight_not_finite(self.learning)) is not None:
                raise NotFinite(f"in the checkpoint of {folder} {said}; remove the newest in {checkpoints.folder}, and go on before it")

    def _finish(self, folder: Path, telemetry: Telemetry | None, checkpoints: Checkpoints, console: Console, watch: CurveWatch) -> None:
        run = TrainedRun(folder, console, telemetry, self.seconds, own_stack=not self.built, alarms=tuple(watch.said.values()))
        report, figures = self.agent.finish(run)
        if telemetry is None:
            return
        run.report.update(report)
        with run.part("last curves"):
            show_run_rates(telemetry)
            telemetry.hyper_parameters(self.config, figures)
            telemetry.flush()
            telemetry.refuse_unwritten()
        if run.failed:
            told = f"{' and '.join(run.failed)} failed" + (f", as {folder / REPORT} tells" if WRITING not in run.failed else "")
            left = "without training" if checkpoints.kept == self.done else f"after training from update {checkpoints.kept + 1}"
            raise Unreported(f"{told}; {self.config.resume_command} does what is left, {left}")
        run.write(whole=True)

    def _end_warm_up(self, folder: Path, console: Console) -> None:
        if self.agent.leaves_start:
            try:
                save_start(self.learner, folder / START)
            except NoRoom as error:
                print_line(console, f"{error.reason}; the run goes on without, and baselines of it will repeat the warm-up")
        self.learner.end_warm_up(self.agent.see_taught)
        if self.config.begins_again and not self.learner.begins_again:
            print_line(console, "there are too many outputs of training rows to keep a teacher's, so the network does not begin again")
        if self._lacks_teacher():
            print_line(console, "no start of a run is at hand, so it learns from the labels alone, not from a teacher too")
        if self.agent.warms_up and (shortfall := self.warm_up.shortfall()) is not None:
            print_line(console, shortfall)

    def _lacks_teacher(self) -> bool:
        """Whether an agent without a warm-up has not got the teacher that one makes."""
        schedule = self.config.schedule
        made = self.config.policy.readouts and schedule.warmup_epochs > 0 and schedule.distillation_weight > 0
        return made and not self.agent.warms_up and self.learner.teacher is None

    def update(self, update: int) -> dict[str, Tensor]:
        """One update, of the warm-up or of the agent; returns its metrics as scalars on the device.

        Raises:
            NotFinite: if it led to numbers that are not finite.
        """
        try:
            with self.learner.stack.computing_in(self.learner.precision), talking():
                return self.warm_up.update(update) if update < self.learner.warmup_updates else self.agent.update(update)
        except NotFinite as error:
            where = output_not_finite(update, self.learner)
            raise stopped_at(update, self.learner, f"{error}, and {where}" if where else str(error)) from None
        except (RuntimeError, ValueError):  # such as distributions raise on logits that are not finite
            if self.learner.stack.split is not None or (said := self.not_finite(update)) is None:  # which the others would not look for
                raise
            raise stopped_at(update, self.learner, said) from None

    def not_finite(self, update: int) -> str | None:
        """A sentence on the first weight, or the first output for an update's batch, that is not finite; None where all are."""
        return weight_not_finite(self.learning) or output_not_finite(update, self.learner)

    @property
    def learning(self) -> dict[str, nn.Module]:
        """All that learns, by name."""
        learner = self.learner
        own = {name: module for name, module in vars(self.agent).items() if isinstance(module, nn.Module)}
        return own | {"network": learner.stack, "policy": learner.policy, "critic": learner.critic}

    def phase(self, update: int) -> str:
        """What learns then, for the display."""
        return WARM_UP if update < self.learner.warmup_updates else label_of(self.config.agent)

    def _train(
        self,
        folder: Path,
        telemetry: Telemetry | None,
        checkpoints: Checkpoints,
        stop: StopRequests,
        console: Console,
        display: Display,
        watch: CurveWatch,
    ) -> None:
        learner, processes, say = self.learner, together(), partial(print_line, console)
        begun = time.monotonic() - self.seconds
        since, updates = time.monotonic(), 0
        with stop.patiently():
            while True:
                last = self.done == learner.updates
                number, due = processes.highest(stop.number or 0, processes.first and checkpoints.due(self.done))
                if self.done > self.reported and self.cadence.reports(self.done) and not number:
                    speed = updates * self.config.schedule.batch_size / (time.monotonic() - since)
                    self._report({"time/samples_per_second": speed} if updates else {}, telemetry, stop, display, say, watch)
                    since, updates = time.monotonic(), 0
                    number = number if processes.several else stop.number or 0  # asked meanwhile
                if last or number or due:
                    self._keep(telemetry, checkpoints, say)
                if number:
                    processes.from_first(None)  # which has written it
                    stop.number = number
                if last or number:
                    break
                if self.done == learner.warmup_updates:
                    self._end_warm_up(folder, console)
                started = time.monotonic()
                self.averages.add(self.update(self.done))
                display.forecast.step(self.phase(self.done), time.monotonic() - started)
                self.done, self.seconds, updates = self.done + 1, time.monotonic() - begun, updates + 1

    def _report(
        self,
        speed: dict[str, float],
        telemetry: Telemetry | None,
        stop: StopRequests,
        display: Display,
        say: Callable[[str], None],
        watch: CurveWatch,
    ) -> None:
        """Shows and writes the metrics since the last report. Where a request to stop comes meanwhile it is left for when the run goes on; of several
        processes, which validate together, none breaks off."""
        try:
            with nullcontext() if together().several else stop.at_once():  # a validation may take longer than whoever asks will wait
                validated = self._validate(self.done, telemetry, display)
        except Stopped:
            return
        values = self.averages.read() | self.agent.metrics() | speed
        display.show(self.phase(self.done - 1), values)
        self.reported = self.done
        if telemetry is None:
            return
        telemetry.scalars(self.done, values | validated)
        for alarm in watch.see(telemetry.latest):
            say(alarm)
            telemetry.text("remarks/while_training", alarm, self.done)

    def _keep(self, telemetry: Telemetry | None, checkpoints: Checkpoints, say: Callable[[str], None]) -> None:
        """Writes a checkpoint. A run goes on where there is no room for it: there may be by the next."""
        if (said := weight_not_finite(self.learning)) is not None:
            raise stopped_at(self.done - 1, self.learner, said)
        state = gathered_state(self.state_dict())
        if telemetry is None:
            return
        telemetry.flush()
        try:
            checkpoints.write(self.done, state)
        except NoRoom as error:
            kept = f"the checkpoint after update {checkpoints.kept} is kept" if checkpoints.kept else "there is none yet"
            say(f"{error.reason}; {kept}, and the run goes on: make room before it ends or stops")

    def _validate(self, done: int, telemetry: Telemetry | None, display: Display) -> dict[str, float]:
        """Validation of the agent as it stands, where one is due, by all processes; what of it is to be written, in that which writes."""
        if not self.cadence.validates(done):
            return {}
        begun = time.monotonic()
        evaluation = self.agent.evaluate(self.learner.validation)
        display.forecast.step(VALIDATION, time.monotonic() - begun)
        return {} if telemetry is None else telemetry.evaluation(done, evaluation, self.task.score_name)


def foresee(session: Session) -> Forecast:
    """How long the rest of a run takes, from a few steps of each of its parts, all of them taken back.

    Steps that are taken more than once may lead to what is not finite where the run itself does not: then what follows is not foreseen.
    """
    parts: list[Part] = []
    with unchanged(session, constant=session.learner.teacher):
        try:
            parts.extend(_foreseen(session))
        except NotFinite:
            pass
        except (RuntimeError, ValueError):
            if together().several or session.not_finite(session.done) is None:  # what one process passes over the others would wait for
                raise
    return Forecast(parts)


def _foreseen(session: Session) -> Iterator[Part]:
    learner, done = session.learner, session.done
    first, epoch = max(done, learner.warmup_updates), learner.updates_per_epoch
    if done < learner.warmup_updates:
        yield Part(WARM_UP, learner.warmup_updates - done, seconds_of(partial(session.update, done)))
    if first < learner.updates:
        # an agent may do more at the beginning of an epoch, and once at the beginning of all
        begin = first + -(first - learner.warmup_updates) % epoch + epoch * (first == learner.warmup_updates)
        begin = begin if begin < learner.updates else first
        beginning, later = (seconds_of(partial(session.update, update)) for update in (begin, min(begin + 1, learner.updates - 1)))
        seconds = (beginning + (epoch - 1) * later) / epoch
        yield Part(session.phase(first), learner.updates - first, seconds)
        rows = learner.validation.take(slice(0, VALIDATED_ROWS))
        seconds = seconds_of(lambda: session.agent.evaluate(rows)) * len(learner.validation) / len(rows)
        yield Part(VALIDATION, session.cadence.validations(learner.updates) - session.cadence.validations(done), seconds)
    yield from (Part(title, 1, seconds) for title, seconds in session.agent.foreseen().items())
