"""Each alarm sounds on a run that deserves it, says what to change, and none sounds on a run that goes well."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
from torch import Tensor, nn

from agents.agent import TrainedRun, find_agent
from agents.options.config import PolicyConfig, PriceConfig, ScheduleConfig, TrainConfig
from agents.policy.reinforce import Reinforce, ReinforceConfig
from agents.run.learner import Learner
from agents.run.remarks import CurveWatch, remarks
from agents.run.report import final_report
from agents.run.session import train
from rl_skip.core.dial import PriceTable
from rl_skip.core.task import Examples, Split, Task
from rl_skip.measure.evaluation import Evaluation
from rl_skip.nets.network import NetworkConfig

UPDATES = 60
FROZEN = {"entropy_start": 1e-6, "entropy_end": 1e-7}
"""An entropy bonus that keeps no policy from freezing."""


def schedule(**changes: Any) -> ScheduleConfig:
    return ScheduleConfig(warmup_epochs=0, epochs=UPDATES, batch_size=96, full_depth_weight=0.0, **changes)


def watched(agent: Reinforce) -> dict[str, str]:
    """What is said of the curves of a run, with a point at each update and ten validations."""
    watch = CurveWatch(agent.learner)
    for update in range(UPDATES):
        entry = {name: float(value.detach()) for name, value in agent.update(update).items()} | agent.metrics() | {"step": update + 1.0}
        if (update + 1) % (UPDATES // 10) == 0:
            at = agent.evaluate(agent.learner.validation)
            entry |= {"eval/reward": at.reward, "eval/price": at.price}
        watch.see(entry)
    return watch.said


def run_of(known_optimum: Any, pricing: PriceConfig, rate: float = 1e-2, kind: type[Reinforce] = Reinforce, **options: Any) -> Reinforce:
    config = ReinforceConfig(**options)
    return kind(known_optimum.learner(pricing, UPDATES, schedule=schedule(policy_learning_rate=rate), agent_config=config))


# ------------------------------------------------------------------------------------------------------------ curves


def test_a_run_that_goes_well_has_no_alarm(known_optimum: Any) -> None:
    for pricing in (PriceConfig(price_range=(0.1, 1.0)), PriceConfig(budget=0.7, budget_price=0.4)):
        assert watched(run_of(known_optimum, pricing)) == {}


def test_a_policy_that_froze_at_once_is_told_of(known_optimum: Any) -> None:
    said = watched(run_of(known_optimum, PriceConfig(price=0.3), rate=3.0, **FROZEN))
    assert said["entropy"].startswith("alarm: the policy stopped exploring early: its entropy is ")
    assert said["entropy"].endswith("raise --entropy-start, now 1e-06, or lower --policy-learning-rate, now 3")
    assert said["gradient"].startswith("alarm: the policy has stopped learning: the norm of its gradient is ")
    assert set(said) == {"entropy", "gradient"}


class Indifferent(Reinforce):
    """All routes earn it the same."""

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return torch.ones(len(labels))


def test_where_all_routes_earn_the_same_the_gradient_vanishes(known_optimum: Any) -> None:
    options: dict[str, Any] = {"entropy_start": 0.1, "entropy_end": 1e-9}
    said = watched(run_of(known_optimum, PriceConfig(price=0.0), kind=Indifferent, **options))
    assert "entropy" not in said, "it is as large as it can be"
    assert said["gradient"].endswith("where not, all routes earn the same: raise --price, now 0")


class Backwards(Reinforce):
    """Learns what earns the least, by and by."""

    def advantage(self, rollout: Any, reward: Tensor, to_go: Tensor) -> Tensor:
        return -super().advantage(rollout, reward, to_go)


def test_a_reward_that_falls_again_and_again_is_told_of_once(known_optimum: Any) -> None:
    agent = run_of(known_optimum, PriceConfig(price=0.3))
    watch, rewards = CurveWatch(agent.learner), [0.9, 0.89, 0.88, 0.87, 0.86, 0.85, 0.84]
    said = [watch.see({"step": step, "eval/reward": reward, "eval/price": 0.3}) for step, reward in enumerate(rewards)]
    assert [len(new) for new in said] == [0, 0, 0, 0, 1, 0, 0]
    told = "alarm: the reward fell in each of the last 4 validations, from 0.900 to 0.860; lower --policy-learning-rate, now 0.01, "
    assert said[4][0].startswith(told)
    for harmless in ([0.9, 0.89, 0.88, 0.885, 0.87, 0.86], [0.9, 0.8999, 0.8998, 0.8997, 0.8996]):
        watch = CurveWatch(agent.learner)
        assert not any(watch.see({"step": step, "eval/reward": reward, "eval/price": 0.3}) for step, reward in enumerate(harmless))
    watch = CurveWatch(agent.learner)
    assert not any(watch.see({"step": n, "eval/reward": reward, "eval/price": 0.1 + 0.1 * n}) for n, reward in enumerate(rewards)), "as prices rise"


def test_a_run_that_unlearns_is_told_of(known_optimum: Any) -> None:
    agent = run_of(known_optimum, PriceConfig(price=0.3), rate=3e-3, kind=Backwards)
    assert "reward" in watched(agent)


def test_a_budget_that_is_not_reached_is_told_of(known_optimum: Any) -> None:
    stuck = PriceConfig(budget=0.35, budget_integral=1e-6, budget_penalty=0.0)
    said = watched(run_of(known_optimum, stuck))
    assert set(said) == {"budget"}
    assert said["budget"].startswith("alarm: the budget of 0.35 is out of reach: the sampled routes still cost 0.")
    assert said["budget"].endswith("at the end of the training; raise --epochs"), "60 updates are few"


def test_a_budget_at_the_highest_price_is_told_of_before_the_end(known_optimum: Any) -> None:
    learner = known_optimum.learner(PriceConfig(budget=0.35), UPDATES)
    watch = CurveWatch(learner)
    assert watch.see({"step": 20, "budget/violation": 0.2, "budget/price": 9.0}) == []
    (said,) = watch.see({"step": 30, "budget/violation": 0.2, "budget/price": 10.0})
    assert said.endswith("still cost 0.550 at the highest price there is; raise --budget, or --budget-integral, with which the price rises faster")


def test_a_run_that_goes_on_says_nothing_twice(known_optimum: Any) -> None:
    learner = known_optimum.learner(PriceConfig(budget=0.35), UPDATES)
    told = {"step": 30, "budget/violation": 0.2, "budget/price": 10.0}
    watch = CurveWatch(learner, [told])
    assert set(watch.said) == {"budget"} and watch.see({**told, "step": 31}) == []


# ------------------------------------------------------------------------------------------- terminal and TensorBoard


def load_sums(split: Split) -> Examples:
    x = torch.randn(32, 5, 3, generator=torch.Generator().manual_seed(len(split)))
    return Examples(x, (x.sum(dim=(1, 2)) > 0).long())


def test_alarms_are_on_the_terminal_in_the_report_and_among_the_texts(tmp_path: Path) -> None:
    task = Task("sums", ("minus", "plus"), load_sums, embedding=lambda width: nn.Linear(3, width), tokens=5)
    agent = find_agent("reinforce").config_class(policy_epochs=1, **FROZEN)  # type: ignore[call-arg]
    learning = ScheduleConfig(warmup_epochs=1, epochs=30, batch_size=16, policy_learning_rate=3.0)
    small: dict[str, Any] = {"network": NetworkConfig(layers=3, width=8, heads=2), "schedule": learning, "agent_config": agent}
    said = io.StringIO()
    train(TrainConfig(out=str(tmp_path / "run"), **small), Console(file=said, width=400), task=task)
    alarm = "alarm: the policy stopped exploring early"
    assert said.getvalue().count(alarm) == 2, "as it happens, and below the table"
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={TENSORS: 0})
    events.Reload()
    for tag in ("remarks/while_training", "remarks/end"):
        texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors(f"{tag}/text_summary")]
        assert sum(alarm in text for text in texts) == 1


# ------------------------------------------------------------------------------- a policy that does the same with all


def reported(agent: Reinforce, folder: Path, price: float) -> list[str]:
    run = TrainedRun(folder, Console(file=io.StringIO()), None, 0.0, own_stack=True)  # type: ignore[arg-type]
    said: list[str] = final_report(agent.learner, PriceTable(), price, run)["remarks"]
    return said


class Hasty(Reinforce):
    """Takes the longest jump, whatever it sees."""

    def update(self, update: int) -> dict[str, Tensor]:
        metrics = super().update(update)
        with torch.no_grad():
            self.learner.policy.fc_out.bias[-1] = 100.0
        return metrics


@pytest.mark.parametrize(("kind", "rate"), [(Reinforce, 3.0), (Hasty, 1e-2)])
def test_a_policy_that_froze_is_an_alarm_where_others_earn_more(known_optimum: Any, tmp_path: Path, kind: type[Reinforce], rate: float) -> None:
    agent = run_of(known_optimum, PriceConfig(price=0.05), rate=rate, kind=kind, **FROZEN)
    for update in range(UPDATES):
        agent.update(update)
    (said,) = reported(agent, tmp_path, 0.05)
    assert said.startswith("alarm: the policy ") and "60 updates with the policy are too few to learn in; raise --epochs" in said
    if kind is Hasty:
        assert said.startswith("alarm: the policy runs nothing but the first and the last layer: full depth earns 0.")


def test_a_policy_that_tells_types_apart_has_no_remark(known_optimum: Any, tmp_path: Path) -> None:
    agent = run_of(known_optimum, PriceConfig(price=0.3), rate=3e-2)
    for update in range(UPDATES):
        agent.update(update)
    assert reported(agent, tmp_path, 0.3) == []


def evaluation(*routes: tuple[int, ...], price: float = 0.1) -> Evaluation:
    route = torch.tensor(routes).bool()
    right = torch.ones(len(routes))
    return Evaluation(price, route, right, route.float().mean(dim=1), right.long())


LEARNED = ScheduleConfig(warmup_epochs=0, epochs=100, batch_size=32)
"""Four hundred updates, on the tiny learner's rows."""
ALL, FIRST = (1, 1, 1, 1), (1, 0, 0, 0)


def test_a_policy_that_tells_rows_apart_is_not_remarked(tiny_learner: Any, tmp_path: Path) -> None:
    assert remarks(tiny_learner(), evaluation(ALL, (1, 0, 0, 1)), 1.0, [], tmp_path) == []


@pytest.mark.parametrize(
    ("schedule", "pricing", "dial", "why"),
    [
        (LEARNED, PriceConfig(), [(0.3, 1.0), (0.5, 0.6), (0.9, 0.2)], "its price of 0.1 is too low; at 0.5 it spends 0.600: python -m rl_skip eval"),
        (ScheduleConfig(warmup_epochs=0, epochs=1, batch_size=32), PriceConfig(), [(0.3, 1.0)], "4 updates with the policy are too few to learn in"),
        (LEARNED, PriceConfig(price=0.1), [], "makes skipping pay; raise --price, now 0.1"),
        (LEARNED, PriceConfig(budget=0.9), [], "makes skipping pay; lower --budget, now 0.9"),
    ],
)
def test_a_policy_that_skips_nothing_is_told_why(
    tiny_learner: Any, tmp_path: Path, schedule: ScheduleConfig, pricing: PriceConfig, dial: list[tuple[float, float]], why: str
) -> None:
    learner = tiny_learner(schedule=schedule, pricing=pricing)
    points = [{"price": price, "compute": compute} for price, compute in dial]
    (said,) = remarks(learner, evaluation(ALL, ALL), 1.0, points, tmp_path)
    assert said.startswith("alarm: the policy skips nothing: ") and why in said


@pytest.mark.parametrize(
    ("full", "dial", "why"),
    [
        (1.0, [], "all layers are no better"),
        (1.04, [(0.05, 0.6)], "its price of 0.1 is too high for more; at 0.05 it spends 0.600"),
        (1.04, [], "4.0 points better on these rows, which at its price of 0.1 does not pay; lower --price-range, now 0.003 1"),
        (1.5, [], "50.0 points better on these rows; lower --price-range"),
    ],
)
def test_a_policy_that_runs_the_least_is_told_why(tiny_learner: Any, tmp_path: Path, full: float, dial: list[tuple[float, float]], why: str) -> None:
    learner = tiny_learner(schedule=LEARNED, policy=PolicyConfig(allow_exit=True))
    points = [{"price": price, "compute": compute} for price, compute in dial]
    (said,) = remarks(learner, evaluation(FIRST, FIRST), full, points, tmp_path)
    assert said.startswith("the policy runs nothing but the first layer: ") and why in said
    (said,) = remarks(tiny_learner(schedule=LEARNED), evaluation((1, 0, 0, 1)), full, points, tmp_path)
    assert said.startswith("the policy runs nothing but the first and the last layer: ")


def test_rows_on_one_route_are_an_alarm_where_something_earns_more(tiny_learner: Any, tmp_path: Path) -> None:
    learner: Learner = tiny_learner(schedule=LEARNED)
    (said,) = remarks(learner, evaluation((1, 0, 1, 1)), 1.0, [], tmp_path, {"full depth": 0.02, "one threshold": 0.03})
    assert said == (
        "alarm: the policy sends every row along one route, layers 0, 2, 3: one threshold earns 0.030 more at its price of 0.1; "
        "it may have frozen before it knew the others; raise --entropy-start, now 0.1"
    )
    (said,) = remarks(learner, evaluation((1, 0, 1, 1)), 1.0, [], tmp_path)
    assert said.startswith("the policy sends every row along one route, layers 0, 2, 3: nothing that was tried earns more, and a fixed route")
