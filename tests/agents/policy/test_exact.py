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
from agents.policy.exact import exit_pass, leaving
from agents.policy.reinforce import Reinforce, ReinforceConfig
from agents.run.learner import Learner
from rl_skip import JumpPolicy, JumpRules, ModuleStack, ObservationLayout, PolicyRouter, UserError, load_task
from rl_skip.cli.main import main as rl_skip_main
from rl_skip.core.features import CONFIDENCES
from rl_skip.core.forward import routed_forward
from rl_skip.nets.network import NetworkConfig
from train import main

WIDTH, DEPTH, CLASSES, PRICE = 6, 4, 3, 0.3


def make() -> tuple[ModuleStack, JumpPolicy, torch.Tensor]:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(DEPTH)]
    stack = ModuleStack(nn.Linear(4, WIDTH), layers, nn.Linear(WIDTH, CLASSES), width=WIDTH, layer_flops=[2000.0] * DEPTH)
    readouts = stack.add_readouts(torch.randn(2, 4))
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(WIDTH, DEPTH, 0.01, 1.0, CONFIDENCES, readouts.flops), allow_exit=True, jumps=False))
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


def test_the_gradient_is_that_of_finite_differences() -> None:
    stack, policy, x = make()
    with torch.no_grad():
        observations = exit_pass(stack, policy, x, torch.full((5,), PRICE)).observations.double()
    policy, reward = policy.double(), torch.rand(5, DEPTH, dtype=torch.float64)

    def expected() -> torch.Tensor:
        return (leaving(policy, observations).probability * reward).sum(dim=1).mean()

    expected().backward()
    generator = torch.Generator().manual_seed(1)
    for parameter in (policy.fc_in.weight, policy.fc_out.weight, policy.fc_out.bias, policy.layer_bias.weight):
        for n in torch.randint(parameter.numel(), (12,), generator=generator).tolist():
            with torch.no_grad():
                flat, values = parameter.view(-1), []
                for step in (1e-5, -2e-5):
                    flat[n] += step
                    values.append(expected().item())
                flat[n] += 1e-5
            assert parameter.grad is not None
            assert parameter.grad.view(-1)[n].item() == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-7)


def test_the_gradient_is_the_mean_of_many_sampled_ones() -> None:
    stack, policy, x = make()
    samples, label = 20_000, torch.tensor([0, 1, 2, 0, 1])
    price = torch.full((5,), PRICE)

    def score(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.softmax(outputs, dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)

    exits = exit_pass(stack, policy, x, price)
    scores = torch.stack([score(outputs, label) for outputs in exits.answers], dim=1).detach()
    exact = (leaving(policy, exits.observations).probability * (scores - PRICE * exits.compute)).sum(dim=1).mean()
    (gradient,) = torch.autograd.grad(exact, policy.fc_out.weight)
    drawn = torch.arange(5).repeat_interleave(samples)
    rollout = routed_forward(stack, PolicyRouter(policy, sample=True, generator=torch.Generator().manual_seed(2)), x[drawn], price=PRICE)
    reward = score(rollout.outputs, label[drawn]).detach() - PRICE * rollout.compute
    parts = (rollout.log_probs.sum(dim=1) * reward).view(5, 10, -1).mean(dim=(0, 2))  # ten estimates
    estimates = torch.stack([torch.autograd.grad(part, policy.fc_out.weight, retain_graph=True)[0] for part in parts])
    error = estimates.std(dim=0) / math.sqrt(10)
    assert ((estimates.mean(dim=0) - gradient).abs() <= 5 * error + 1e-6).all()
    assert gradient.abs().max() > 10 * error.max()


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
    assert learner.warmup_updates > 0, "all begin where the warm-up ended"
    said = routed_forward(learner.stack.eval(), learner.full_route, learner.train.inputs).outputs.detach()
    learner.end_warm_up()
    assert learner.teacher is not None
    torch.testing.assert_close(learner.teacher, said)
    for readout in learner.stack.readouts.each:  # type: ignore[union-attr]
        assert all(torch.equal(mine, own) for mine, own in zip(readout.parameters(), learner.stack.readout().parameters(), strict=True))  # type: ignore[union-attr]
    outputs, batch, rows = said[:5] + 0.1, learner.train.take(slice(0, 5)), torch.arange(5)
    labels = torch.nn.functional.cross_entropy(outputs, batch.labels)
    lesson = -(said[:5].softmax(dim=1) * outputs.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(learner.taught_loss(outputs, batch, rows), labels + lesson)
    seen: list[torch.Tensor] = []
    taught = learner.taught_loss
    learner.taught_loss = lambda outputs, batch, rows: (seen.append(rows), taught(outputs, batch, rows))[1]  # type: ignore[method-assign]
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
        Reinforce(Learner(small(policy=policy), load_task("digits"), torch.device("cpu")))
    config = small(policy=policy, agent_config=ReinforceConfig(policy_epochs=0))
    agent = Reinforce(Learner(config, load_task("digits"), torch.device("cpu")))
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
