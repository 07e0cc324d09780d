"""Trains a network with a jump policy, `python train.py --help` lists every option; `python train.py compare` sets finished runs beside baselines."""

import difflib
import io
import os
import re
import reprlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from types import NoneType
from typing import Any, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from agents.agent import AgentConfig
from agents.baselines.compare import main as compare
from agents.options.config import TrainConfig
from agents.run.checkpoints import Stopped
from agents.run.launch import accelerate_defaults, joined, launched, leave
from agents.run.session import train
from rl_skip.cli.streams import check_words, outlasting_readers
from rl_skip.cli.values import plain
from rl_skip.core.errors import UserError
from rl_skip.core.processes import ALONE, LostProcess, Processes
from rl_skip.tasks import defaults_of

FRAME, EDGE = re.compile(r"[─╭╮╰╯-]{3,}"), "│"
"""What tyro draws between the parts of a message, and at their sides."""
LONGEST_REASON = 300
NUMBERS = ConstructorRegistry()
"""How tyro reads what is given for an option."""


@NUMBERS.primitive_rule
def _number(option: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Numbers, also pairs and those that may be left open, are read as by `rl-skip`: Python takes digits of every script, and underscores."""
    kinds = get_args(option.type) or (option.type,)
    kind, pair, open_to_none = kinds[0], get_origin(option.type) is tuple and kinds == (float, float), kinds[1:] == (NoneType,)
    if kind not in (int, float) or not (len(kinds) == 1 or pair or open_to_none):
        return None

    def read(words: list[str]) -> Any:
        if open_to_none and words == [str(None)]:
            return None
        values = [_as_number(kind, word) for word in words]
        return tuple(values) if pair else values[0]

    def is_one(value: Any) -> bool:
        return isinstance(value, int | float if kind is float else int)

    return PrimitiveConstructorSpec(
        nargs=2 if pair else 1,
        metavar=" ".join([kind.__name__.upper()] * (2 if pair else 1)) if not open_to_none else f"{{None}}|{kind.__name__.upper()}",
        instance_from_str=read,
        is_instance=lambda value: (
            isinstance(value, tuple) and len(value) == 2 and all(map(is_one, value)) if pair else is_one(value) or (open_to_none and value is None)
        ),
        str_from_instance=lambda value: [str(part) for part in (value if pair else (value,))],
    )


def _as_number(kind: type[int] | type[float], word: str) -> int | float:
    try:
        return kind(plain(word))
    except ValueError:
        raise ValueError(f"expected a {'whole ' if kind is int else ''}number in the digits 0 to 9, got {reprlib.repr(word)}") from None


def given_on(arguments: Sequence[str]) -> dict[str, str]:
    """The given flags, by their names with underscores, each with the word after it."""
    given = {}
    for flag, following in pairwise([*arguments, "--"]):
        if flag.startswith("--"):
            name, separator, value = flag.removeprefix("--").partition("=")
            given[name.replace("-", "_")] = value if separator else following if not following.startswith("--") else ""
    return given


def read_options(arguments: Sequence[str]) -> TrainConfig:
    """The options on the command line; what is not given is the task's default or, with --resume, as in that run."""
    check_words(arguments)
    given = given_on(arguments)
    if "resume" in given:
        default = TrainConfig.from_json(given["resume"], "allow_code" in given)
        if "agent" in given:  # whose options would be others
            default.refuse_changes(replace(default, agent=given["agent"], agent_config=AgentConfig()), only="agent")
    else:
        task, agent = given.get("task", TrainConfig.task), given.get("agent", TrainConfig.agent)
        defaults = defaults_of(task, given.get("data"), given)
        default = TrainConfig(task=task, agent=agent).with_defaults(defaults, f"the defaults of the task {task}")
        default = default.with_defaults(accelerate_defaults(), "accelerate launch")
    if given.keys() & {"epochs", "warmup_epochs"} and "resume" not in given:  # whoever says how many passes gets them
        default = replace(default, schedule=replace(default.schedule, max_updates=None))
    if "feature" in given:  # what is given takes the place of the default, and is not added to it
        default = replace(default, policy=replace(default.policy, feature=()))
    config = _parsed(arguments, default)
    if "resume" not in given:
        config.refuse_idle(given)
    return config


def _parsed(arguments: Sequence[str], default: TrainConfig) -> TrainConfig:
    """The options; what cannot be read is one line, where tyro draws a frame around several."""
    said = io.StringIO()
    try:
        with redirect_stderr(said), NUMBERS:
            return tyro.cli(TrainConfig, args=arguments, default=default, config=(tyro.conf.OmitArgPrefixes, tyro.conf.UseAppendAction))
    except SystemExit as done:
        if done.code != 2:
            raise
        parts = [part for part in FRAME.split(said.getvalue().replace(EDGE, " ")) if part.strip()]
        reason = " ".join(" ".join(parts[1:2] or parts).split()).removeprefix("Error parsing ")
        raise UserError(f"{reason[:LONGEST_REASON].rstrip('.')}; {_nearest(arguments, default)}python train.py --help lists the options") from None


def _nearest(arguments: Sequence[str], default: TrainConfig) -> str:
    """Which flag may have been meant by the first that there is not; nothing where all are known, or none is near."""
    groups = [group for group in vars(default).values() if is_dataclass(group)]
    known = {option.name for group in (default, *groups) for option in fields(group)}
    unknown = next((name for name in given_on(arguments) if name not in known and name.removeprefix("no_") not in known), "")
    near = difflib.get_close_matches(unknown, known, 1)
    return f"is --{near[0].replace('_', '-')} meant? " if near else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the command line says, or compares where its first word is `compare`.

    Returns:
        The exit code: 2 for a user's mistake, printed in one line; 1 where the training
        led to numbers that are not finite, or a part of the report failed after it; 130 after Ctrl-C
        and 143 after SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["compare"]:
        return _compare(arguments[1:])
    with outlasting_readers(loss="warning"):  # the result is the run folder
        return _train(arguments)


def _compare(arguments: Sequence[str]) -> int:
    processes = launched()
    if not processes.several:
        return compare(arguments)
    if processes.first:
        print(f"error: compare runs in one process, and {processes.count} were started; start it with python train.py compare", file=sys.stderr)
    return 2


def _train(arguments: Sequence[str]) -> int:
    processes = ALONE
    try:
        with joined() as processes:
            with _heard(processes):
                options = read_options(arguments)
            train(options)
        return 0
    except (UserError, OSError) as error:
        line, code = f"error: {' '.join(str(error).split())}", error.exit_code if isinstance(error, UserError) else 2
    except Stopped as stopped:
        line, code = str(stopped), stopped.exit_code
    except KeyboardInterrupt:
        line, code = "stopped before the training began", 130
    except LostProcess as lost:
        reason = " ".join(str(lost).split())[:200]
        line, code = f"error: another of the {processes.count} processes ended without a word ({reason}); go on with --resume", 1
    except Exception:
        if not processes.may_tell():
            return 1
        raise
    if processes.may_tell():
        print(line, file=sys.stderr)
    return code


@contextmanager
def _heard(processes: Processes) -> Iterator[None]:
    """Within it, nothing is printed but by the first process; where it prints its help, or what is wrong, the others wait for it."""
    if processes.first:
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    except SystemExit:
        with suppress(LostProcess):
            processes.from_first(None)
        raise


if __name__ == "__main__":
    leave(main())
