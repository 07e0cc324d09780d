"""Tasks: data with labels in three splits, and how its inputs become tokens.

A task of your own is a function in a Python file that returns a `Task`; `--task my_file.py:my_task --data PATH` calls
it with the path (None without `--data`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from rl_skip.attached.names import model_folder
from rl_skip.core.errors import UserError
from rl_skip.core.plugins import Registry, is_own, load_own
from rl_skip.core.task import Defaults, Task
from rl_skip.tasks.options import TaskOptions, leaving_defaults
from rl_skip.tasks.shipped import find_data

__all__ = ["TASKS", "BundledTask", "defaults_of", "load_task"]

DEFAULTS = TaskOptions()


@dataclass(frozen=True)
class BundledTask:
    """A task of the package, before its data are read."""

    make: Callable[[Path, TaskOptions], Task] | Callable[[], Task]
    """Reads the data: from a path, or brings its own."""
    defaults: Defaults = field(default_factory=dict)
    """As `Task.defaults`."""
    options: frozenset[str] = frozenset()
    """Which of `TaskOptions` it reads, besides those for a model."""
    needs_data: bool = True
    """Whether `make` takes a path, and the options with which models from transformers are named."""


TASKS: Registry[BundledTask] = Registry("task", "--task")
for _name, _attribute in {
    "digits": "digits:DIGITS",
    "hops": "hops:HOPS",
    "hops-16": "hops:HOPS_16",
    "speech": "speech:SPEECH",
    "images": "images:IMAGES",
    "text": "text:TEXT",
    "language": "language:LANGUAGE",
}.items():
    TASKS.register_lazily(_name, f"rl_skip.tasks.{_attribute}")


@cache
def load_task(name: str, data: str | None = None, options: TaskOptions = DEFAULTS) -> Task:
    """The task `name`: a bundled one, such as "digits" or "text", or "file.py:function" for one of your own.

    Args:
        data: where its data are, or the name of data that come with the package; digits and hops need none.
        options: the model, and which columns or files of the data are read.

    Raises:
        UserError: if there is no such task, or the data cannot be read.
    """
    bundled = None if is_own(name) else TASKS.find(name)
    if options.pair_column is not None and name != "text":
        raise UserError(f"the task {name!r} has no pairs of texts; leave out --pair-column, or set --task text")
    _refuse_options(name, frozenset() if bundled is None else bundled.options, options)
    place = None if bundled is None or data is None else find_data(data)  # a person's own task reads its data as it likes
    if bundled is not None and not bundled.needs_data and data is not None:
        raise UserError(f"the task {name!r} brings its own data and does not read {data}; leave out --data, or set --task")
    if options.pretrained and (bundled is None or not bundled.needs_data):
        raise UserError(f"the task {name!r} builds its network itself and does not take {options.model}; leave out --model, or set --task")
    if options.label_order is not None and (not options.pretrained or name == "language"):
        raise UserError("--label-order is the order of the classes of a model that has some; leave it out, or set --model to a classifier")
    if bundled is None:
        return _own_task(name, data)
    if bundled.needs_data and place is None:
        raise UserError(f"the task {name!r} needs data; set --data PATH")
    if options.pretrained:
        options = replace(options, model=model_folder(options.model))
    task = bundled.make(place, options) if place is not None else bundled.make()  # type: ignore[call-arg]
    return replace(task, defaults=bundled.defaults)


def defaults_of(name: str, data: str | None, given: Mapping[str, str]) -> Mapping[str, Any]:
    """The defaults of a task's options, those that all tasks share among them. Of a bundled task no data are read for them.

    Args:
        name, data: as `load_task` takes them.
        given: the options that are given, by their names with underscores.
    """
    if not is_own(name):
        defaults = TASKS.find(name).defaults
        task = dict(defaults(given) if callable(defaults) else defaults)
        return leaving_defaults(given, task) | task
    made, place = _own_task(name, data), Path(name.rpartition(":")[0]).parent
    defaults = made.defaults
    own = {option: _from(place, value) for option, value in (defaults(given) if callable(defaults) else defaults).items()}
    return leaving_defaults(given, own, warms_up=made.required_depth is not None or made.network is not None) | own


def _refuse_options(name: str, read: frozenset[str], options: TaskOptions) -> None:
    """Refuses options that are set and that the task does not read."""
    read = read | ({"model", "head", "label_order"} if options.pretrained else {"model", "label_order"})
    for option in fields(TaskOptions):
        if option.name not in read and getattr(options, option.name) != getattr(DEFAULTS, option.name):
            flag = f"--{option.name.replace('_', '-')}"
            reason = "without --model it does nothing" if option.name == "head" else f"the task {name!r} does not read it"
            raise UserError(f"{flag} is set, and {reason}; leave it out")


def _from(place: Path, value: Any) -> Any:
    """A value of a task's defaults; a file that it names is looked for beside the task's own."""
    if isinstance(value, list | tuple):
        return tuple(_from(place, part) for part in value)
    return str(place / value) if isinstance(value, str) and is_own(value) else value


@cache
def _own_task(name: str, data: str | None) -> Task:
    make: Any = load_own(name, "task", "--task")
    file, _, function = name.rpartition(":")
    if not callable(make):
        raise UserError(f"{function!r} in {file} is no function; set --task to file.py:function")
    try:
        task = make(data)
    except UserError:
        raise
    except Exception as error:  # a person's own code can fail in any way
        advice = "" if data is not None else "; it was called without data: set --data if it needs some"
        raise UserError(f"{function} in {file} failed: {type(error).__name__}: {' '.join(str(error).split())}{advice}") from error
    if not isinstance(task, Task):
        raise UserError(f"{function} in {file} returned {type(task).__name__}, not a rl_skip.Task")
    return task
