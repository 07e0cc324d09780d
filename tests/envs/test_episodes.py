"""What the host knows of the rows is what has happened on the device, and nothing of a step depends on how it was played before."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from torch import nn

from envs.episodes import Episodes
from rl_skip import JumpRules, ModuleStack, ObservationLayout, RoutingState
from tests.envs.test_core import KINDS, core_of

MODES = [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP]


def jumps_of(core: Any, steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, core.rules.max_jump + 1, (core.num_envs,), generator=generator) for _ in range(steps)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("jumps", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_host_knows_where_each_row_is(kind: str, jumps: bool, mode: AutoresetMode) -> None:
    core = core_of(kind, allow_exit=True, jumps=jumps)
    core.autoreset_mode = mode
    core.reset()
    layers = torch.arange(core.stack.depth)
    for chosen in jumps_of(core, 25):
        core.step(chosen)
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


@pytest.mark.parametrize("kind", KINDS)
def test_rows_at_different_layers_are_each_asked_by_the_readout_of_their_own(kind: str) -> None:
    core = core_of(kind, allow_exit=True)
    stack = core.stack
    stack.add_readouts()
    assert stack.readouts is not None
    with torch.no_grad():
        for i, readout in enumerate(stack.readouts.each):
            readout.linear.bias.fill_(float(i))  # type: ignore[union-attr, operator]
    core.reset()
    core.step(torch.tensor([0, 2, 1, 0, 2, 0, 1]))  # after layers 1, 3, 2, 1, …
    state = core.state
    assert state is not None
    rows = torch.tensor([4, 0, 2, 6])
    with torch.no_grad():
        said = state.said(rows)
        alone = [stack.read(stack.readouts.each[i], state.carry, rows[n : n + 1]) for n, i in enumerate([3, 1, 2, 2])]
    torch.testing.assert_close(said, torch.cat(alone))


@pytest.mark.parametrize("scope", ["state", "input"])
def test_rows_of_a_new_episode_go_on_as_if_all_had_begun_there(scope: str) -> None:
    core = core_of("padded", scope=scope)
    core.reset()
    core.step(torch.ones(core.num_envs, dtype=torch.long))
    state, rows, others = core.state, torch.tensor([1, 4]), torch.tensor([0, 2, 3, 5, 6])
    assert state is not None
    untouched, new = state.observe(others), core.examples.take(slice(20, 22)).inputs
    with torch.no_grad():
        state.begin(rows.numpy(), new, torch.full((2,), 0.1))
        fresh = RoutingState(core.stack, core.rules, new, 0.1)
        fresh.visit(0)
        torch.testing.assert_close(state.observe(rows), fresh.observe(torch.arange(2)))
    assert torch.equal(state.observe(others), untouched) and state.next_layer[rows].tolist() == fresh.next_layer.tolist()


def test_a_new_episode_leaves_the_inputs_of_the_last_alone() -> None:
    stack = ModuleStack(nn.Identity(), [nn.Linear(8, 8) for _ in range(4)], nn.Identity(), width=8, layer_flops=[1e3] * 4)
    rules, x = JumpRules.reaching(ObservationLayout(8, 4), scope="input"), torch.randn(3, 8)
    kept = x.clone()
    with torch.no_grad():
        Episodes(stack, rules, x, torch.zeros(3)).begin(np.array([1]), torch.zeros(1, 8), torch.zeros(1))
    assert torch.equal(x, kept)
