"""One replaced reward, score − price · compute², changes what is optimised, paid, shown and reported, each by exactly that.

Each number is computed again from score, price and compute of the same rollouts.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import agents.policy.ppo
import agents.policy.reinforce
import agents.run.session
import train
from agents.options.config import PriceConfig, TrainConfig
from agents.policy.ppo import Ppo, PpoConfig
from agents.run.forecast import Forecast
from agents.run.learner import Learner
from agents.run.session import Session
from envs import EnvOptions, SkipCore
from envs.core import Step
from rl_skip import JumpPolicy, Rollout, routed_forward
from rl_skip.cli.main import main
from rl_skip.core.reward import find_reward
from rl_skip.learning.exact import Leaving
from rl_skip.measure.compare.book import RouteBook
from rl_skip.measure.evaluation import all_routes, evaluate
from rl_skip.measure.runs import load_run, read_run
from rl_skip.nets.network import NetworkConfig
from rl_skip.tasks import load_task

PRICE, LAYERS = 0.3, 4
FILE = '''
from rl_skip import Reward


class Squared(Reward):
    formula = "score − price · compute²"

    def penalty(self, compute, price):
        return price * compute**2
'''
SMALL = ("--layers", str(LAYERS), "--width", "16", "--train-rows", "256", "--warmup-epochs", "1", "--epochs", "2", "--threads", "1")
PPO = ("--num-envs", "16", "--steps", "8", "--minibatch", "64", "--passes", "1")


def by_hand(score: float, price: float, compute: float) -> float:
    return score - price * compute * compute


def mean_by_hand(score: Tensor, price: Tensor | float, compute: Tensor) -> float:
    prices = torch.as_tensor(price).double().expand(len(score)).tolist()
    rows = zip(score.double().tolist(), prices, compute.double().tolist(), strict=True)
    return sum(by_hand(*row) for row in rows) / len(score)


@dataclass
class Trained:
    """A finished run, and the rewards and gradients of its updates."""

    folder: Path
    rewards: list[float] = field(default_factory=list)
    """Mean reward of each update's rollout, by hand."""
    gradients: list[tuple[list[Tensor], list[Tensor]]] = field(default_factory=list)
    """Of REINFORCE: the policy's gradient at each update, and the same by hand."""
    exits: bool = True
    """Whether its rows go on or leave; else they jump."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("own") / "own.py"
    file.write_text(FILE)
    return f"{file}:Squared"


FLAGS = {"exact": (), "sampled": ("--no-readouts",), "ppo": ("--agent", "ppo", *PPO)}


@pytest.fixture(scope="module", params=FLAGS)
def trained(request: pytest.FixtureRequest, own: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    module = agents.policy.ppo if request.param == "ppo" else agents.policy.reinforce
    run = Trained(tmp_path_factory.mktemp("runs") / request.param, exits=request.param != "sampled")
    shown, loss = module.rollout_metrics, agents.policy.reinforce.reinforce_loss
    shown_exits, leaving = agents.policy.reinforce.exit_metrics, agents.policy.reinforce.leaving
    foresee, learns = agents.run.session.foresee, list[JumpPolicy]()

    def forgotten(session: Session) -> Forecast:
        """The updates that are tried to foresee how long all take leave no trace in the run."""
        forecast = foresee(session)
        run.rewards.clear()
        run.gradients.clear()
        return forecast

    def watched_metrics(rollout: Rollout, score: Tensor, price: Tensor, *rest: Any) -> dict[str, Tensor]:
        run.rewards.append(mean_by_hand(score, price, rollout.compute))
        return shown(rollout, score, price, *rest)

    def watched_loss(rollout: Rollout, score: Tensor, price: Tensor, advantage: Callable[..., Tensor], *rest: Any) -> Any:
        found = loss(rollout, score, price, advantage, *rest)
        run.gradients.append((_gradient(found.policy, advantage), _gradient(_loss_by_hand(rollout, score, price), advantage)))
        return found

    def watched_leaving(policy: JumpPolicy, observations: Tensor) -> Leaving:
        learns[:] = [policy]
        return leaving(policy, observations)

    def watched_exits(leaves: Leaving, expected: Tensor, score: Tensor, name: str, compute: Tensor, price: Tensor) -> dict[str, Tensor]:
        earned = _exits_by_hand(score, compute, price)
        expectation = (leaves.probability * earned).sum(dim=1).mean()
        run.rewards.append(expectation.item())
        parameters = list(learns[0].parameters())
        run.gradients.append(tuple(list(torch.autograd.grad(loss, parameters, retain_graph=True)) for loss in (-expected.mean(), -expectation)))  # type: ignore[arg-type]
        return shown_exits(leaves, expected, score, name, compute, price)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agents.run.session, "foresee", forgotten)
        patch.setattr(agents.policy.reinforce, "leaving", watched_leaving)
        patch.setattr(agents.policy.reinforce, "exit_metrics", watched_exits)
        patch.setattr(module, "rollout_metrics", watched_metrics)
        patch.setattr(agents.policy.reinforce, "reinforce_loss", watched_loss)
        words = ["--reward", own, "--price", str(PRICE), *SMALL, *FLAGS[request.param]]
        assert train.main([*words, "--out", str(run.folder)]) == 0
    yield run


def _gradient(loss: Tensor, advantage: Any) -> list[Tensor]:
    policy = advantage.__self__.learner.policy
    return list(torch.autograd.grad(loss, list(policy.parameters()), retain_graph=True))


def _loss_by_hand(rollout: Rollout, score: Tensor, price: Tensor) -> Tensor:
    """−log π of each route, times what it earned more than the mean of the input's other three."""
    computes = rollout.spent.sum(dim=1)
    earned = [by_hand(float(score[n]), float(price[n]), float(computes[n])) for n in range(len(score))]
    total = torch.zeros(())
    for n in range(len(score)):
        first = n - n % 4
        others = [earned[m] for m in range(first, first + 4) if m != n]
        total = total - rollout.log_probs[n].sum() * (earned[n] - sum(others) / 3)
    return total / len(score)


def _exits_by_hand(score: Tensor, compute: Tensor, price: Tensor) -> Tensor:
    """(B, L), what each row earns that leaves after each layer."""
    rows = zip(score.tolist(), compute.tolist(), price.tolist(), strict=True)
    return torch.tensor([[by_hand(s, p, c) for s, c in zip(scores, computes, strict=True)] for scores, computes, p in rows])


@pytest.mark.parametrize("trained", ["exact", "sampled"], indirect=True)
def test_reinforce_follows_its_gradient(trained: Trained) -> None:
    assert len(trained.gradients) == 8
    for found, expected in trained.gradients:
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert any(float(gradient.abs().max()) > 1e-3 for found, _ in trained.gradients for gradient in found)


@dataclass
class Episodes:
    """What the environments of a core paid, summed until each episode's end, beside what it is worth by hand."""

    paid: list[float] = field(default_factory=list)
    expected: list[float] = field(default_factory=list)

    def add(self, rewards: Tensor, steps: list[Step]) -> None:
        """`rewards` (K, N), of K steps from a reset on."""
        sums = torch.zeros(rewards.shape[1], dtype=torch.float64)
        for paid, step in zip(rewards.double(), steps, strict=True):
            sums += paid
            if step.ends is not None:
                ends = step.ends
                self.paid += sums[ends.rows].tolist()
                rows = zip(ends.scores.tolist(), ends.prices.tolist(), ends.compute.tolist(), strict=True)
                self.expected += [by_hand(*row) for row in rows]
                sums[ends.rows] = 0


def test_the_buffer_of_ppo_holds_what_episodes_earn(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(
        agent="ppo",
        agent_config=PpoConfig(num_envs=16, steps=12, minibatch=64, passes=1),
        network=NetworkConfig(LAYERS, 16),
        pricing=PriceConfig(reward=own, price_range=(0.05, 1.0)),
    )
    agent = Ppo(Learner(config, load_task("digits"), torch.device("cpu")))
    steps: list[Step] = []
    step = SkipCore.step

    def watched(core: SkipCore, jumps: Tensor) -> Step:
        steps.append(step(core, jumps))
        return steps[-1]

    monkeypatch.setattr(SkipCore, "step", watched)
    agent.update(agent.learner.warmup_updates)
    buffer, episodes = agent.model.rollout_buffer, Episodes()
    episodes.add(torch.as_tensor(buffer.rewards), steps)
    assert len(episodes.paid) > 16
    assert episodes.paid == pytest.approx(episodes.expected, abs=1e-5)
    assert agent.model.gamma == 1.0, "an episode is worth the sum of its rewards"


def test_the_environment_pays_it(trained: Trained, own: str) -> None:
    built = EnvOptions(task="digits", layers=LAYERS, width=16, price_range=(0.05, 1.0), reward=own)
    for options in (EnvOptions(run=str(trained.folder), allow_code=True), built):
        core = options.core(8)
        core.reset(range(8))
        generator, steps = torch.Generator().manual_seed(0), []
        for _ in range(20):
            steps.append(core.step(torch.randint(LAYERS, (8,), generator=generator)))
        episodes = Episodes()
        episodes.add(torch.stack([step.rewards for step in steps]), steps)
        assert len(episodes.paid) > 30 and episodes.paid == pytest.approx(episodes.expected, abs=1e-5)


def test_tensorboard_shows_it(trained: Trained) -> None:
    events = EventAccumulator(str(trained.folder))
    events.Reload()
    shown = [event.value for event in events.Scalars("rollout/ep_rew_mean") if event.step > 4]  # 4 updates of warm-up
    assert len(shown) == 8 and shown == pytest.approx(trained.rewards, abs=1e-5)  # so few updates are shown each
    model, task = load_run(trained.folder, allow_code=True)
    rows = task.load("validation")
    right = model(rows.inputs).argmax(dim=1).eq(rows.labels)
    last = events.Scalars("eval/reward")[-1]
    assert last.step > 12 and last.value == pytest.approx(mean_by_hand(right, PRICE, model.last.compute), abs=1e-5)
    lines = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["eval/reward"] for line in lines if "eval/reward" in line][-1] == pytest.approx(last.value)
    assert "score − price · compute²" in (trained.folder / "policy" / "README.md").read_text()


def test_evaluation_and_reports_say_it(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    model, task = load_run(trained.folder, allow_code=True)
    test = task.load("test")

    def earned(route: Tensor | None = None) -> float:
        if route is None:
            outputs, compute = model(test.inputs), model.last.compute
        else:
            rollout = routed_forward(model.stack, route, test.inputs)
            outputs, compute = rollout.outputs, rollout.compute
        return mean_by_hand(outputs.argmax(dim=1).eq(test.labels), PRICE, compute)

    reward = read_run(trained.folder, allow_code=True).reward
    measured = evaluate(model.stack, model.policy, task, test, price=PRICE, reward=reward)
    report = json.loads((trained.folder / "report.json").read_text())
    fixed = torch.zeros(LAYERS).bool().index_fill(0, torch.tensor(report["best fixed route"]["layers"]), True)
    capsys.readouterr()
    assert main(["eval", str(trained.folder), "--allow-code", "--json", "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    with torch.no_grad():
        assert [measured.reward, report["policy"]["reward"], told["reward"]] == pytest.approx([earned()] * 3)
        assert report["full depth"]["reward"] == pytest.approx(earned(torch.ones(LAYERS).bool()))
        assert report["best fixed route"]["reward"] == pytest.approx(earned(fixed))


def test_oracle_and_comparison_report_it(trained: Trained, own: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, task = load_run(trained.folder, allow_code=True)
    routes = all_routes(LAYERS, model.rules.allow_exit)
    tried: dict[str, list[list[tuple[float, float]]]] = {}  # score and compute on each route, of each row
    for split in ("validation", "test"):
        rows = task.load(split)
        tried[split] = []
        for route in routes:
            with torch.no_grad():
                rollout = routed_forward(model.stack, route, rows.inputs)
            tried[split].append(list(zip(rollout.outputs.argmax(dim=1).eq(rows.labels).float().tolist(), rollout.compute.tolist(), strict=True)))

    def earned(split: str, price: float) -> list[list[float]]:
        return [[by_hand(score, price, compute) for score, compute in rows] for rows in tried[split]]

    book = RouteBook(model.stack, task, task.load("test"), allow_exit=model.rules.allow_exit)
    # below 1 a right answer is worth any compute, and both rewards want the cheapest; above, which compute it is worth differs at these prices
    for price in (PRICE, 4.5) if trained.exits else (PRICE, 1.6, 3.6):
        score, compute = book.best_by_row(price, find_reward(own))
        found = [by_hand(row[0], price, row[1]) for row in zip(score.tolist(), compute.tolist(), strict=True)]
        assert found == pytest.approx([max(row) for row in zip(*earned("test", price), strict=True)])
        if price > 1:
            assert not torch.equal(compute, book.best_by_row(price)[1]), "the two rewards must want different routes"

    capsys.readouterr()
    assert main(["compare", str(trained.folder), "--allow-code", "--json", "--device", "cpu"]) == 0
    (operating,) = json.loads(capsys.readouterr().out)["operating"]
    rewards, test = operating["rewards"], task.load("test")
    best_by_row = [max(row) for row in zip(*earned("test", PRICE), strict=True)]
    means = {split: [sum(row) / len(row) for row in earned(split, PRICE)] for split in tried}
    right = model(test.inputs).argmax(dim=1).eq(test.labels)
    assert rewards["policy"] == pytest.approx(mean_by_hand(right, PRICE, model.last.compute))
    assert rewards["oracle"] == pytest.approx(sum(best_by_row) / len(best_by_row))
    best = max(means["validation"])
    candidates = [means["test"][n] for n, mean in enumerate(means["validation"]) if mean > best - 1e-6]
    assert any(rewards["fixed"] == pytest.approx(candidate) for candidate in candidates)
    gap = (rewards["policy"] - rewards["fixed"]) / (rewards["oracle"] - rewards["fixed"])
    assert operating["gap_closed"]["value"] == pytest.approx(gap, abs=1e-4)
