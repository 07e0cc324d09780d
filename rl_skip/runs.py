"""Reading the folder of a finished run: `config.json` and the export in `policy/`."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from rl_skip.errors import UserError
from rl_skip.export import SkipModel, load, read_description
from rl_skip.fields import Fields
from rl_skip.network import NetworkConfig, build_network
from rl_skip.network_fields import read_network_config
from rl_skip.tasks import Task, load_task

__all__ = ["CONFIG", "FORMAT_VERSION", "Run", "is_run", "load_run", "read_run"]

CONFIG = "config.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Run:
    """What a run was made of."""

    folder: Path
    task: str
    """The name of the task, as `load_task` takes it."""
    data: str | None
    """Where its data were."""
    network: NetworkConfig

    @property
    def policy(self) -> Path:
        """The export that the run left."""
        return self.folder / "policy"


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, not an export."""
    return (folder / CONFIG).is_file()


def read_run(folder: Path | str) -> Run:
    """Reads a run's `config.json`.

    Raises:
        UserError: if there is no finished run, or a field is missing or wrong.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the folder of a finished run")
    if not is_run(folder):
        raise UserError(f"{folder} is not a run, it has no {CONFIG}; name the folder that train.py wrote")
    fields = Fields.read(folder / CONFIG, FORMAT_VERSION)
    task = fields.object("task")
    run = Run(folder, task.text("name"), task.text_or_none("data"), read_network_config(fields.object("network")))
    if not run.policy.is_dir():
        raise UserError(f"the run {folder} has no policy yet; let its training finish")
    return run


def load_run(
    folder: Path | str,
    *,
    data: str | None = None,
    price: float | None = None,
    budget: float | None = None,
    device: torch.device | str = "cpu",
) -> tuple[SkipModel, Task]:
    """The trained model of a run, and its task.

    Args:
        data: where the data are now, if not where the run read them.
        price, budget, device: as `load` takes them.

    Raises:
        UserError: if there is no finished run, its task cannot be read, or the two do not fit.
    """
    run = read_run(folder)
    task = load_task(run.task, run.data if data is None else data)
    network = read_description(run.policy).network
    stack = None
    if network is None:  # a task of one's own, whose embedding no file can hold
        with torch.random.fork_rng(devices=[]):
            stack = build_network(run.network, task.embedding, task.tokens, len(task.classes))
    elif any(network.get(name, getattr(NetworkConfig, name)) != value for name, value in asdict(run.network).items()):
        raise UserError(f"{run.folder / CONFIG}: network is not the one that {run.policy} was exported with; restore the file")
    elif network.get("classes") != len(task.classes):
        raise UserError(f"the data have {len(task.classes)} classes, the run {folder} was trained on {network.get('classes')}; set --data")
    return load(run.policy, stack, price=price, budget=budget, device=device), task
