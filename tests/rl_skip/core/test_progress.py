"""Who listens is told how far passes over rows have come, and nobody else."""

import torch

from rl_skip.core.batches import in_batches
from rl_skip.core.progress import begin_stage, listening
from rl_skip.core.task import Examples


class Heard:
    def __init__(self) -> None:
        self.said: list[object] = []

    def begin_stage(self, title: str) -> None:
        self.said.append(title)

    def rows_done(self, done: int, rows: int) -> None:
        self.said.append((done, rows))


def a_pass() -> None:
    examples = Examples(torch.zeros(10, 2), torch.zeros(10, dtype=torch.long))
    in_batches(lambda batch, rows: (batch.labels,), examples, 4)


def test_a_pass_tells_the_innermost_listener_after_every_batch() -> None:
    outer, inner = Heard(), Heard()
    a_pass()
    with listening(outer):
        begin_stage("first")
        with listening(inner):
            a_pass()
        begin_stage("last")
    begin_stage("nobody")
    assert outer.said == ["first", "last"]
    assert inner.said == [(4, 10), (8, 10), (10, 10)]
