"""Trains a network with a jump policy; `python train.py --help` lists every option."""

import sys

import tyro

from agents.config import TrainConfig
from agents.session import train
from rl_skip.errors import UserError


def main() -> int:
    """Reads the command line, trains, and returns the exit code: 2 for a mistake of the user's, told in one line."""
    try:
        train(tyro.cli(TrainConfig, config=(tyro.conf.OmitArgPrefixes,)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
