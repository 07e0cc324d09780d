"""A person's own task is tried on every split before a run begins: what fails on test data alone would be found after all of the training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

import torch
from torch import Tensor

from agents.run.checkpoints import load_random_states, random_states
from agents.run.learner import Learner
from rl_skip.core.batches import deployed
from rl_skip.core.errors import UserError
from rl_skip.core.forward import routed_forward
from rl_skip.core.inputs import lengths
from rl_skip.core.task import Examples, Split, Task

__all__ = ["try_splits"]

ROWS = 2


def try_splits(learner: Learner) -> None:
    """Loads each split, and takes a few of its rows through the network, the loss and the score. The run's random numbers stay as they are.

    Raises:
        UserError: naming the split and what is wrong with it: it cannot be loaded, its rows do not fit the network, or the task gives
            something else than a finite loss and a score in [0, 1] for each of them.
    """
    task, stack = learner.task, learner.stack
    with _random_numbers_kept(), deployed(stack):
        for split in get_args(Split):
            rows = _longest(task.load(split)).to(learner.device)
            try:
                outputs = routed_forward(stack, learner.full_route, rows.inputs).outputs
                fault = _fault(task, outputs, rows.labels)
            except UserError:
                raise
            except Exception as error:  # a person's own code can fail in any way
                fault = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if fault is not None:
                raise UserError(f"the {split} data of the task {task.name} cannot be used: {fault}; mend the task, or set --data")


def _fault(task: Task, outputs: Tensor, labels: Tensor) -> str | None:
    """What is wrong with what a task says of outputs and labels."""
    loss, score = task.loss(outputs, labels), task.score(outputs, labels)
    for name, value in (("loss", loss), ("score", score)):
        if value.shape != (len(labels),):
            return f"the {name} of {len(labels)} rows must have shape ({len(labels)},), got {tuple(value.shape)}"
    if not loss.isfinite().all():
        return f"the loss of a row must be finite, got {loss.tolist()}"
    if not ((score >= 0) & (score <= 1)).all():
        return f"the score of a row must lie in [0, 1], got {score.tolist()}"
    for name, value in (("prediction", task.prediction(outputs)), ("class", task.class_of(labels))):
        if len(value) != len(labels):
            return f"{len(labels)} rows must have a {name} each, got shape {tuple(value.shape)}"
    return None


def _longest(examples: Examples) -> Examples:
    """A few rows, the longest where they are padded."""
    reach = lengths(examples.inputs)
    return examples.take(slice(0, ROWS) if reach is None else reach.topk(min(ROWS, len(examples))).indices)


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    before = random_states()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        load_random_states(before)
