"""Training for measured time: what is measured before the first update stays, through checkpoints too."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.options.config import PriceConfig, TrainConfig
from agents.run.learner import Learner
from rl_skip.core.errors import UserError
from rl_skip.core.measured_costs import BatchTimes, MeasuredCosts
from rl_skip.tasks import load_task


def made(**options: Any) -> Learner:
    config = replace(TrainConfig(train_rows=64), pricing=PriceConfig(**options))
    return Learner(config, load_task("digits"), torch.device("cpu"))


def test_compute_is_of_time_as_it_was_measured_when_the_run_began() -> None:
    assert not isinstance(made().stack.costs, MeasuredCosts)
    begun = made(cost="latency", cost_batch=2)
    measured = begun.stack.costs
    assert isinstance(measured, MeasuredCosts) and measured.charged.batch_size == 2
    assert len(measured.charged.layers) == begun.stack.depth and measured.charged.decision > 0
    begun.stack.costs = MeasuredCosts([BatchTimes(2, (1.0,) * begun.stack.depth, 0.5, 0.25)], measured.shares)
    resumed = made(cost="latency", cost_batch=2)
    resumed.load_state_dict(begun.state_dict())
    assert isinstance(resumed.stack.costs, MeasuredCosts)
    assert resumed.stack.costs.to_json() == begun.stack.costs.to_json()


def test_runs_of_before_were_trained_for_operations(tmp_path: Path) -> None:
    described = TrainConfig().to_json()
    assert described["pricing"].pop("cost") == "flops"
    del described["pricing"]["cost_batch"]
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert TrainConfig.from_json(tmp_path).pricing == PriceConfig()


@pytest.mark.parametrize(("options", "named"), [({"cost": "joules"}, "--cost"), ({"cost_batch": 0}, "--cost-batch")])
def test_what_cannot_be_measured_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        PriceConfig(**options)
