"""What the host knows of the rows is what has happened on the device, and nothing of a step depends on how it was played before."""

from typing import Any

import pytest
import torch
from gymnasium.vector import AutoresetMode

from tests.envs.test_core import KINDS, core_of

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]


def jumps_of(core: Any, steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, core.rules.max_jump + 1, (core.num_envs,), generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_host_knows_where_each_row_is(kind: str, mode: AutoresetMode) -> None:
    core = core_of(kind, allow_exit=True)
    core.autoreset_mode = mode
    core.reset()
    layers = torch.arange(core.stack.depth)
    for jumps in jumps_of(core, 25):
        core.step(jumps)
        state = core.state
        assert state is not None
        last = (state.route * layers).amax(dim=1)  # the last layer that ran
        assert torch.equal(state.position, last) and state.at.tolist() == last.tolist()
        assert ((state.spent > 0) >= state.route).all() and (state.spent[~state.route] == 0).all()
        assert [n for n, layer in enumerate(state.heading) if layer == core.stack.depth] == core.over.nonzero()[0].tolist()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_jumps_give_the_same_to_the_last_bit(kind: str, mode: AutoresetMode) -> None:
    played = []
    for _ in range(2):
        core = core_of(kind)
        core.autoreset_mode = mode
        said = [core.reset()]
        for jumps in jumps_of(core, 25):
            step = core.step(jumps)
            said += [step.observations, step.rewards, step.terminated, core.drawn, core.masks()]
        played.append(said)
    assert all(torch.equal(one, other) for one, other in zip(*played, strict=True))
