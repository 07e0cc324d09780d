import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

import agents.policy.reinforce
import agents.run.learner
from agents.options.config import PriceConfig, ScheduleConfig
from agents.policy.reinforce import Advantage, Reinforce, ReinforceConfig, estimated_advantage, leave_one_out_advantage, reinforce_loss
from agents.run.learner import Learner
from agents.run.warmup import warm_up_for
from rl_skip.core.beside import routed_beside_full
from rl_skip.core.forward import Rollout, routed_forward
from rl_skip.core.policy import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.core.reward import Reward
from rl_skip.core.routers import PolicyRouter
from rl_skip.learning.exact import entropy_weight
from rl_skip.learning.prices import FixedPrice, PriceRange
from rl_skip.nets.blocks import AttentionBlock, ClassifierHead
from rl_skip.nets.module_stack import ModuleStack

PRICES = (0.15, 0.45, 0.7)
VALUE = ReinforceConfig(baseline="value")


def test_the_answers_are_reckoned_as_the_routed_forward_reckons(known_optimum):
    learner = known_optimum.learner(PriceConfig(price=0.3), 1)
    rows, reward = learner.validation.take(slice(0, 6)), known_optimum.answers(learner.policy, 0.3).reward  # one row of each type
    for number, route in enumerate(known_optimum.routes()):
        found = routed_forward(learner.stack, PolicyRouter(learner.policy, route=route), rows.inputs)
        earned = known_optimum.task.score(found.outputs, rows.labels) - 0.3 * found.compute
        torch.testing.assert_close(earned.double(), reward[rows.labels, number], atol=1e-6, rtol=0)


@pytest.mark.parametrize("price", PRICES)
def test_the_known_optimum_asks_for_a_policy_that_looks(known_optimum, price):
    policy = known_optimum.learner(PriceConfig(price=price), 1).policy
    answers = known_optimum.answers(policy, price)
    assert answers.best_single_route < 0.95 * answers.best
    assert answers.random_routes < 0.8 * answers.best
    assert len(set(answers.best_routes)) >= 4
    others = [known_optimum.answers(policy, other).best_routes for other in PRICES if other != price]
    assert answers.best_routes not in others


@pytest.mark.parametrize("baseline", ["value", "leave-one-out"])
@pytest.mark.parametrize("price", PRICES)
def test_reinforce_finds_the_known_optimum(known_optimum, price, baseline):
    learner = known_optimum.learner(PriceConfig(price=price), 500, agent_config=ReinforceConfig(baseline=baseline))
    agent, best = Reinforce(learner, FixedPrice(price)), known_optimum.answers(learner.policy, price).best
    assert known_optimum.reward(learner, price) < 0.9 * best
    for update in range(learner.updates):
        agent.update(update)
    assert known_optimum.reward(learner, price) >= 0.98 * best


def test_one_policy_finds_the_known_optimum_of_every_price(known_optimum):
    low, high = 0.05, 1.0
    learner = known_optimum.learner(PriceConfig(price_range=(low, high)), 500)
    agent = Reinforce(learner, PriceRange(low, high))
    for update in range(learner.updates):
        agent.update(update)
    for price in PRICES:
        assert known_optimum.reward(learner, price) >= 0.96 * known_optimum.answers(learner.policy, price).best


def test_leave_one_out_advantage_is_each_reward_less_the_mean_of_the_others():
    reward = torch.rand(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    advantage = leave_one_out_advantage(reward)
    for b, g in itertools.product(range(5), range(4)):
        others = [reward[b, other].item() for other in range(4) if other != g]
        assert advantage[b, g].item() == pytest.approx(reward[b, g].item() - sum(others) / 3)
    torch.testing.assert_close(advantage.sum(dim=1), torch.zeros(5, dtype=torch.double))


def test_leave_one_out_advantage_refuses_a_single_route():
    with pytest.raises(ValueError, match="at least 2 routes per input, got 1; raise --routes-per-input"):
        leave_one_out_advantage(torch.rand(3, 1))


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.2), (0.4, math.sqrt(0.2 * 0.002)), (0.8, 0.002), (1.0, 0.002)])
def test_entropy_weight_falls_geometrically_over_four_fifths(progress, weight):
    assert entropy_weight(ReinforceConfig(entropy_start=0.2, entropy_end=0.002), progress) == pytest.approx(weight)


def _rollout(spent: Tensor, values: Tensor | None = None) -> Rollout:
    """Rows that decide after each of their layers."""
    zeros = torch.zeros_like(spent)
    return Rollout(
        outputs=zeros,
        route=torch.ones_like(spent).bool(),
        jumps=zeros.long(),
        decided=torch.ones_like(spent).bool(),
        log_probs=zeros.clone().requires_grad_(),
        entropies=zeros,
        values=zeros if values is None else values,
        spent=spent,
    )


def by(config: ReinforceConfig) -> Advantage:
    return partial(estimated_advantage, config)


def _advantage(rollout: Rollout, score: Tensor, price: Tensor, config: ReinforceConfig) -> Tensor:
    """(B, L), what the gradient of the loss says that each decision earned."""
    (gradient,) = torch.autograd.grad(reinforce_loss(rollout, score, price, by(config)).policy, rollout.log_probs)
    return -gradient * len(score)


def test_the_advantage_of_a_decision_is_the_score_less_the_price_of_what_comes_after_less_the_value():
    spent, values = torch.tensor([[0.1, 0.2, 0.3, 0.05], [0.4, 0.0, 0.0, 0.1]]), torch.tensor([[0.5, 0.1, 0.0, 0.2], [0.3, 0.0, 0.0, 0.1]])
    rollout, score, price = _rollout(spent, values), torch.tensor([1.0, 0.25]), torch.tensor([2.0, 0.5])
    rollout.decided = torch.tensor([[True, True, True, False], [True, False, False, False]])
    expected = torch.zeros(2, 4)
    for row, i in rollout.decided.nonzero().tolist():
        expected[row, i] = score[row] - price[row] * sum(spent[row, i + 1 :]) - values[row, i]
    torch.testing.assert_close(_advantage(rollout, score, price, VALUE), expected)
    squares = (expected**2).sum(dim=1).mean()
    torch.testing.assert_close(reinforce_loss(rollout, score, price, by(VALUE)).value, squares)


class Squared(Reward):
    def penalty(self, compute, price):
        return price * compute**2


def test_a_penalty_that_is_no_line_is_paid_as_it_rises():
    """Squared compute: a decision pays what comes after it on top of what is spent already."""
    spent, score, price = torch.tensor([[0.1, 0.2, 0.3, 0.05]]), torch.tensor([1.0]), torch.tensor([2.0])
    rollout, config = _rollout(spent), VALUE
    loss = reinforce_loss(rollout, score, price, by(config), Squared())
    (gradient,) = torch.autograd.grad(loss.policy, rollout.log_probs)
    so_far = [0.1, 0.3, 0.6, 0.65]
    torch.testing.assert_close(-gradient, torch.tensor([[1.0 - 2.0 * (0.65**2 - compute**2) for compute in so_far]]))


@pytest.mark.parametrize("changed", range(4))
def test_compute_spent_before_a_decision_does_not_change_its_advantage(changed):
    spent, score, price = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)), torch.rand(3), torch.tensor([0.1, 0.5, 2.0])
    more = spent.clone()
    more[:, changed] += 0.25
    before, after = (_advantage(_rollout(amount), score, price, VALUE) for amount in (spent, more))
    torch.testing.assert_close(after[:, changed:], before[:, changed:])
    torch.testing.assert_close(after[:, :changed], before[:, :changed] - 0.25 * price.unsqueeze(1))


@pytest.mark.parametrize("baseline", ["value", "leave-one-out"])
def test_the_gradient_is_that_of_the_expected_reward(known_optimum, baseline):
    """Every route's probability times its reward, differentiated, against the mean over many samples."""
    learner = known_optimum.learner(PriceConfig(price=0.5), 1)
    policy, price, G, samples = learner.policy, 0.5, 4, 5000
    generator = torch.Generator().manual_seed(0)
    policy.fc_out.weight.data.normal_(std=0.3, generator=generator)  # opinions, so that the gradient does not vanish by symmetry
    learner.critic.body.fc_out.weight.data.normal_(std=0.1, generator=generator)  # any critic will do, a good one needs fewer samples
    learner.critic.body.fc_out.bias.data.fill_(0.4)
    rows, routes = learner.validation.take(slice(0, 6)), known_optimum.routes()

    pairs = rows.take(torch.arange(6).repeat_interleave(len(routes)))  # 6 R rows
    followed = routed_forward(learner.stack, PolicyRouter(policy, route=routes.repeat(6, 1)), pairs.inputs, price=price)
    probability = followed.log_probs.sum(dim=1).exp()
    torch.testing.assert_close(probability.view(6, -1).sum(dim=1), torch.ones(6))
    reward = known_optimum.answers(policy, price).reward[rows.labels].float().flatten()
    exact = _flat(torch.autograd.grad((probability * reward).sum() / 6, list(policy.parameters())))

    config = ReinforceConfig(baseline=baseline, routes_per_input=G)
    drawn = rows.take(torch.arange(6).repeat(samples).repeat_interleave(G))
    total = len(drawn)
    rollout = routed_forward(learner.stack, PolicyRouter(policy, sample=True, generator=generator), drawn.inputs, price=price, critic=learner.critic)
    score = known_optimum.task.score(rollout.outputs, drawn.labels)
    loss = reinforce_loss(rollout, score, torch.full((total,), price), by(config)).policy
    estimate = -_flat(torch.autograd.grad(loss, list(policy.parameters())))
    assert exact.norm() > 0.01
    assert (estimate - exact).norm() < 0.05 * exact.norm()


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


def test_the_losses_of_the_policy_leave_the_network_alone():
    torch.manual_seed(0)
    stack = ModuleStack(
        torch.nn.Linear(3, 8), [AttentionBlock(8, 2) for _ in range(4)], ClassifierHead(8, 2), width=8, layer_flops=[1e5] * 4, layers_take_mask=True
    )
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(8, 4)))
    rollout = routed_forward(stack, PolicyRouter(policy, sample=True), torch.randn(16, 5, 3), price=0.1)
    losses = reinforce_loss(rollout, torch.rand(16), torch.full((16,), 0.1), by(ReinforceConfig()))
    (losses.policy - losses.entropy).backward()
    assert all(parameter.grad is None for parameter in stack.parameters())
    assert all(parameter.grad is not None and parameter.grad.norm() > 0 for parameter in policy.parameters())


def test_an_update_moves_network_policy_and_critic(tiny_learner):
    learner = tiny_learner(agent_config=VALUE)
    before = {name: _parameters(learner, name) for name in ("stack", "policy", "critic")}
    Reinforce(learner, FixedPrice(0.1)).update(learner.warmup_updates)
    for name, parameters in before.items():
        assert not torch.equal(parameters, _parameters(learner, name)), name


def test_the_policy_learns_from_routes_as_they_are_deployed_and_the_network_from_the_first(tiny_learner, monkeypatch):
    learner = tiny_learner(agent_config=ReinforceConfig(routes_per_input=3))
    seen: list[tuple[str, bool, bool, Tensor]] = []

    def sampled(stack, router, inputs, **options):
        rollout = routed_forward(stack, router, inputs, **options)
        seen.append(("policy", stack.training, rollout.outputs.requires_grad, rollout.route))
        return rollout

    def learned(stack, route, inputs):
        outputs, full = routed_beside_full(stack, route, inputs)
        seen.append(("network", stack.training, outputs.requires_grad and full.requires_grad, route))
        return outputs, full

    monkeypatch.setattr(agents.policy.reinforce, "routed_forward", sampled)
    monkeypatch.setattr(agents.run.learner, "routed_beside_full", learned)
    Reinforce(learner, FixedPrice(0.1)).update(learner.warmup_updates)
    assert [call[:3] for call in seen] == [("policy", False, False), ("network", True, True)]
    assert torch.equal(seen[1][3], seen[0][3][::3])


def _parameters(learner: Learner, name: str) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in getattr(learner, name).parameters()])


def test_a_short_run_ends_where_it_always_did(tiny_learner):
    """How far a short run moves the weights, which a change of the code alone must not change. Where learning is changed on purpose, measure anew."""
    learner = tiny_learner(seed=3, schedule=ScheduleConfig(warmup_epochs=2, epochs=8, batch_size=32))
    begun = {name: _parameters(learner, name) for name in ("stack", "policy", "critic")}
    agent, warm_up = Reinforce(learner, PriceRange(0.05, 0.5)), warm_up_for(learner)
    for update in range(learner.updates):
        (warm_up if update < learner.warmup_updates else agent).update(update)
    moved = {name: (_parameters(learner, name) - before).double().norm().item() for name, before in begun.items()}
    assert moved == pytest.approx({"stack": 0.380115, "policy": 1.060059, "critic": 0.0}, rel=1e-4)


def test_steps_counted_here_and_on_a_device_add_up_and_are_kept(tiny_learner):
    agent = Reinforce(tiny_learner())
    agent.learned_from(5)
    agent.learned_from(torch.tensor(3))
    assert agent.env_steps == 8
    other = Reinforce(tiny_learner())
    other.learned_from(torch.tensor(2))
    other.load_state_dict(agent.state_dict())
    other.learned_from(1)
    assert other.env_steps == 9
