"""The README's Python examples run as they stand there."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import rl_skip
from rl_skip.nets.network import NetworkConfig, build_network, network_to_json
from rl_skip.tasks import load_task

BLOCKS = re.findall(r"^```python\n(.*?)^```", Path(__file__).resolve().parents[1].joinpath("README.md").read_text(encoding="utf-8"), re.M | re.S)


def run(mention: str) -> dict[str, object]:
    """Runs the one example that mentions `mention`. Returns what it defined."""
    (block,) = [block for block in BLOCKS if mention in block]
    names: dict[str, object] = {}
    exec(compile(block, f"README, the example with {mention}", "exec"), names)
    return names


def test_loading_an_exported_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    task, config = load_task("digits"), NetworkConfig(layers=4, width=16, heads=2)
    stack = build_network(config, task.embedding, task.tokens, 10)
    policy = rl_skip.JumpPolicy(rl_skip.JumpRules.reaching(rl_skip.ObservationLayout(16, 4)))
    network = network_to_json(config, task.embedding, task.tokens, 10)
    table = [(1.0, 0.3, 0.8), (0.1, 0.6, 0.9)]
    rl_skip.save("runs/digits-reinforce-0/policy", policy, stack=stack, network=network, price=0.5, price_table=table)

    names = run("rl_skip.load(")

    model = names["model"]
    assert isinstance(model, rl_skip.SkipModel)
    assert model.budget == pytest.approx(0.4)
    assert 0.1 < model.price < 1.0
    rollout = rl_skip.routed_forward(stack.eval(), policy.eval(), task.load("test").inputs, price=model.price)
    torch.testing.assert_close(names["logits"], rollout.outputs)


def test_ten_lines_of_ppo() -> None:
    from stable_baselines3 import PPO

    agent = run("make_sb3_env")["agent"]

    assert isinstance(agent, PPO)
    assert agent.num_timesteps >= 10_000
    assert len(agent.ep_info_buffer or ()) > 0


def test_the_drop_in() -> None:
    torch.manual_seed(0)

    names = run("policy_loss")

    jmp = names["jmp"]
    assert isinstance(jmp, rl_skip.SkipLayer)
    assert jmp.logs["jumps"].shape == (32, 6)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in jmp.policy.fc_out.parameters())


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    (block,) = [block for block in BLOCKS if block.startswith("# my_task.py")]
    tmp_path.joinpath("my_task.py").write_text(block, encoding="utf-8")
    images, labels = np.zeros((20, 32, 32), dtype=np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "my_data.npz", images=images, labels=labels)

    task = load_task(f"{tmp_path / 'my_task.py'}:my_task", str(tmp_path / "my_data.npz"))

    assert [len(task.load(split)) for split in ("train", "validation", "test")] == [12, 4, 4]
    network = build_network(NetworkConfig(layers=3, width=8, heads=2), task.embedding, task.tokens, len(task.classes))
    assert rl_skip.routed_forward(network, torch.ones(3, dtype=torch.bool), task.load("test").inputs).outputs.shape == (4, 2)
