from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from torch import Tensor

from agents.agent import find_agent
from agents.options.config import PolicyConfig, PriceConfig, ScheduleConfig
from agents.policy.policy_agent import PolicyAgent
from agents.policy.ppo import Ppo, PpoConfig
from agents.run.learner import Learner
from rl_skip.learning.prices import BudgetPrice, FixedPrice, PriceRange

AGENTS = ("ppo", "maskable-ppo")
SMALL = PpoConfig(num_envs=16, steps=8, minibatch=64, passes=2)


def ppo_of(learner: Learner, prices: PriceRange) -> Ppo:
    """PPO as the learner's options name it."""
    kind = find_agent(learner.config.agent)
    assert issubclass(kind, Ppo)
    return kind(learner, prices)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("price", [0.15, 0.45, 0.7])
def test_ppo_finds_the_known_optimum(known_optimum, price, agent):
    np.random.seed(0)  # Stable-Baselines3 shuffles with NumPy
    learner = known_optimum.learner(PriceConfig(price=price), 20, agent=agent)
    ppo, best = ppo_of(learner, FixedPrice(price)), known_optimum.answers(learner.policy, price).best
    assert known_optimum.reward(learner, price) < 0.9 * best
    for update in range(learner.updates):
        ppo.update(update)
    assert known_optimum.reward(learner, price) >= 0.97 * best


def test_one_policy_of_ppo_finds_the_known_optimum_of_every_price(known_optimum):
    np.random.seed(0)
    low, high = 0.05, 1.0
    learner = known_optimum.learner(PriceConfig(price_range=(low, high)), 25, agent="ppo")
    ppo = Ppo(learner, PriceRange(low, high))
    for update in range(learner.updates):
        ppo.update(update)
    for price in (0.15, 0.45, 0.7):
        assert known_optimum.reward(learner, price) >= 0.96 * known_optimum.answers(learner.policy, price).best


def _ppo(make: Callable[..., Learner], agent: str, seed: int = 0) -> Ppo:
    np.random.seed(seed)
    return ppo_of(make(agent=agent, agent_config=SMALL, seed=seed), PriceRange(0.05, 0.5))


def _parameters(module: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


@pytest.mark.parametrize(("agent", "algorithm"), [("ppo", PPO), ("maskable-ppo", MaskablePPO)])
def test_the_algorithm_is_stable_baselines3s_and_its_actor_the_jump_policy(tiny_learner, agent, algorithm):
    ppo = _ppo(tiny_learner, agent)
    assert type(ppo.model) is algorithm
    learner, trained = ppo.learner, ppo.model.policy
    assert trained.mlp_extractor.policy is learner.policy
    assert trained.mlp_extractor.critic is learner.critic
    ours = {id(parameter) for module in (learner.policy, learner.critic) for parameter in module.parameters()}
    assert {id(parameter) for parameter in trained.parameters()} == ours  # and no other weights
    assert {id(parameter) for group in trained.optimizer.param_groups for parameter in group["params"]} == ours


@pytest.mark.parametrize("agent", AGENTS)
def test_ppo_trains_the_policy_and_the_supervised_update_the_network(tiny_learner, agent):
    ppo = _ppo(tiny_learner, agent)
    learner = ppo.learner
    network, policy, critic = (_parameters(module) for module in (learner.stack, learner.policy, learner.critic))
    ppo._improve_policy(learner.warmup_updates, progress=0.0)
    assert torch.equal(_parameters(learner.stack), network)
    trained_policy, trained_critic = _parameters(learner.policy), _parameters(learner.critic)
    assert not torch.equal(trained_policy, policy)
    assert not torch.equal(trained_critic, critic)
    ppo._improve_network(learner.warmup_updates)
    assert not torch.equal(_parameters(learner.stack), network)
    assert torch.equal(_parameters(learner.policy), trained_policy)
    assert torch.equal(_parameters(learner.critic), trained_critic)


@pytest.mark.parametrize("agent", AGENTS)
def test_an_epoch_of_updates_holds_one_rollout(tiny_learner, agent):
    ppo = _ppo(tiny_learner, agent)
    first = ppo.learner.warmup_updates
    told = [ppo.update(first + part) for part in range(5)]  # an epoch is four
    assert ["train/policy_loss" in metrics for metrics in told] == [True, False, False, False, True]
    assert all("train/supervised_loss" in metrics for metrics in told)
    assert ppo.model.num_timesteps == 2 * SMALL.num_envs * SMALL.steps


@pytest.mark.parametrize("agent", AGENTS)
def test_illegal_jumps_are_never_sampled(tiny_learner, agent):
    ppo = _ppo(tiny_learner, agent)
    seen = 0
    for update in range(8, 20):
        ppo.update(update)
        buffer = ppo.model.rollout_buffer  # flattened by the training
        observations, jumps = torch.as_tensor(buffer.observations), torch.as_tensor(buffer.actions).long().flatten()
        layer = (observations[:, -3] * 4).round().long()
        longest = torch.tensor([2, 1, 0, 0])[layer]  # of four layers, the last of which always runs
        assert (jumps <= longest).all()
        assert (layer <= 1).all()  # where one jump alone is legal nothing is asked
        seen += len(set(zip(layer.tolist(), jumps.tolist(), strict=True)))
    assert seen > 12  # and not because it always does the same


@pytest.mark.parametrize("agent", AGENTS)
def test_probabilities_are_the_masked_softmax_of_the_jump_policy(tiny_learner, agent):
    ppo = _ppo(tiny_learner, agent)
    policy = ppo.learner.policy
    policy.fc_out.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    observation = torch.as_tensor(ppo.env.reset())
    for _ in range(3):
        mask = ppo.core.masks()
        expected = policy(observation).exp() * mask
        expected = expected / expected.sum(dim=1, keepdim=True)
        options = {"action_masks": mask.numpy()} if agent == "maskable-ppo" else {}
        found = ppo.model.policy.get_distribution(observation, **options).distribution.probs
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert (found[~mask] == 0).all()
        jumps = expected.argmax(dim=1)
        likeliest, _ = ppo.model.policy.predict(observation.numpy(), deterministic=True, **options)
        assert torch.equal(torch.as_tensor(likeliest), jumps)
        observation = torch.as_tensor(ppo.env.step(jumps.numpy())[0])


@pytest.mark.parametrize("agent", AGENTS)
def test_the_same_seed_gives_the_same_weights_twice(tiny_learner, agent):
    def weights(seed: int) -> Tensor:
        ppo = _ppo(tiny_learner, agent, seed)
        for update in range(8, 16):
            ppo.update(update)
        return torch.cat([_parameters(ppo.learner.stack), _parameters(ppo.learner.policy), _parameters(ppo.learner.critic)])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("agent", AGENTS)
def test_ppo_goes_on_exactly_from_the_end_of_an_epoch(tiny_learner, agent):
    def go_on(ppo: Ppo) -> tuple[Tensor, int]:
        np.random.seed(7)
        for update in range(12, 18):
            ppo.update(update)
        weights = [_parameters(module) for module in (ppo.learner.stack, ppo.learner.policy, ppo.learner.critic)]
        return torch.cat(weights), ppo.model.num_timesteps

    ppo, other = _ppo(tiny_learner, agent), _ppo(tiny_learner, agent)
    for update in range(8, 12):
        ppo.update(update)
    learner_state, state = deepcopy(ppo.learner.state_dict()), deepcopy(ppo.state_dict())
    expected, timesteps = go_on(ppo)
    torch.rand(3)
    other.learner.load_state_dict(learner_state)
    other.load_state_dict(state)
    found, counted = go_on(other)
    assert torch.equal(found, expected)
    assert counted == timesteps


def test_ppo_collects_at_the_price_that_the_budget_asks_for_now(tiny_learner):
    prices = BudgetPrice(0.5, start=0.1, integral=0.05, proportional=0.5, penalty=0.2)
    ppo = Ppo(tiny_learner(agent="ppo", agent_config=SMALL, pricing=PriceConfig(budget=0.5)), prices)
    for _ in range(50):
        prices.observe(torch.tensor(1.0))
    assert ppo.core.price != prices.range
    expected = prices.range
    ppo._improve_policy(8, progress=0.0)
    assert ppo.core.price == expected
    low, high = expected
    seen = torch.as_tensor(ppo.model.rollout_buffer.observations)[:, -1]
    bounds = ppo.learner.rules.layout.scale_price(torch.tensor([low, high]))
    assert bounds[0] <= seen.min() < seen.max() <= bounds[1]


@pytest.mark.parametrize("tune", ["all", "frozen"])
def test_where_rows_can_but_leave_the_policy_goes_on_with_the_finished_network(tiny_learner, monkeypatch, tune):
    schedule = ScheduleConfig(warmup_epochs=2 if tune == "all" else 0, epochs=3, batch_size=32, tune=tune)
    config = replace(SMALL, finished_rollouts=3)
    ppo = Ppo(tiny_learner(agent="ppo", agent_config=config, schedule=schedule, policy=PolicyConfig(readouts=True, jumps=False)))
    network, policy = _parameters(ppo.learner.stack), _parameters(ppo.learner.policy)
    monkeypatch.setattr(PolicyAgent, "finish", lambda agent, run: run)
    shown: dict[int, dict[str, float]] = {}
    ppo.finish(SimpleNamespace(curves=SimpleNamespace(scalars=shown.__setitem__)))
    assert torch.equal(_parameters(ppo.learner.stack), network)
    rollouts = 3 if tune == "all" else 0  # a network that stood still had the policy at every update
    steps = SMALL.num_envs * SMALL.steps
    assert ppo.model.num_timesteps == rollouts * steps
    assert [(at - ppo.learner.updates, values["env_steps"]) for at, values in shown.items()] == [(n, n * steps) for n in range(1, rollouts + 1)]
    assert all({"finished/ep_rew_mean", "finished/entropy", "train/approx_kl"} <= set(values) for values in shown.values())
    assert torch.equal(_parameters(ppo.learner.policy), policy) is (rollouts == 0)
