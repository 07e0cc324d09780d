"""Trains a network with a jump policy, `python train.py --help` lists every option; `python train.py compare` sets finished runs beside baselines."""

import argparse
import sys
from collections.abc import Sequence

import tyro

from agents.checkpoints import Stopped
from agents.compare import main as compare
from agents.config import TrainConfig
from agents.presets import for_task
from agents.session import train
from rl_skip.errors import UserError


def read_options(arguments: Sequence[str]) -> TrainConfig:
    """The options on the command line; what is not given is the task's preset or, with --resume, as in that run."""
    beforehand = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--resume", "--task", "--model", "--tune"):
        beforehand.add_argument(flag, nargs="?")
    known = beforehand.parse_known_args(arguments)[0]
    default = for_task(known.task, known.model, known.tune) if known.resume is None else TrainConfig.from_json(known.resume)
    return tyro.cli(TrainConfig, args=arguments, default=default, config=(tyro.conf.OmitArgPrefixes,))


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the command line says, or compares where its first word is `compare`.

    Returns:
        The exit code: 2 for a mistake of the user's, told in one line; 130 after Ctrl-C and 143 after SIGTERM.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["compare"]:
        return compare(arguments[1:])
    try:
        train(read_options(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("stopped before the training began", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
