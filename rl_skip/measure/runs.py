"""Reading the folder of a finished run: `config.json` and the export in `policy/`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rl_skip.core.errors import UserError
from rl_skip.core.features import Feature, check_features, find_features
from rl_skip.core.fields import Fields, is_ours
from rl_skip.core.plugins import refuse_code
from rl_skip.core.reward import Reward, find_reward
from rl_skip.core.seal import check_sealed, is_sealed
from rl_skip.core.task import Examples, Split, Task
from rl_skip.export.policy_folder import SkipModel, load, read_description
from rl_skip.nets.network import NetworkConfig, read_network_config
from rl_skip.tasks import DEFAULTS, load_task
from rl_skip.tasks.data_report import DATA, SplitReport, read_data_report, watched
from rl_skip.tasks.options import TaskOptions, read_task_options
from rl_skip.tasks.shipped import find_run

__all__ = [
    "CONFIG",
    "FORMAT_VERSION",
    "MODEL",
    "POLICY",
    "Run",
    "holds_run",
    "is_run",
    "load_run",
    "read_config",
    "read_run",
    "references_of",
    "refuse_other_data",
]

CONFIG = "config.json"
POLICY = "policy"
MODEL = "model"
"""Where in the folder a model from transformers is, trained."""
FORMAT_VERSION = 2
TRAIN_ANEW = "train the run anew with --overwrite"


@dataclass(frozen=True)
class Run:
    """What a run was made of."""

    folder: Path
    task: str
    """The name of the task, as `load_task` takes it."""
    data: str | None
    """Where its data were."""
    network: NetworkConfig
    options: TaskOptions = DEFAULTS
    """How the task reads its data; the model is the run's own, where it has one."""
    reward_name: str = "linear"
    """What its policy was rewarded for, as `find_reward` takes it."""
    feature_names: tuple[str, ...] = ()
    """What its policy sees, where it was named, as `find_features` takes it."""

    @property
    def reward(self) -> Reward:
        """What its policy was rewarded for."""
        with self._naming_config():
            return find_reward(self.reward_name)

    @property
    def features(self) -> tuple[Feature, ...]:
        """The features that its policy sees, where they were named."""
        with self._naming_config():
            features = find_features(self.feature_names)
            check_features(features)
            return features

    @contextmanager
    def _naming_config(self) -> Iterator[None]:
        """Names the file in which a name stands that leads nowhere."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self.folder / CONFIG}: {error}") from None

    @property
    def policy(self) -> Path:
        """The run's export."""
        return self.folder / POLICY

    def load_task(self, data: str | None = None) -> Task:
        """The task, with its data at `data` if they are not where the run read them."""
        return load_task(self.task, self.data if data is None else data, self.options)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, not an export."""
    return (folder / CONFIG).is_file()


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run of this version or another, known by what its `config.json` says and not by the file's name."""
    return is_ours(folder / CONFIG, "task", "network", "agent")


def read_config(folder: Path) -> Fields:
    """The fields of a run's `config.json`.

    Raises:
        UserError: if there is no finished run of this version with a policy.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the folder of a finished run")
    if not is_run(folder):
        raise UserError(f"{folder} is not a run, it has no {CONFIG}; name the folder that train.py wrote")
    fields = Fields.read(folder / CONFIG, FORMAT_VERSION, FORMAT_VERSION, TRAIN_ANEW)
    if is_sealed(folder):
        check_sealed(folder, CONFIG, DATA)
    if not (folder / POLICY).is_dir():
        if (folder / "curve.json").is_file():
            raise UserError(f"{folder} is the run of a baseline, which has no policy; set it beside a run: compare RUN --baselines {folder}")
        raise UserError(f"the run {folder} has no policy yet; let its training finish")
    return fields


def references_of(fields: Fields) -> tuple[str, ...]:
    """Everything in a run's `config.json` that may be the name of a person's own, `file.py:name`."""
    pricing, network, policy = fields.object("pricing"), fields.object("network"), fields.object("policy")
    return fields.object("task").text("name"), network.text("stack"), fields.text("agent"), pricing.text("reward"), *policy.texts("feature")


def read_run(folder: Path | str, *, allow_code: bool = False) -> Run:
    """Reads a run's `config.json`.

    Args:
        folder: the run's, or the name of a run that comes with the package, "hops-v0".
        allow_code: whether the Python files that it names may be run, when its task, stack, reward and features are used.

    Raises:
        UserError: if there is no finished run, a field is missing or wrong, or it names code that is not allowed.
    """
    folder = find_run(folder)
    fields = read_config(folder)
    refuse_code(references_of(fields), fields.source, allow_code)
    task = fields.object("task")
    options = read_task_options(task.object("options"))
    if (folder / MODEL).is_dir():
        options = replace(options, model=str(folder / MODEL))
    return Run(
        folder,
        task.text("name"),
        task.text_or_none("data"),
        read_network_config(fields.object("network")),
        options,
        fields.object("pricing").text("reward"),
        fields.object("policy").texts("feature"),
    )


def load_run(
    folder: Path | str,
    *,
    data: str | None = None,
    price: float | None = None,
    budget: float | None = None,
    device: torch.device | str = "cpu",
    changed: Callable[[str], None] | None = None,
    allow_code: bool = False,
) -> tuple[SkipModel, Task]:
    """The trained model of a run, and its task.

    Args:
        folder: as `read_run` takes it.
        data: where the data are now, if not where the run read them.
        price, budget, device: as `load` takes them.
        changed: is told in a sentence if a split, when it is loaded, has other rows or labels than the run had; None: it is refused.
        allow_code: whether the Python files that the run names may be run, those of its own task, stack, reward and features.

    Raises:
        UserError: if there is no finished run, its task cannot be read, the two do not fit, or it names code that is not allowed.
    """
    run = read_run(folder, allow_code=allow_code)
    description, stack = read_description(run.policy, run.features), None
    if budget is not None:
        description.table.price_for(budget)  # refused before data are read, which takes longer
    task = _compared(run.load_task(data), run.folder, changed)
    if description.network is not None and task.network is None:
        _check_network(run, task, description.network)
    if description.missing is not None:  # an embedding or a stack of one's own, or a model from transformers
        with torch.random.fork_rng(devices=[]):
            stack = task.build(run.network)
    return load(run.policy, stack, price=price, budget=budget, features=run.features, device=device), task


def _compared(task: Task, folder: Path, changed: Callable[[str], None] | None) -> Task:
    """The task, each of whose splits is compared with what the run read when it is loaded."""
    begun, _ = read_data_report(folder)

    def compare(split: Split, examples: Examples) -> None:
        difference = begun[split].difference(SplitReport.of(task, split, examples.labels, examples)) if split in begun else None
        if difference is None:
            return
        told = f"the {split} data are not those of the run {folder} ({difference})"
        if changed is None:
            raise UserError(f"{told}; set --data to where those are, or measure on others with: eval {folder} --data PATH")
        changed(told)

    return watched(task, compare)


def refuse_other_data(folder: Path, other: Path) -> None:
    """Raises `UserError` if two runs are known to have been trained or measured on different rows."""
    mine, theirs = read_data_report(folder)[0], read_data_report(other)[0]
    for split in mine.keys() & theirs.keys():
        if (difference := mine[split].difference(theirs[split])) is not None:
            told = f"the {split} data of {folder} and of {other} are not the same ({difference})"
            raise UserError(f"{told}; name runs and baselines of the same data")


def _check_network(run: Run, task: Task, described: dict[str, Any]) -> None:
    """Refuses a run whose network is not the one of its options, or has other classes than its data."""
    if any(described.get(name, getattr(NetworkConfig, name)) != value for name, value in asdict(run.network).items()):
        raise UserError(f"{run.folder / CONFIG}: network is not the one that {run.policy} was exported with; restore the file")
    if described.get("classes") != len(task.classes):
        raise UserError(f"the data have {len(task.classes)} classes, the run {run.folder} was trained on {described.get('classes')}; set --data")
