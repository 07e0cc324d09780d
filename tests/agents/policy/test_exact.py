"""The exact gradient of when to leave: against enumeration, finite differences and sampling; and that one update is one pass."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import rl_skip
from agents.agent import AGENTS
from agents.options.config import PolicyConfig, PriceConfig, ScheduleConfig, TrainConfig
from agents.policy.reinforce import Reinforce, ReinforceConfig
from agents.run.learner import Learner
from rl_skip import JumpPolicy, JumpRules, ModuleStack, ObservationLayout, PolicyRouter, UserError, load_task
from rl_skip.cli.main import main as rl_skip_main
from rl_skip.core.exits import EveryExit, exit_pass
from rl_skip.core.features import CONFIDENCES, FEATURES
from rl_skip.core.forward import routed_forward
from rl_skip.learning.exact import leaving
from rl_skip.nets.network import NetworkConfig
from train import main, read_options

WIDTH, DEPTH, CLASSES, PRICE = 6, 4, 3, 0.3


def make() -> tuple[ModuleStack, JumpPolicy, torch.Tensor]:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH)]
    stack = ModuleStack(nn.Linear(4, WIDTH), layers, nn.Linear(WIDTH, CLASSES), width=WIDTH, layer_flops=[2000.0] * DEPTH)
    readouts = stack.add_readouts(torch.randn(2, 4))
    layout = ObservationLayout(WIDTH, DEPTH, 0.01, 1.0, CONFIDENCES, readouts.flops)
    policy = JumpPolicy(JumpRules.reaching(layout, allow_exit=True, jumps=False, hidden=24))
    policy.fc_out.weight.data.normal_(std=0.5)
    return stack, policy, torch.randn(5, 4)


def test_probabilities_and_computes_are_those_of_all_routes_enumerated() -> None:
    stack, policy, x = make()
    with torch.no_grad():
        exits = exit_pass(stack, policy, x, torch.full((5,), PRICE))
        leaves = leaving(policy, exits.observations)
        torch.testing.assert_close(leaves.probability.sum(dim=1), torch.ones(5))
        for k in range(DEPTH):
            route = torch.arange(DEPTH) <= k
            rollout = routed_forward(stack, PolicyRouter(policy, route=route), x, price=PRICE)
            torch.testing.assert_close(leaves.probability[:, k], rollout.log_probs.sum(dim=1).exp())
            torch.testing.assert_close(exits.compute[:, k], rollout.compute)
            torch.testing.assert_close(exits.answers[k], rollout.outputs)


def test_features_read_of_all_layers_at_once_are_those_read_after_each() -> None:
    """Of answers for each token too, and with the bundled features of the state."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH)]
    stack = ModuleStack(nn.Linear(4, WIDTH), layers, nn.Linear(WIDTH, CLASSES), width=WIDTH, layer_flops=[2000.0] * DEPTH)
    x = torch.randn(5, 7, 4)
    readouts = stack.add_readouts(x[:2])
    layout = ObservationLayout(WIDTH, DEPTH, 0.01, 1.0, (*CONFIDENCES, FEATURES.find("hidden"), FEATURES.find("answer")), readouts.flops)
    policy = JumpPolicy(JumpRules.reaching(layout, allow_exit=True, jumps=False))
    observed = []
    for at_once in (True, False):
        router = EveryExit(policy)
        assert router.at_once
        router.at_once = at_once
        with torch.no_grad():
            routed_forward(stack, router, x, price=torch.linspace(0.02, 0.5, 5))
            observed.append(router.observations())
    assert observed[0].shape == (5, DEPTH - 1, layout.size)
    torch.testing.assert_close(observed[0], observed[1])


def in_double() -> tuple[JumpPolicy, torch.Tensor, torch.Tensor]:
    """A policy, what it sees of five rows after each layer but the last, (5, L - 1, S), and what each exit earns them, (5, L)."""
    stack, policy, x = make()
    with torch.no_grad():
        observations = exit_pass(stack, policy, x, torch.full((5,), PRICE)).observations.double()
    reward = torch.rand(5, DEPTH, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return policy.double(), observations, reward


def expected(policy: JumpPolicy, observations: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
    return (leaving(policy, observations).probability * reward).sum(dim=1).mean()


def test_the_gradient_is_that_of_finite_differences() -> None:
    policy, observations, reward = in_double()
    exact = torch.autograd.grad(expected(policy, observations, reward), list(policy.parameters()))
    step = 1e-5
    for parameter, gradient in zip(policy.parameters(), exact, strict=True):
        differences = torch.zeros_like(gradient).view(-1)
        with torch.no_grad():
            for n, value in enumerate(parameter.view(-1).tolist()):
                ends = []
                for moved in (value + step, value - step):
                    parameter.view(-1)[n] = moved
                    ends.append(expected(policy, observations, reward).item())
                parameter.view(-1)[n] = value
                differences[n] = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(gradient.view(-1), differences, rtol=1e-4, atol=1e-9)
        assert gradient.abs().max() > 1e-4


def test_the_gradient_is_the_mean_of_a_hundred_thousand_sampled_ones() -> None:
    """REINFORCE, decision by decision: log π of what was drawn times what the row then earned; a hundred means of a thousand."""
    policy, observations, reward = in_double()
    blocks, samples, generator = 100, 1_000, torch.Generator().manual_seed(4)
    rows = torch.randint(5, (blocks, samples), generator=generator)
    alive, earned = torch.ones(blocks, samples, dtype=torch.bool), reward[rows, DEPTH - 1]
    taken, log_probs = [], []
    for k in range(DEPTH - 1):
        legal = policy(observations[:, k])[:, [0, DEPTH - 1 - k]]  # go on, leave
        log_prob = legal - legal.logsumexp(dim=1, keepdim=True)  # (5, 2)
        leaves = alive & (torch.rand(blocks, samples, generator=generator) < log_prob[:, 1].exp()[rows])
        taken.append(torch.where(alive, leaves.long(), -1))
        log_probs.append(log_prob)
        earned = torch.where(leaves, reward[rows, k], earned)
        alive = alive & ~leaves
    estimates = []
    for block in range(blocks):
        total = torch.zeros((), dtype=torch.float64)
        for action, log_prob in zip(taken, log_probs, strict=True):
            decided = action[block] >= 0
            total = total + (log_prob[rows[block][decided], action[block][decided]] * earned[block][decided]).sum()
        estimate = torch.autograd.grad(total / samples, list(policy.parameters()), retain_graph=True)
        estimates.append(torch.cat([part.flatten() for part in estimate]))
    sampled, error = torch.stack(estimates).mean(dim=0), torch.stack(estimates).std(dim=0) / math.sqrt(blocks)
    exact = torch.cat([part.flatten() for part in torch.autograd.grad(expected(policy, observations, reward), list(policy.parameters()))])
    assert ((sampled - exact).abs() <= 5 * error + 1e-12).all()
    learns = error > 0
    assert ((sampled - exact).abs() <= 2 * error)[learns].double().mean() > 0.85
    assert exact.norm() > 10 * error.norm() and learns.double().mean() > 0.5, "the error is small enough to tell"


def small(**options: object) -> TrainConfig:
    network = NetworkConfig(layers=4, width=16, heads=2)
    schedule = ScheduleConfig(warmup_epochs=1, epochs=1)
    return TrainConfig(**{"network": network, "schedule": schedule, "policy": PolicyConfig(readouts=True, jumps=False)} | options)  # type: ignore[arg-type]


def test_one_update_calls_each_layer_once_and_moves_network_readouts_and_policy() -> None:
    learner = Learner(small(), load_task("digits"), torch.device("cpu"))
    agent = Reinforce(learner)
    assert agent.exact
    learner.end_warm_up()
    before = {name: tensor.clone() for part in (learner.stack, learner.policy) for name, tensor in part.state_dict().items()}
    calls: list[int] = []
    for i, layer in enumerate(learner.stack.layers):  # type: ignore[arg-type]
        layer.register_forward_hook(lambda *_, i=i: calls.append(i))
    metrics = agent.update(learner.warmup_updates + 1)
    assert calls == [0, 1, 2, 3]
    after = {name: tensor for part in (learner.stack, learner.policy) for name, tensor in part.state_dict().items()}
    for group in ("layers.0.", "layers.3.", "readouts.each.0.", "readouts.each.2.", "head.", "fc_in", "fc_out"):
        assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith(group)), group
    assert 0 < metrics["rollout/compute"] <= 1.2 and metrics["layers/run_rate_0"] == pytest.approx(1.0)


def test_the_policy_learns_from_the_finished_network_what_the_best_threshold_cannot_beat() -> None:
    learner = Learner(small(agent_config=ReinforceConfig(score="probability")), load_task("digits"), torch.device("cpu"))
    agent = Reinforce(learner)
    for update in range(learner.warmup_updates, learner.updates):
        agent.update(update)

    def earned(price: float) -> float:
        with torch.no_grad():
            exits = exit_pass(learner.stack.eval(), learner.policy, learner.train.inputs, torch.full((len(learner.train),), price))
            scores = torch.stack([agent.score(outputs, learner.train.labels) for outputs in exits.answers], dim=1)
            chance = leaving(learner.policy, exits.observations).probability
            return float((chance * (scores - price * exits.compute)).sum(dim=1).mean())

    prices = (0.01, 0.1, 0.5)
    before = [earned(price) for price in prices]
    agent.learn_from_finished_network()
    assert all(later > earlier for later, earlier in zip(map(earned, prices), before, strict=True))


@pytest.mark.parametrize("agent", ["reinforce", "shallow", "static", "gumbel", "exits"])
def test_policy_and_baselines_learn_from_the_same_teacher(agent: str) -> None:
    budget = {"pricing": PriceConfig(budget=0.5)} if agent in ("shallow", "static", "gumbel") else {}
    learner = Learner(small(agent=agent, **budget), load_task("digits"), torch.device("cpu"))
    trained = AGENTS.find(agent)(learner)
    anew = not AGENTS.find(agent).warms_up
    assert (learner.warmup_updates == 0) == anew, "all others begin where the warm-up ended"
    said = routed_forward(learner.stack.eval(), learner.full_route, learner.train.inputs).outputs.detach()
    learner.end_warm_up()
    if anew:  # which gets it from the run's start
        learner.make_teacher()
    assert learner.teacher is not None
    torch.testing.assert_close(learner.teacher, said)
    for readout in learner.stack.readouts.each:  # type: ignore[union-attr]
        assert all(torch.equal(mine, own) for mine, own in zip(readout.parameters(), learner.stack.readout().parameters(), strict=True))  # type: ignore[union-attr]
    outputs, batch, rows = said[:5] + 0.1, learner.train.take(slice(0, 5)), torch.arange(5)
    labels = torch.nn.functional.cross_entropy(outputs, batch.labels)
    lesson = -(said[:5].softmax(dim=1) * outputs.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(learner.taught_loss(outputs, batch, rows), labels + lesson)
    seen: list[torch.Tensor] = []
    taught = learner.teacher_of
    learner.teacher_of = lambda rows: (seen.append(rows), taught(rows))[1]  # type: ignore[method-assign]
    trained.update(learner.warmup_updates)
    assert seen and torch.equal(seen[0], learner.batch_rows(learner.warmup_updates)), "the lessons of its own rows"


def test_the_exact_gradient_is_refused_where_rows_jump() -> None:
    config = small(agent_config=ReinforceConfig(gradient="exact"), policy=PolicyConfig(readouts=True))
    with pytest.raises(UserError, match="set --readouts --no-jumps, or --gradient sampled"):
        Reinforce(Learner(config, load_task("digits"), torch.device("cpu")))


@pytest.mark.parametrize(
    ("agent", "options"),
    [
        ("examples/own_agent.py:MovingAverage", {}),
        ("reinforce", {"baseline": "value"}),
        ("reinforce", {"baseline": "value", "imitation_weight": 1.0}),
    ],
)
def test_what_needs_sampled_routes_samples_them(agent: str, options: dict[str, object]) -> None:
    kind = AGENTS.find(agent)
    learner = Learner(small(agent=agent, agent_config=kind.config_class(**options)), load_task("digits"), torch.device("cpu"))
    trained = kind(learner)
    assert isinstance(trained, Reinforce) and not trained.exact
    learner = Learner(small(agent=agent, agent_config=kind.config_class(gradient="exact", **options)), load_task("digits"), torch.device("cpu"))
    with pytest.raises(UserError, match="the exact gradient .*, or --gradient sampled"):
        kind(learner)


@pytest.mark.parametrize("agent", ["reinforce", "ppo"])
def test_policies_on_sampled_routes_learn_from_the_teacher(agent: str) -> None:
    kind = AGENTS.find(agent)
    config = small(agent=agent, agent_config=kind.config_class(), policy=PolicyConfig(readouts=True))
    learner = Learner(config, load_task("digits"), torch.device("cpu"))
    trained = kind(learner)
    learner.end_warm_up()
    seen: list[torch.Tensor] = []
    taught = learner.taught_loss
    learner.taught_loss = lambda outputs, batch, rows: (seen.append(rows), taught(outputs, batch, rows))[1]  # type: ignore[method-assign]
    trained.update(learner.warmup_updates)
    assert seen and all(torch.equal(rows, learner.batch_rows(learner.warmup_updates)) for rows in seen)


def test_the_loss_on_a_route_is_that_of_labels_and_teacher() -> None:
    learner = Learner(small(policy=PolicyConfig(readouts=True)), load_task("digits"), torch.device("cpu"))
    learner.end_warm_up()
    assert learner.teacher is not None
    batch, rows, route = learner.batch(0), learner.batch_rows(0), torch.tensor([True, False, True, False])
    loss, outputs = learner.network_loss(batch, rows, route)
    full = routed_forward(learner.stack, learner.full_route, batch.inputs).outputs
    teacher, schedule = learner.teacher[rows].softmax(dim=1), learner.config.schedule

    def lessons(said: torch.Tensor) -> torch.Tensor:
        lesson = -(teacher * said.log_softmax(dim=1)).sum(dim=1).mean()
        return torch.nn.functional.cross_entropy(said, batch.labels) + schedule.distillation_weight * lesson

    torch.testing.assert_close(loss, lessons(outputs) + schedule.full_depth_weight * lessons(full))


@pytest.mark.parametrize("jumps", [False, True])
def test_only_readouts_that_have_not_learned_begin_as_the_head(jumps: bool) -> None:
    policy = PolicyConfig(readouts=True, jumps=jumps)

    def changed(learner: Learner) -> bool:
        readout = learner.stack.readouts.each[0]  # type: ignore[union-attr]
        before = [parameter.detach().add_(1).clone() for parameter in readout.parameters()]
        learner.end_warm_up()
        return any(not torch.equal(now, old) for now, old in zip(readout.parameters(), before, strict=True))

    own = Learner(small(policy=policy), load_task("digits"), torch.device("cpu"))
    assert changed(own) is not jumps, "random routes have taught them"
    assert not changed(Learner(small(policy=policy), load_task("digits"), torch.device("cpu"), own.stack)), "they came with the stack"


def test_a_given_stack_with_readouts_asks_for_them_and_has_them_counted() -> None:
    stack = Learner(small(), load_task("digits"), torch.device("cpu")).stack
    with pytest.raises(UserError, match="the given stack has readouts.*; set --readouts"):
        Learner(small(policy=PolicyConfig()), load_task("digits"), torch.device("cpu"), stack)
    assert stack.readouts is not None
    counted, stack.readouts.flops = stack.readouts.flops, 0.0
    assert Learner(small(), load_task("digits"), torch.device("cpu"), stack).rules.layout.readout_flops == counted


PRICE_SEEN = """
from rl_skip import Feature

class PriceSeen(Feature):
    name = "price_seen"
    low, high = -10.0, 10.0

    def size(self, width):
        return 1

    def read(self, view):
        return view.price.log().unsqueeze(1)
"""


def test_a_feature_that_sees_the_price_is_refused_where_it_would_be_read_once(tmp_path: Path) -> None:
    (tmp_path / "seen.py").write_text(PRICE_SEEN, encoding="utf-8")
    policy = PolicyConfig(readouts=True, jumps=False, feature=("entropy", f"{tmp_path / 'seen.py'}:PriceSeen"))
    with pytest.raises(UserError, match="a feature differs with the price.*set --policy-epochs 0"):
        Reinforce(Learner(small(policy=policy), load_task("digits"), torch.device("cpu"))).try_out()
    config = small(policy=policy, agent_config=ReinforceConfig(policy_epochs=0))
    agent = Reinforce(Learner(config, load_task("digits"), torch.device("cpu")))
    agent.try_out()
    assert agent.exact and agent.update(agent.learner.warmup_updates)


def test_a_run_is_resumed_exported_and_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--layers", "4", "--width", "16", "--heads", "2", "--train-rows", "400"]
    flags = ["--readouts", "--no-jumps", "--warmup-epochs", "1", "--epochs", "2", *size]
    assert main([*flags, "--checkpoint-updates", "3", "--keep-checkpoints", "20", "--out", str(tmp_path / "run")]) == 0
    policy = (tmp_path / "run" / "policy" / "policy.safetensors").read_bytes()
    readouts = (tmp_path / "run" / "policy" / "readouts.safetensors").read_bytes()
    report = (tmp_path / "run" / "report.json").read_bytes()
    (tmp_path / "run" / "report.json").unlink()
    for file in sorted((tmp_path / "run" / "checkpoints").glob("update-*.pt"))[3:]:
        file.unlink()
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "policy" / "policy.safetensors").read_bytes() == policy
    assert (tmp_path / "run" / "policy" / "readouts.safetensors").read_bytes() == readouts
    capsys.readouterr()
    assert rl_skip_main(["eval", str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == json.loads(report)["policy"]["accuracy"]
    assert rl_skip_main(["prune", str(tmp_path / "run"), str(tmp_path / "pruned"), "--layers", "0,1"]) == 0
    model, inputs = rl_skip.load(tmp_path / "run" / "policy"), load_task("digits").load("test").inputs
    with torch.no_grad():
        expected = routed_forward(model.stack, torch.arange(4) < 2, inputs).outputs
        torch.testing.assert_close(rl_skip.load_pruned(tmp_path / "pruned")(inputs), expected)
    assert not torch.allclose(model.stack.head(model.stack.begin(inputs).hidden, None), expected)  # type: ignore[operator]


def test_a_frozen_network_whose_readouts_nobody_would_teach_is_refused() -> None:
    schedule = ScheduleConfig(warmup_epochs=1, epochs=1, tune="frozen")
    config = TrainConfig(network=NetworkConfig(layers=3, width=16), policy=PolicyConfig(readouts=True, jumps=False), schedule=schedule)
    with pytest.raises(UserError, match="--tune frozen leaves readouts as they begin: .*; set --tune all, or --readouts --jumps"):
        Learner(config, load_task("digits"), torch.device("cpu"))
    assert read_options(["--tune", "frozen"]).policy.jumps  # which is then the default


def test_the_teacher_lies_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays on the CPU, so the rows of another device are taken there first."""
    schedule = ScheduleConfig(warmup_epochs=1, epochs=1)
    config = TrainConfig(network=NetworkConfig(layers=3, width=16), policy=PolicyConfig(readouts=True, jumps=False), schedule=schedule)
    learner = Learner(config, load_task("digits"), torch.device("cpu"))
    batch, outputs = learner.train.take(slice(0, 4)), torch.randn(4, 10)
    learner.teacher = torch.randn(len(learner.train), 10)
    rows = torch.tensor([5, 3, 8, 1])
    expected = learner.taught_loss(outputs, batch, rows)
    asked: list[torch.device] = []
    to = torch.Tensor.to

    def watched(tensor: torch.Tensor, *arguments: object, **named: object) -> torch.Tensor:
        if tensor is rows:
            asked.append(arguments[0])  # type: ignore[arg-type]
        return to(tensor, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.Tensor, "to", watched)
    assert torch.equal(learner.taught_loss(outputs, batch, rows), expected)
    assert asked == [learner.teacher.device]
