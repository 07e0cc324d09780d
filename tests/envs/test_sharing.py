"""Environments of one run hold its network and its rows once, and nothing else of each other."""

import gc
import weakref
from typing import Any

import pytest
import torch

from envs import LayerSkipEnv
from envs.sharing import shared_examples
from rl_skip import Examples
from rl_skip.core.costs import CostModel
from tests.envs.test_gymnasium import assert_same

HOPS = {"run": "hops-v0"}
CPU = torch.device("cpu")


def played(env: LayerSkipEnv, steps: int) -> list[Any]:
    """What an environment says from here on."""
    said = []
    for _ in range(steps):
        said.append(env.step(env.core.rules.max_jump // 2))
        if said[-1][2]:
            said.append(env.reset())
    return said


def test_a_run_s_network_and_rows_are_held_once() -> None:
    one, other = LayerSkipEnv(**HOPS), LayerSkipEnv(**HOPS)
    assert one.core.stack is other.core.stack and one.core.examples is other.core.examples
    assert LayerSkipEnv(**HOPS, split="validation").core.examples is not one.core.examples


def test_each_plays_as_if_it_were_alone() -> None:
    alone = LayerSkipEnv(**HOPS)
    alone.reset(seed=3)
    expected = played(alone, 20)
    one, other = LayerSkipEnv(**HOPS), LayerSkipEnv(**HOPS)
    other.price = 0.5
    one.reset(seed=3)
    other.reset(seed=4)
    for answer in expected:
        assert_same(answer, one.step(one.core.rules.max_jump // 2) if len(answer) == 5 else one.reset())
        played(other, 1)
    assert other.price == 0.5 != one.price


def test_a_network_that_was_changed_is_no_longer_the_run_s() -> None:
    one = LayerSkipEnv(**HOPS)
    weight = next(one.core.stack.parameters())
    before = weight.detach().clone()
    with torch.no_grad():
        weight += 1.0
    fresh = LayerSkipEnv(**HOPS)
    assert fresh.core.stack is not one.core.stack
    assert torch.equal(next(fresh.core.stack.parameters()), before)


def test_a_network_that_charges_something_else_is_no_longer_the_run_s() -> None:
    class Twice(CostModel):
        def layer(self, i: int, counted: torch.Tensor) -> torch.Tensor:
            return 2 * counted

    one = LayerSkipEnv(**HOPS)
    one.core.stack.costs = Twice()
    fresh = LayerSkipEnv(**HOPS)
    assert fresh.core.stack is not one.core.stack and type(fresh.core.stack.costs) is CostModel
    assert LayerSkipEnv(**HOPS).core.stack is fresh.core.stack


def test_networks_that_are_built_are_learned_apart(small: dict[str, Any]) -> None:
    one, other = LayerSkipEnv(**small), LayerSkipEnv(**small)
    assert one.core.stack is not other.core.stack and one.core.examples is other.core.examples


@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: x.double(), lambda x: x.reshape(4, 3, 1)], ids=["values", "type", "shape"])
def test_other_rows_are_not_shared(change: Any) -> None:
    x, labels = torch.arange(12.0).reshape(4, 3), torch.arange(4)
    held = shared_examples(Examples(x, labels), CPU)
    assert shared_examples(Examples(x.clone(), labels.clone()), CPU) is held
    assert shared_examples(Examples(change(x), labels), CPU) is not held
    assert shared_examples(Examples({"x": x}, labels), CPU) is not held
    assert shared_examples(Examples(x, labels.flip(0)), CPU) is not held


def test_nothing_outlives_the_last_environment() -> None:
    held = weakref.ref(shared_examples(Examples(torch.full((2, 2), 7.0), torch.zeros(2)), CPU))
    gc.collect()
    assert held() is None
