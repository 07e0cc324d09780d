"""Trains a network with a jump policy, `python train.py --help` lists every option; `python train.py compare` sets finished runs beside baselines."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import tyro

from agents.agent import AgentConfig
from agents.baselines.compare import main as compare
from agents.options.config import TrainConfig
from agents.run.checkpoints import Stopped
from agents.run.session import train
from rl_skip.cli.streams import outlasting_readers
from rl_skip.core.errors import UserError
from rl_skip.tasks import defaults_of


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
    given = given_on(arguments)
    if "resume" in given:
        default = TrainConfig.from_json(given["resume"])
        if "agent" in given:  # whose options would be others
            default.refuse_changes(replace(default, agent=given["agent"], agent_config=AgentConfig()), only="agent")
    else:
        task, agent = given.get("task", TrainConfig.task), given.get("agent", TrainConfig.agent)
        defaults = defaults_of(task, given.get("data"), given)
        default = TrainConfig(task=task, agent=agent).with_defaults(defaults, f"the defaults of the task {task}")
    if given.keys() & {"epochs", "warmup_epochs"} and "resume" not in given:  # whoever says how many passes gets them
        default = replace(default, schedule=replace(default.schedule, max_updates=None))
    if "feature" in given:  # what is given takes the place of the default, and is not added to it
        default = replace(default, policy=replace(default.policy, feature=()))
    return tyro.cli(TrainConfig, args=arguments, default=default, config=(tyro.conf.OmitArgPrefixes, tyro.conf.UseAppendAction))


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the command line says, or compares where its first word is `compare`.

    Returns:
        The exit code: 2 for a user's mistake, printed in one line; 1 where the training
        led to numbers that are not finite, or a part of the report failed after it; 130 after Ctrl-C
        and 143 after SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["compare"]:
        return compare(arguments[1:])
    with outlasting_readers():
        return _train(arguments)


def _train(arguments: Sequence[str]) -> int:
    try:
        train(read_options(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("stopped before the training began", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
