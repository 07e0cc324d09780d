"""Agents: they learn update by update, are evaluated meanwhile, and finish a run. Each has a name; a person's own is `file.py:name`."""

import json
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from rich.console import Console
from torch import Tensor

from rl_skip.core.bounded import read_json
from rl_skip.core.errors import UserError
from rl_skip.core.files import atomic_write
from rl_skip.core.plugins import Registry
from rl_skip.core.processes import together
from rl_skip.core.progress import begin_stage
from rl_skip.core.task import Examples
from rl_skip.measure.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "AGENTS",
    "REPORT",
    "UNFINISHED",
    "Agent",
    "AgentConfig",
    "Curves",
    "Results",
    "TrainedFor",
    "TrainedRun",
    "Unreported",
    "find_agent",
    "has_report",
]

REPORT = "report.json"
UNFINISHED = "unfinished"
"""The key of a report that lacks parts: those that failed, and why; none yet where it is still being written."""

WRITING = "writing the report"
"""The part that fails where the report of a part cannot be written."""

class Unreported(UserError):
    """A run was trained, but a part of its report failed."""

    exit_code = 1


TrainedFor = Literal["a price", "one budget", "every budget"]


@dataclass(frozen=True)
class AgentConfig:
    """The agent's own options."""


def has_report(folder: Path) -> bool:
    """Whether a run folder holds a report that lacks nothing."""
    report = folder / REPORT
    return report.is_file() and UNFINISHED not in read_json(report, f"remove it, and go on with --resume {folder}")


class Curves(Protocol):
    """What a run shows in TensorBoard, and writes into metrics.jsonl; steps are updates."""

    @property
    def last_step(self) -> int:
        """Of what was written so far."""
        ...

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes numbers under their tags."""
        ...

    def evaluation(self, step: int, evaluation: Evaluation, score_name: str) -> dict[str, float]:
        """Writes where the rows of a validation left, as histograms; returns the numbers of `eval/`."""
        ...

    def figure(self, tag: str, drawn: "Figure", step: int) -> None:
        """Writes a figure of matplotlib among the images."""
        ...

    def text(self, tag: str, markdown: str, step: int = 0) -> None:
        """Writes Markdown into the Text tab."""
        ...


def _line(name: str, error: Exception) -> str:
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{name} failed: {kind}{' '.join(str(error).split())}"


@dataclass(frozen=True)
class TrainedRun:
    """A run after its last update, for its agent to finish."""

    folder: Path
    console: Console
    curves: Curves | None
    """None in processes that write nothing."""
    seconds: float
    """Of training."""
    own_stack: bool
    """Whether the network was given as an object, so that no file can describe it."""
    alarms: tuple[str, ...] = ()
    """What was said of its curves while it trained."""
    report: dict[str, Any] = field(default_factory=dict)
    """What report.json holds so far."""
    failed: dict[str, str] = field(default_factory=dict)
    """The parts that failed, with the traceback of each."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of the run's end. What it adds to the report is written when it is done; where it fails, a line says so, and the rest follows.

        Raises:
            Unreported: where it fails in one of several processes, without which the others cannot do theirs.
        """
        begin_stage(name)
        try:
            yield
        except Exception as error:
            self._tell(name, error)
            if together().several:
                self.write()
                raise Unreported(f"{_line(name, error)}; what was trained is kept, and --resume does what is left") from error
        try:
            self.write()
        except UserError as error:
            if WRITING not in self.failed:  # it is tried again after each part
                self._tell(WRITING, error)
        else:
            self.failed.pop(WRITING, None)

    def _tell(self, name: str, error: Exception) -> None:
        self.failed[name] = traceback.format_exc()
        if not together().several:
            self.console.print(_line(name, error), soft_wrap=True, markup=False, highlight=False)

    def write(self, whole: bool = False) -> None:
        """Writes the report; unless it is `whole`, with the parts that failed. Other processes than the first write nothing."""
        if self.curves is None:
            return
        report = self.report if whole else {**self.report, UNFINISHED: self.failed}
        atomic_write(self.folder / REPORT, json.dumps(report, indent=2) + "\n")


class Results(NamedTuple):
    """The results of a finished run."""

    report: dict[str, Any]
    """What report.json holds."""
    figures: dict[str, float]
    """Those by which TensorBoard compares runs, under their tags, such as "final/compute"."""


class Agent(ABC):
    """Trains the network of a `Learner`, and what decides which of its layers run.

    A subclass is named on the command line: `--agent my_file.py:MyAgent`. Derive it from `PolicyAgent`, or from an agent
    that trains a policy already, where it trains the jump policy; else from `Baseline`.

    Args:
        learner: the `agents.run.learner.Learner` with network, policy, critic and data.
    """

    config_class: ClassVar[type[AgentConfig]] = AgentConfig
    """Its own options, a frozen dataclass; `train.py --agent NAME --help` shows them."""
    trained_for: ClassVar[TrainedFor] = "a price"
    """Decides which of --price, --budget and --guarantee it takes or needs."""
    warms_up: ClassVar[bool] = True
    """Whether the network learns alone first. Without, those updates are the agent's too."""
    divides: ClassVar[bool] = False
    """Whether `update` takes a batch in parts, by `Learner.learn`, so that several processes and passes share it; an `update` of one's own says so
    anew."""
    leaves_start: ClassVar[bool] = False
    """Whether the state after the warm-up is kept in the run folder, for other agents to begin at."""
    leaves: ClassVar[str]
    """A file or folder that a finished run of it has, besides the report."""
    see: ClassVar[str]
    """Which command of rl_skip shows more of a finished run, with {folder} for the run."""

    runs_all_layers: bool = False
    """Whether each update runs all layers on all rows, so that processes over which the network is split are always at the same one."""

    def __init_subclass__(cls) -> None:
        if "update" in vars(cls) and "divides" not in vars(cls):
            cls.divides = False

    @abstractmethod
    def __init__(self, learner: Any) -> None: ...

    def try_out(self) -> None:  # noqa: B027, what has nothing to try does nothing
        """Called before anything is written: whatever of a person's own can fail is tried once on a few rows.

        Raises:
            UserError: in one line, if it fails.
        """

    def see_taught(self) -> None:  # noqa: B027, most wait for what follows
        """Called where the warm-up has ended, before a network that begins again as it was given does."""

    @abstractmethod
    def update(self, update: int) -> dict[str, Tensor]:
        """One update, with its number in the run; returns its metrics as scalars on the device."""

    @abstractmethod
    def evaluate(self, examples: Examples) -> Evaluation:
        """Its state so far, measured on examples; for validation while it trains."""

    @abstractmethod
    def finish(self, run: TrainedRun) -> Results:
        """Everything after the last update: what is chosen on validation data, the export, the final table; each a part of the run."""

    def foreseen(self) -> dict[str, float]:
        """About how many seconds each part of `finish` will take, for what a person is told while it trains.

        It may run what it needs to measure: whatever that changes is set back.
        """
        return {}

    def metrics(self) -> dict[str, float]:
        """Metrics besides the means of those that updates return."""
        return {}

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What it needs beside the learner to go on: plain tensors, numbers, strings, lists and dictionaries."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to where `state_dict` was taken."""


AGENTS: Registry[type[Agent]] = Registry("agent", "--agent")


def find_agent(name: str) -> type[Agent]:
    """The agent that `--agent` names.

    Raises:
        UserError: if there is no such agent, or it is not an `Agent`.
    """
    agent = AGENTS.find(name)
    if not (isinstance(agent, type) and issubclass(agent, Agent)):
        raise UserError(f"{name} is no agent; set --agent to a class that derives from Agent, such as Reinforce")
    if missing := sorted(getattr(agent, "__abstractmethods__", ())):
        raise UserError(f"the agent {name} does not say how it does {', '.join(missing)}; write that, or derive it from one that does")
    if not (isinstance(agent.config_class, type) and issubclass(agent.config_class, AgentConfig)):
        raise UserError(f"the config_class of the agent {name} does not derive from AgentConfig; let it derive from the options of the agent's base")
    return agent
