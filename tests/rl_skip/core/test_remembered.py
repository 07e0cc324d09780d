"""What a policy saw of each row at its last look, held against a slow loop over single rows."""

import torch
from torch import Tensor

from rl_skip.core.remembered import Remembered

ROWS = 5


class Slow:
    """For each row, the values at every look, by the layer after which it was."""

    def __init__(self) -> None:
        self.looks: list[dict[int, Tensor]] = [{} for _ in range(ROWS)]

    def look(self, rows: Tensor, layers: Tensor, value: Tensor) -> Tensor:
        found = []
        for row, layer, now in zip(rows.tolist(), layers.tolist(), value, strict=True):
            earlier = [at for at in self.looks[row] if at < layer]
            found.append(self.looks[row][max(earlier)] if earlier else torch.zeros(2))
            self.looks[row][layer] = now
        return torch.stack(found)


def test_looks_together_and_one_by_one_give_what_was_given_after_an_earlier_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    fast, slow = Remembered(torch.zeros(1, 2), ROWS), Slow()
    everyone = torch.arange(ROWS)
    for layer in range(8):
        rows = everyone if layer % 3 == 0 else torch.randperm(ROWS, generator=generator)[:3].sort().values
        value = torch.randn(len(rows), 2, generator=generator)
        layers = torch.full_like(rows, layer)
        together = fast.look_together(None if len(rows) == ROWS else rows, layer, value)
        assert together.equal(slow.look(rows, layers, value))
        again, some = torch.randn(2, 2, generator=generator), rows[:2]  # looking twice after a layer changes the next look, not this one
        assert fast.look(some, layers[:2], again).equal(slow.look(some, layers[:2], again))


def test_a_fork_and_rows_that_begin_anew_do_not_touch_the_others() -> None:
    seen, everyone = Remembered(torch.zeros(1, 1), ROWS), torch.arange(ROWS)
    given = torch.arange(1.0, ROWS + 1).unsqueeze(1)
    seen.look_together(None, 0, given)
    fork = seen.fork()
    fork.look_together(torch.tensor([1]), 1, torch.tensor([[9.0]]))
    seen.forget(torch.tensor([2]))
    assert seen.look(everyone, torch.full_like(everyone, 2), given).squeeze(1).tolist() == [1.0, 2.0, 0.0, 4.0, 5.0]
    assert fork.look(everyone, torch.full_like(everyone, 2), given).squeeze(1).tolist() == [1.0, 9.0, 3.0, 4.0, 5.0]
    assert given.squeeze(1).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
