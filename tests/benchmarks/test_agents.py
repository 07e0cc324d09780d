"""Agents of others on Hops: what is played is what routes earn, and what was measured is read and not trained again."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import agents
from benchmarks.outside.play import Array, optimum, play
from rl_skip import routed_forward
from rl_skip.measure.runs import load_run

ROWS = 500


def test_an_agent_that_always_does_the_same_earns_what_its_route_does() -> None:
    model, task = load_run("hops-v0")
    examples, rules = task.load("test").take(slice(0, ROWS)), model.rules

    def every_other(observations: Array, masks: Array, begun: Array) -> Array:
        first = observations[:, -3] == 0  # after layer 0, where episodes begin
        assert masks.shape == (ROWS, 8) and (begun == begun[0]).all()
        return np.where(first, 2, 7)

    found = play(every_other, ROWS)
    route = torch.tensor([True, False, False, True, False, False, False, False])
    with torch.no_grad():
        right = task.score(routed_forward(model.stack, route, examples.inputs).outputs, examples.labels).mean()
        decision = rules.decision_flops / float(model.stack.begin(examples.inputs).full_flops[0])
    assert found["accuracy"] == pytest.approx(float(right))
    assert found["compute"] == pytest.approx(2 / 8 + 2 * decision, abs=1e-6)
    assert found["reward"] == pytest.approx(found["accuracy"] - 0.1 * found["compute"], abs=1e-6)


def test_what_was_measured_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    best = optimum()["reward"]
    found = {"agent": "ppo", "seed": 1, "steps": 2048, "seconds": 3, "reward": best / 2, "accuracy": 0.5, "compute": 0.3}
    (tmp_path / "ppo-1000-1.json").write_text(json.dumps(found))
    monkeypatch.setattr(agents, "make_environment", lambda *_: pytest.fail("it was measured already"))
    monkeypatch.setattr(sys, "argv", ["agents.py", "--agents", "ppo", "cleanrl-ppo", "--steps", "1000", "--seeds", "1", "--out", str(tmp_path)])
    agents.main()
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == f"| ppo | sb3 | 1 | 2,048 | 3 | {best / 2:.3f} | 50.0% | 50.0% | 0.300 |"
    assert "cleanrl-ppo: left out, set --cleanrl" in told.err


def test_an_agent_with_a_memory_is_played_with_it() -> None:
    from benchmarks.outside import sb3

    choose = sb3.Asked(sb3.made("recurrent-ppo", seed=0))
    observations, masks = np.zeros((3, 35), dtype=np.float32), np.ones((3, 8), dtype=bool)
    remembered = []
    for begun in (True, False, True):
        assert choose(observations, masks, np.full(3, begun)).shape == (3,)
        remembered.append(np.asarray(choose.memory))
    assert not np.array_equal(remembered[0], remembered[1])
    np.testing.assert_allclose(remembered[2], remembered[0], atol=1e-6)  # begun anew
