"""`python train.py compare`: what `python -m rl_skip compare` does, after training baselines with --train-baselines, and shown in TensorBoard."""

import argparse
from collections.abc import Sequence

from agents.baselines.training import train_baselines
from agents.run.pictures import show_comparison
from rl_skip.cli.main import carry_out, compare_parser, compare_runs
from rl_skip.measure.compare.result import Comparison
from rl_skip.measure.runs import read_run

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Compares as the options say. Returns the exit code."""
    training = (
        "train the baselines first, those that are not finished, into RUN/baselines; takes long. Those that are trained for one budget are "
        "trained for each of --budgets and, where none is near it, for what the policy spends as exported"
    )
    return carry_out(compare_parser("train.py compare", _compare, training), arguments)


def _compare(options: argparse.Namespace) -> Comparison:
    if options.train_baselines:
        for run in options.run:
            read_run(run, allow_code=options.allow_code)
        for run in options.run:
            train_baselines(run, budgets=options.budgets, data=options.data, allow_code=options.allow_code)
    comparison, pictures = compare_runs(options)
    show_comparison(options.run[0], comparison, pictures)
    return comparison
