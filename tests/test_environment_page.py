"""The page on the environment: its examples run as they stand there, and its recipe is the one that is measured."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import envs
from benchmarks.outside.recipe import maskable_ppo

PAGE = Path(__file__).resolve().parents[1].joinpath("docs", "environment.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


def run(mention: str, *changes: tuple[str, str]) -> dict[str, Any]:
    """Runs the one example that mentions `mention`, changed. Returns what it defined."""
    (block,) = [block for block in BLOCKS if mention in block]
    for old, new in changes:
        assert old in block
        block = block.replace(old, new)
    names: dict[str, Any] = {}
    exec(compile(block, f"environment.md, the example with {mention}", "exec"), names)
    return names


def test_a_step() -> None:
    names = run("gym.make(")
    assert names["env"].observation_space.contains(names["observation"]) and not names["terminated"]


def test_a_function_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    run("two_layers")
    assert "2000 validation rows" in capsys.readouterr().out


def test_the_recipe_is_the_one_that_is_measured() -> None:
    agent = run("MaskablePPO", ("300_000", "4_096"), ('print(envs.evaluate(agent, "hops-v0"))', ""))["agent"]
    same = maskable_ppo(4_096, 0)
    assert agent.num_timesteps == same.num_timesteps == 4_096
    for mine, other in zip(agent.policy.parameters(), same.policy.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    assert agent.policy.action_net.bias[0] > 3  # untrained agents do not begin so


def test_the_tables_name_every_option_and_feature() -> None:
    from rl_skip.core.features import ALWAYS, FEATURES

    for name in [*envs.EnvOptions.__dataclass_fields__, *FEATURES.names(), *(feature.name for feature in ALWAYS)]:
        assert f"`{name}`" in PAGE, name
