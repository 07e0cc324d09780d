"""The benchmark of the environment plays what it says."""

from typing import Any

import numpy as np
import pytest

from benchmarks.environment import RandomLegal, calls_of
from envs import LayerSkipVectorEnv

SMALL = {"task": "digits", "layers": 6, "width": 16, "heads": 2}


@pytest.mark.parametrize("more", [{}, {"allow_exit": True}, {"max_jump": 1}])
def test_every_jump_is_legal_and_all_legal_ones_are_taken(more: dict[str, Any]) -> None:
    env = LayerSkipVectorEnv(8, **SMALL, **more)
    env.reset(seed=0)
    chosen, taken = RandomLegal(env.core.rules, 8), np.zeros_like(env.core.legal)
    for _ in range(80):
        masks, layers = env.action_masks(), env.core.state.at.copy()  # type: ignore[union-attr]
        jumps = chosen()
        assert masks[np.arange(8), jumps].all()
        taken[layers, jumps] = True
        env.step(jumps)
    waits = env.core.rules.choices
    assert np.array_equal(taken, env.core.legal & np.array(waits)[:, None])


def test_row_layers_are_those_of_the_routes() -> None:
    env = LayerSkipVectorEnv(8, **SMALL)
    env.reset(seed=0)
    chosen = RandomLegal(env.core.rules, 8)
    ran = int(env.core.state.route.sum())  # type: ignore[union-attr]
    for _ in range(10):
        calls = calls_of(env, chosen, 1)
        ends = env._ends
        ended = 0 if ends is None else int(ends.route.sum())
        now = int(env.core.state.route.sum())  # type: ignore[union-attr]
        assert sum(rows for _, rows in calls) == now + ended - ran
        ran = now
