"""Measured costs of a network whose layers and decisions take a known time."""

import json

import pytest
import torch

import rl_skip
from rl_skip.core.fields import Fields
from rl_skip.core.measured_costs import BatchTimes, MeasuredCosts
from tests.rl_skip.timed import WIDTH, Clock, LeavingAfter, measured_clock, timed_stack

EXAMPLE = torch.zeros(3, WIDTH)


def test_layers_and_decisions_cost_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = measured_clock(monkeypatch)
    stack = timed_stack(clock, 12.0, 4.0, 4.0).train()
    costs = rl_skip.measure_costs(stack, (1, 4), example=EXAMPLE, policy=LeavingAfter(clock, 3, 2, milliseconds=6.0))
    assert stack.training
    one, four = costs.batches
    assert (one.batch_size, four.batch_size) == (1, 4)
    assert one.layers == pytest.approx((12.0, 4.0, 4.0))
    assert four.layers == pytest.approx((3.0, 1.0, 1.0))  # for each row
    assert (one.decision, four.decision) == pytest.approx((6.0, 1.5))
    assert one.break_even == pytest.approx(20 / (20 + 3 * 6))


def test_compute_is_a_share_of_the_time_of_all_layers() -> None:
    stack = timed_stack(Clock(), 0.0, 0.0, 0.0)
    stack.costs = MeasuredCosts([BatchTimes(1, (6.0, 3.0, 1.0), decision=0.5, readout=0.0)], stack.layer_costs.tolist())
    policy = LeavingAfter(Clock(), 3, 1)
    rollout = rl_skip.routed_forward(stack, policy, EXAMPLE)
    assert rollout.route.int().tolist() == [[1, 1, 0]] * 3
    torch.testing.assert_close(rollout.spent, torch.tensor([[0.6 + 0.05, 0.3 + 0.05, 0.0]] * 3))


def test_a_policy_folder_keeps_what_compute_is_a_share_of(tmp_path) -> None:
    stack = timed_stack(Clock(), 0.0, 0.0, 0.0)
    stack.costs = MeasuredCosts([BatchTimes(8, (6.0, 3.0, 1.0), 0.5, 0.25)], stack.layer_costs.tolist(), machine="a box")
    policy = rl_skip.JumpPolicy(LeavingAfter(Clock(), 3, 1).rules)
    rl_skip.save(tmp_path / "policy", policy, stack=stack, price=0.1, price_table=[(0.1, 0.5, 0.9), (0.2, 0.25, 0.8)])
    other = timed_stack(Clock(), 0.0, 0.0, 0.0)
    model = rl_skip.load(tmp_path / "policy", other)
    assert isinstance(other.costs, MeasuredCosts) and other.costs.to_json() == stack.costs.to_json()
    model(EXAMPLE)
    assert model.last is not None
    torch.testing.assert_close(model.last.compute, rl_skip.routed_forward(stack, model.policy, EXAMPLE, price=0.1).compute)
    card = (tmp_path / "policy" / "README.md").read_text()
    assert "Compute is time at batches of 8, 10 ms for each row at full depth on a box." in card
    assert "| 0.1 | 0.500 | 0.9000 | 5 |" in card


def test_costs_that_are_wrong_are_refused_by_name() -> None:
    costs = MeasuredCosts([BatchTimes(1, (6.0, 3.0), 0.5, 0.0)], (0.5, 0.5))
    described = json.loads(json.dumps(costs.to_json()))
    assert MeasuredCosts.read(Fields(described, "f"), 2).to_json() == described
    described["batches"][0]["layers"] = [0.0, 0.0]
    with pytest.raises(rl_skip.UserError, match=r"f: batches\[0\].layers"):
        MeasuredCosts.read(Fields(described, "f"), 2)
    with pytest.raises(rl_skip.UserError, match="batches of 1 rows, not of 7"):
        MeasuredCosts(costs.batches, costs.shares, batch_size=7)
    with pytest.raises(rl_skip.UserError, match="at least 1 row"):
        rl_skip.measure_costs(timed_stack(Clock(), 0.0, 0.0), (0,), example=EXAMPLE)
