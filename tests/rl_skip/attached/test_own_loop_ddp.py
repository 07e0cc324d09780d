"""A policy that learns in two processes."""

from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

import rl_skip
from tests.rl_skip.attached.plain_network import Mlp

BUDGET = rl_skip.SkipConfig(budget=0.5, policy_hidden=8)
DATA = torch.arange(24.0).view(8, 3).sin()
LABELS = (DATA[:, 0] > 0).long()


def step(model: nn.Module, called: nn.Module, handle: rl_skip.LearningHandle, rows: slice) -> None:
    torch.manual_seed(1)  # of the prices
    model.zero_grad()
    handle.loss(called(DATA[rows]), LABELS[rows]).backward()


def attached() -> tuple[nn.Module, rl_skip.LearningHandle]:
    model = Mlp()
    handle = rl_skip.attach(model, BUDGET, layers="blocks", example=DATA)
    assert isinstance(handle, rl_skip.LearningHandle)
    torch.manual_seed(0)
    nn.init.normal_(handle.policy.fc_out.weight)  # type: ignore[union-attr]
    return model.train(), handle


def work(rank: int, folder: str, find_unused: bool) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, handle = attached()
    called = nn.parallel.DistributedDataParallel(model, find_unused_parameters=find_unused)
    for _ in range(3):
        step(model, called, handle, slice(4 * rank, 4 * rank + 4))
    called(DATA)  # which gives all processes the steering of the first
    torch.save({"gradients": [parameter.grad for parameter in model.parameters()], "price": handle.price}, f"{folder}/{rank}")
    distributed.barrier()  # gloo ends a process whose peer has gone while something is still on its way
    distributed.destroy_process_group()


@pytest.mark.parametrize("find_unused", [False, True])
def test_two_processes_have_the_mean_of_their_gradients_and_one_price(find_unused: bool, tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path), find_unused), nprocs=2)
    first, second = (torch.load(tmp_path / str(rank)) for rank in (0, 1))
    assert first["price"] == second["price"]
    halves = []
    for rank in (0, 1):
        model, handle = attached()
        for n in range(3):
            step(model, model, handle, slice(0, 4) if n < 2 else slice(4 * rank, 4 * rank + 4))  # the first process alone steers the price
        halves.append([parameter.grad for parameter in model.parameters()])
    for mine, other, *parts in zip(first["gradients"], second["gradients"], *halves, strict=True):
        assert torch.equal(mine, other)
        torch.testing.assert_close(mine, (parts[0] + parts[1]) / 2, rtol=1e-4, atol=1e-6)
