import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from agents.baselines.static import Static
from agents.options.config import PolicyConfig, PriceConfig, ScheduleConfig
from agents.policy.reinforce import Reinforce
from agents.run.learner import Critic, Learner
from agents.run.warmup import warm_up_for
from rl_skip.core.batches import deployed
from rl_skip.core.forward import routed_forward
from rl_skip.core.policy import legal_jumps
from rl_skip.core.routers import PolicyRouter
from rl_skip.learning.prices import PriceRange
from rl_skip.nets.network import NetworkConfig


def _parameters(module: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def _rows(learner: Learner, update: int) -> list[int]:
    """Which rows of the training data an update sees; all rows differ."""
    batch = learner.batch(update).inputs
    return [(learner.train.inputs == row).flatten(1).all(dim=1).nonzero().item() for row in batch]


def test_an_epoch_sees_every_row_once_in_an_order_of_its_own(tiny_learner):
    learner = tiny_learner()
    epochs = [[row for part in range(4) for row in _rows(learner, 4 * epoch + part)] for epoch in range(2)]
    assert learner.updates_per_epoch == 4
    assert all(sorted(rows) == list(range(128)) for rows in epochs)
    assert epochs[0] != epochs[1]


def test_a_batch_depends_on_the_seed_and_the_number_of_the_update_alone(tiny_learner):
    learner, other = tiny_learner(seed=1), tiny_learner(seed=1)
    warm_up_for(learner).update(0)
    torch.rand(7)
    assert _rows(learner, 6) == _rows(other, 6)
    assert _rows(tiny_learner(seed=2), 6) != _rows(other, 6)
    assert torch.equal(learner.batch(6).labels, learner.train.labels[_rows(learner, 6)])


def test_the_seed_decides_the_weights(tiny_learner):
    first, same, other = (tiny_learner(seed=seed) for seed in (1, 1, 2))
    for name in ("stack", "policy", "critic"):
        assert torch.equal(_parameters(getattr(first, name)), _parameters(getattr(same, name)))
        assert not torch.equal(_parameters(getattr(first, name)), _parameters(getattr(other, name)))


def test_learning_rates_rise_and_fall_as_the_options_say(tiny_learner):
    schedule = ScheduleConfig(warmup_epochs=50, epochs=50, batch_size=32, learning_rate=0.02, policy_learning_rate=0.004)
    learner = tiny_learner(schedule=schedule)  # 400 updates, 200 of them warm-up

    def rates(update: int) -> tuple[float, float]:
        told = learner.set_learning_rates(update)
        network, policy = learner.descent.network_optimizer.param_groups[0]["lr"], learner.descent.policy_optimizer.param_groups[0]["lr"]
        assert network == told
        return network, policy

    assert rates(0) == pytest.approx((0.02 / 50, 0.004))
    assert rates(100) == pytest.approx((0.02 * (1 + math.sqrt(0.5)) / 2, 0.004))
    assert rates(200) == pytest.approx((0.01, 0.004))
    assert rates(300)[1] == pytest.approx(0.004 * 0.55)
    assert rates(399) == pytest.approx((0.0002, 0.004 * (1 - 0.9 * 199 / 200)))


def test_progress_counts_from_the_end_of_the_warm_up(tiny_learner):
    learner = tiny_learner()
    assert (learner.warmup_updates, learner.updates) == (8, 20)
    assert [learner.joint_progress(update) for update in (0, 8, 14, 20)] == [0.0, 0.0, 0.5, 1.0]


LEAVING = PolicyConfig(readouts=True, jumps=False)


def test_a_network_that_begins_again_is_as_it_was_given_and_taught_by_what_it_had_become(tiny_learner):
    learner = tiny_learner(policy=LEAVING, schedule=ScheduleConfig(warmup_epochs=2, epochs=3, batch_size=32, begin_again=True))
    given = {name: weight.clone() for name, weight in learner.stack.state_dict().items()}
    warm_up = warm_up_for(learner)
    for update in range(learner.warmup_updates):
        warm_up.update(update)
    with torch.no_grad(), deployed(learner.stack):
        said = routed_forward(learner.stack, learner.full_route, learner.train.inputs).outputs
    learner.end_warm_up()
    weights = learner.stack.state_dict()
    assert [name for name in given if not torch.equal(given[name], weights[name])] == []
    assert not learner.descent.network_optimizer.state and learner.given is None
    torch.testing.assert_close(learner.teacher, said)


def test_a_network_that_begins_again_does_so_as_the_model_that_it_was_and_no_other(tiny_learner):
    schedule = ScheduleConfig(warmup_epochs=2, epochs=3, batch_size=32, begin_again=True)
    learner, same, other = (tiny_learner(policy=LEAVING, schedule=schedule, seed=seed) for seed in (1, 1, 2))
    warm_up_for(learner).update(0)
    same.load_state_dict(learner.state_dict())
    with pytest.raises(ValueError, match="the model that was given has changed since the run began"):
        other.load_state_dict(learner.state_dict())


def test_a_route_that_is_trained_again_is_searched_on_the_teacher(tiny_learner, monkeypatch):
    schedule = ScheduleConfig(warmup_epochs=2, epochs=3, batch_size=32, begin_again=True)
    learner = tiny_learner(agent="static", policy=LEAVING, schedule=schedule, pricing=PriceConfig(budget=0.5))
    static, found = Static(learner), torch.tensor([True, True, False, False])
    warm_up_for(learner).update(0)
    warm = _parameters(learner.stack.head)
    seen: list[Tensor] = []
    monkeypatch.setattr(static, "search", lambda: seen.append(_parameters(learner.stack.head)) or found)
    learner.end_warm_up(static.see_taught)
    static.update(learner.warmup_updates)
    assert len(seen) == 1 and seen[0].equal(warm) and static.route is found
    assert not _parameters(tiny_learner(agent="static", policy=LEAVING, schedule=schedule, pricing=PriceConfig(budget=0.5)).stack.head).equal(warm)


def test_a_network_that_begins_again_has_two_trainings_with_a_cosine_each(tiny_learner):
    schedule = ScheduleConfig(warmup_epochs=50, epochs=100, batch_size=32, learning_rate=0.02, begin_again=True)
    learner = tiny_learner(policy=LEAVING, schedule=schedule)
    rates = [learner.set_learning_rates(update) for update in range(learner.updates)]
    assert (learner.warmup_updates, learner.updates) == (200, 600)
    assert (rates[0], rates[200]) == pytest.approx((0.02 / 50, 0.02 / 50))
    assert (rates[100], rates[400]) == pytest.approx((0.01, 0.01))
    assert max(rates[199], rates[599]) < 0.0003


@pytest.mark.parametrize(("agent", "updates"), [("reinforce", 20), ("exits", 20), ("shallow", 12)])
def test_beside_a_network_that_begins_again_all_have_as_many_updates_after_the_teachers(tiny_learner, agent, updates):
    schedule = ScheduleConfig(warmup_epochs=2, epochs=3, batch_size=32, begin_again=True)
    learner = tiny_learner(agent=agent, policy=LEAVING, schedule=schedule, pricing=PriceConfig(budget=0.5 if agent == "shallow" else None))
    assert learner.updates == updates and learner.updates - learner.warmup_updates == 12


@pytest.mark.parametrize(
    "options",
    [
        {"policy": PolicyConfig()},
        {"schedule": ScheduleConfig(warmup_epochs=0, epochs=3, batch_size=32, begin_again=True)},
        {"schedule": ScheduleConfig(warmup_epochs=2, epochs=3, batch_size=32, begin_again=True, distillation_weight=0.0)},
    ],
    ids=["jumps", "no warm-up", "no teacher"],
)
def test_without_a_teacher_nothing_begins_again(tiny_learner, options):
    schedule = ScheduleConfig(warmup_epochs=2, epochs=3, batch_size=32, begin_again=True)
    learner = tiny_learner(**{"policy": LEAVING, "schedule": schedule} | options)
    assert not learner.begins_again and learner.given is None


@pytest.mark.parametrize("allow_exit", [False, True])
def test_random_routes_keep_from_none_to_all_of_the_layers(tiny_learner, allow_exit):
    learner = tiny_learner(policy=PolicyConfig(allow_exit=allow_exit))
    routes = learner.random_routes(20_000)
    assert routes.shape == (20_000, 4)
    assert routes[:, 0].all()
    assert routes[:, -1].all() is not allow_exit
    # A probability even in [0, 1] for the row makes every count of its free layers equally frequent.
    free = routes[:, 1:] if allow_exit else routes[:, 1:-1]
    counts = free.sum(dim=1).bincount(minlength=free.shape[1] + 1) / len(routes)
    torch.testing.assert_close(counts, torch.full_like(counts, 1 / len(counts)), atol=0.02, rtol=0)


@pytest.mark.parametrize("allow_exit", [True, False])
def test_random_routes_make_no_jump_that_the_policy_may_not(tiny_learner, allow_exit):
    learner = tiny_learner(network=NetworkConfig(layers=8, width=16, heads=2), policy=PolicyConfig(max_jump=2, allow_exit=allow_exit))
    batch = learner.batch(0)
    routes = learner.random_routes(len(batch))
    followed = routed_forward(learner.stack, PolicyRouter(learner.policy, route=routes), batch.inputs)  # refuses a jump of 3
    assert torch.equal(followed.route, routes) and (followed.jumps == 2).any()


def test_random_routes_of_a_policy_that_can_but_leave_are_routes_that_it_may_take(tiny_learner):
    learner = tiny_learner(policy=PolicyConfig(readouts=True, jumps=False))
    batch = learner.batch(0)
    routes = learner.random_routes(len(batch))
    followed = routed_forward(learner.stack, PolicyRouter(learner.policy, route=routes), batch.inputs)
    assert torch.equal(followed.route, routes) and len(routes.unique(dim=0)) == 4


def test_the_warm_up_teaches_the_network_and_leaves_the_policy_alone(tiny_learner):
    learner = tiny_learner()
    network, policy, critic = (_parameters(module) for module in (learner.stack, learner.policy, learner.critic))
    warm_up = warm_up_for(learner)
    losses = [warm_up.update(update)["train/supervised_loss"].item() for update in range(8)]
    assert losses[-1] < losses[0]
    assert not torch.equal(_parameters(learner.stack), network)
    assert torch.equal(_parameters(learner.policy), policy)
    assert torch.equal(_parameters(learner.critic), critic)


def test_full_depth_loss_is_the_networks_own(tiny_learner):
    learner = tiny_learner()
    batch = learner.batch(0)
    hidden = learner.stack.embed(batch.inputs)
    for layer in learner.stack.layers:
        hidden = layer(hidden, None)
    outputs = learner.stack.head(hidden, None)
    loss, full = learner.full_depth_loss(batch)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(outputs, batch.labels))
    torch.testing.assert_close(full, outputs)


def test_the_network_learns_from_labels_and_from_itself_at_full_depth(tiny_learner):
    """The loss by torch's own cross-entropy and divergence; the teacher gets no gradient from its pupil."""
    learner = tiny_learner(schedule=ScheduleConfig(batch_size=32, full_depth_weight=0.0, distillation_weight=2.0))
    batch, route = learner.batch(0), torch.tensor([True, False, False, True])
    loss, outputs = learner.network_loss(batch, learner.batch_rows(0), route)
    full = routed_forward(learner.stack, learner.full_route, batch.inputs).outputs.detach()
    own = torch.nn.functional.kl_div(outputs.log_softmax(1), full.softmax(1), reduction="batchmean")
    entropy = torch.distributions.Categorical(logits=full).entropy().mean()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(outputs, batch.labels) + 2 * (own + entropy))
    loss.backward()
    assert all(parameter.grad is None for layer in (1, 2) for parameter in learner.stack.layers[layer].parameters())

    learner = tiny_learner(schedule=ScheduleConfig(batch_size=32, full_depth_weight=0.5, distillation_weight=0.0))
    loss, outputs = learner.network_loss(batch, learner.batch_rows(0), route)
    full = routed_forward(learner.stack, learner.full_route, batch.inputs).outputs
    cross_entropy = torch.nn.functional.cross_entropy
    torch.testing.assert_close(loss, cross_entropy(outputs, batch.labels) + 0.5 * cross_entropy(full, batch.labels))


def test_the_critic_reads_observations_as_the_policy_does_and_gives_one_number(tiny_learner):
    learner = tiny_learner()
    observation = torch.randn(10, learner.rules.layout.size, requires_grad=True)
    value = learner.critic(observation)
    value.sum().backward()
    assert value.shape == (10,)
    assert (observation.grad[:, -1] != 0).all()  # the price matters
    assert isinstance(learner.critic, Critic)
    assert not {id(parameter) for parameter in learner.critic.parameters()} & {id(parameter) for parameter in learner.policy.parameters()}


def test_a_learner_goes_on_exactly_where_its_state_was_taken(tiny_learner):
    def go_on(learner: Learner) -> Tensor:
        agent = Reinforce(learner, PriceRange(0.05, 0.5))
        for update in range(10, 16):
            agent.update(update)
        return torch.cat([_parameters(learner.stack), _parameters(learner.policy), _parameters(learner.critic)])

    learner = tiny_learner()
    agent = Reinforce(learner, PriceRange(0.05, 0.5))
    for update in range(10):
        agent.update(update)
    state = deepcopy(learner.state_dict())
    expected = go_on(learner)
    other = tiny_learner()
    torch.rand(5)
    other.load_state_dict(state)
    assert torch.equal(go_on(other), expected)


def test_a_stack_of_ones_own_takes_the_place_of_the_options_network(known_optimum):
    learner = known_optimum.learner(PriceConfig(price=0.1), 3)
    assert learner.stack.depth == 6 != learner.config.network.layers
    assert torch.equal(learner.policy.legal, legal_jumps(6, 4, allow_exit=False))
    assert learner.updates == 3
