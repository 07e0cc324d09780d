"""Batches: every row once, in its place again, and the modules as they were."""

import pytest
import torch
from torch import Tensor, nn

from rl_skip.core.batches import deployed, in_batches
from rl_skip.core.task import Examples


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_row_comes_back_in_its_place(padded: bool, batch_size: int) -> None:
    numbers = torch.arange(10)
    mask = torch.arange(6) < torch.tensor([3, 6, 1, 2, 5, 4, 1, 6, 2, 3]).unsqueeze(1)
    examples = Examples({"row": numbers, "attention_mask": mask} if padded else numbers, numbers + 100)
    widths: list[int] = []

    def run(batch: Examples, rows: Tensor) -> tuple[Tensor, Tensor]:
        found = batch.inputs["row"] if isinstance(batch.inputs, dict) else batch.inputs
        widths.append(batch.inputs["attention_mask"].shape[1] if isinstance(batch.inputs, dict) else 0)
        assert torch.equal(found, rows) and torch.equal(batch.labels, rows + 100)
        return found, torch.stack([found, found**2], dim=1)

    first, second = in_batches(run, examples, batch_size)
    assert torch.equal(first, numbers) and torch.equal(second, torch.stack([numbers, numbers**2], dim=1))
    assert widths == sorted(widths)


def test_modules_are_in_evaluation_mode_without_gradients_and_then_as_they_were() -> None:
    one, other = nn.Linear(1, 1).train(), nn.Linear(1, 1).eval()
    with pytest.raises(RuntimeError), deployed(one, other):
        assert not one.training and not other.training and not torch.is_grad_enabled()
        raise RuntimeError
    assert one.training and not other.training and torch.is_grad_enabled()
