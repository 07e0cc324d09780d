"""The same seed gives the same parameters, bit for bit: again in the same process, and in another one."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from agents.agent import find_agent
from agents.options.config import NetworkConfig, PriceConfig, ScheduleConfig, TrainConfig
from agents.run.session import _set_up

TOP = Path(__file__).parents[3]
AGENTS = ("reinforce", "ppo", "maskable-ppo", "static", "shallow", "gumbel", "exits")
BUDGETED = ("static", "shallow", "gumbel")
UPDATES = 6


def digest(agent: str, task: str = "digits", seed: int = 0) -> str:
    """Of all parameters after a short run: two updates of warm-up, the rest with the agent."""
    torch.set_num_threads(1)
    kind = find_agent(agent).config_class
    small = {"num_envs": 16, "steps": 8, "minibatch": 64} if "ppo" in agent else {}
    config = TrainConfig(
        task=task,
        agent=agent,
        device="cpu",
        seed=seed,
        train_rows=64,
        network=NetworkConfig(layers=3, width=16, heads=2),
        schedule=ScheduleConfig(warmup_epochs=1, epochs=2, batch_size=32),
        pricing=PriceConfig(budget=0.7 if agent in BUDGETED else None),
        agent_config=kind(**small),
    )
    (session, _), found = _set_up(config, Console(quiet=True), None, None, None), hashlib.sha256()  # which seeds all that is drawn from
    for update in range(UPDATES):
        session.update(update)
    for _, module in sorted(session.learning.items()):
        for name, weight in sorted(module.state_dict().items()):
            found.update(name.encode() + weight.contiguous().numpy().tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, str]:
    """The digests that a fresh process finds."""
    code = "from tests.agents.run.test_determinism import AGENTS, digest\nfor agent in AGENTS: print(agent, digest(agent))"
    done = subprocess.run([sys.executable, "-c", code], cwd=TOP, capture_output=True, text=True, check=True)
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.parametrize("agent", AGENTS)
def test_the_same_seed_gives_the_same_parameters_here_and_in_another_process(agent: str, elsewhere: dict[str, str]) -> None:
    torch.rand(3)  # whatever was drawn before
    assert digest(agent) == digest(agent) == elsewhere[agent]


def test_another_seed_or_task_or_agent_gives_others() -> None:
    found = [digest("reinforce"), digest("reinforce", seed=1), digest("reinforce", task="hops"), digest("ppo")]
    assert len(set(found)) == len(found)
    assert digest("reinforce", task="hops") == found[2]
