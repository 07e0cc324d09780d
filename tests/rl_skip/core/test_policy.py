"""Jumps that are legal, what the policy sees, and what it may be told."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from rl_skip.core.errors import UserError
from rl_skip.core.features import default_features
from rl_skip.core.policy import JumpPolicy, JumpRules, ObservationLayout, legal_jumps, longest_jump

LEAVES = "leaves"


def _next_layer(layer: int, jump: int, depth: int, allow_exit: bool) -> int | str:
    """Where a jump leads, in the words of the definition."""
    following = layer + 1 + jump
    if following < depth:
        return following
    return LEAVES if allow_exit or layer == depth - 1 else depth - 1


@pytest.mark.parametrize("allow_exit", [False, True])
@pytest.mark.parametrize("depth", range(1, 8))
def test_legal_jumps_lead_to_each_next_layer_once(depth: int, allow_exit: bool) -> None:
    for max_jump in range(depth + 2):
        table = legal_jumps(depth, max_jump, allow_exit)
        assert table.shape == (depth, max_jump + 1)
        for layer in range(depth):
            jumps = range(max_jump + 1)
            reachable = {_next_layer(layer, jump, depth, allow_exit) for jump in jumps}
            reached_layers = [_next_layer(layer, jump, depth, allow_exit) for jump in jumps if table[layer, jump]]
            assert len(reached_layers) == len(set(reached_layers)), "two legal jumps that mean the same"
            assert set(reached_layers) == reachable


@pytest.mark.parametrize("allow_exit", [False, True])
@pytest.mark.parametrize("depth", range(1, 8))
def test_longest_jump_is_the_shortest_that_reaches_everything(depth: int, allow_exit: bool) -> None:
    everything = {_next_layer(0, jump, depth, allow_exit) for jump in range(depth + 5)}
    shortest = next(J for J in range(depth + 5) if {_next_layer(0, jump, depth, allow_exit) for jump in range(J + 1)} == everything)
    assert longest_jump(depth, allow_exit) == shortest


def test_rules_know_where_there_is_a_choice() -> None:
    rules = JumpRules(ObservationLayout(4, 5), 2)
    assert rules.choices == [True, True, True, False, False]
    assert JumpRules(ObservationLayout(4, 5), 2, allow_exit=True).choices == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("depth", "max_jump", "allow_exit", "named"),
    [(2, 1, False, "--layers"), (1, 1, True, "--layers"), (6, 0, False, "--max-jump"), (6, 5, False, "--max-jump"), (6, 6, True, "--max-jump")],
)
def test_rules_refuse_jumps_that_do_not_fit(depth: int, max_jump: int, allow_exit: bool, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        JumpRules(ObservationLayout(4, depth), max_jump, allow_exit=allow_exit)
    assert "\n" not in str(caught.value)


def test_rules_refuse_an_unknown_scope() -> None:
    with pytest.raises(UserError, match="state, input.*'both'"):
        JumpRules(ObservationLayout(4, 5), 2, scope="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("allow_exit", [False, True])
def test_reaching_rules_reach_the_end_from_layer_0(allow_exit: bool) -> None:
    rules = JumpRules.reaching(ObservationLayout(4, 6), allow_exit=allow_exit)
    reached = {_next_layer(0, jump, 6, allow_exit) for jump in range(rules.max_jump + 1)}
    assert reached == {1, 2, 3, 4, 5} | ({LEAVES} if allow_exit else set())
    assert JumpRules.reaching(ObservationLayout(4, 6), 2).max_jump == 2


def _observed(layout: ObservationLayout, hidden: Tensor, memory: Tensor | None, position: int | Tensor, compute: Tensor, price: Tensor) -> Tensor:
    """The observation of rows whose state is this."""
    state = SimpleNamespace(layout=layout, stack=SimpleNamespace(depth=layout.depth))
    where = torch.full(compute.shape, position) if isinstance(position, int) else position
    view = SimpleNamespace(state=state, rows=torch.arange(len(hidden)), hidden=hidden, memory=memory, position=where, compute=compute, price=price)
    return layout.read(view)  # type: ignore[arg-type]


def test_observation_is_laid_out_as_documented() -> None:
    hidden, memory = torch.tensor([[2.0, 4.0, 6.0]]), torch.tensor([[4.0, 5.0, 6.0]])
    layout = ObservationLayout(width=3, depth=8)
    seen = _observed(layout, hidden, memory, 2, torch.tensor([0.375]), torch.tensor([0.1]))
    assert seen.shape == (1, layout.size) == (1, 3 + 3) and seen.dtype == torch.float32
    assert seen[0, :5].tolist() == pytest.approx([-(1.5**0.5), 0, 1.5**0.5, 0.25, 0.375], abs=1e-4)  # mean 0, variance 1
    assert seen[0, 5].item() == pytest.approx(0.0, abs=1e-6)  # 0.1 is the geometric middle of 0.001 and 10


def test_the_working_memory_stands_behind_the_hidden_state_where_there_is_one() -> None:
    hidden, memory = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[6.0, 6.0, 3.0]])
    assert default_features(has_memory=False) == ObservationLayout(3, 8).features
    layout = ObservationLayout(3, 8, features=default_features(has_memory=True))
    seen = _observed(layout, hidden, memory, 2, torch.tensor([0.375]), torch.tensor([0.1]))
    assert seen.shape == (1, layout.size) == (1, 2 * 3 + 3) and seen.dtype == torch.float32
    expected = [-(1.5**0.5), 0, 1.5**0.5, 0.5**0.5, 0.5**0.5, -(2**0.5), 0.25, 0.375]  # mean 0, variance 1
    assert seen[0, :8].tolist() == pytest.approx(expected, abs=1e-4)
    assert seen[0, 8].item() == pytest.approx(0.0, abs=1e-6)  # 0.1 is the geometric middle of 0.001 and 10
    with pytest.raises(UserError, match="no working memory.*leave memory out of --feature"):
        _observed(layout, hidden, None, 2, torch.tensor([0.0]), torch.tensor([1.0]))


def test_positions_come_back_out_of_the_observation() -> None:
    for depth in (1, 2, 3, 7, 12, 24, 100):
        layout, layers = ObservationLayout(2, depth), torch.arange(depth)
        zeros = torch.zeros(depth, 2)
        observation = _observed(layout, zeros, None, layers, torch.zeros(depth), torch.ones(depth))
        assert torch.equal(layout.layer_of(observation), layers)


def test_states_that_explode_stay_finite() -> None:
    layout = ObservationLayout(2, 4)
    seen = _observed(layout, torch.tensor([[1e30, -float("inf")]]), None, 0, torch.zeros(1), torch.ones(1))
    assert seen.isfinite().all()
    assert JumpPolicy(JumpRules(layout, 1))(seen).isfinite().all()


def test_price_is_scaled_by_its_logarithm() -> None:
    layout = ObservationLayout(2, 4, price_low=0.01, price_high=4.0)
    prices = torch.tensor([0.0, 0.001, 0.01, 0.2, 1.0, 4.0, 50.0])
    expected = [2 * (math.log(min(max(p, 0.01), 4.0)) - math.log(0.01)) / (math.log(4.0) - math.log(0.01)) - 1 for p in prices.tolist()]
    torch.testing.assert_close(layout.scale_price(prices), torch.tensor(expected), atol=1e-6, rtol=0)
    assert layout.scale_price(prices).abs().max() <= 1


@pytest.mark.parametrize("allow_exit", [False, True])
def test_policy_never_chooses_an_illegal_jump(allow_exit: bool) -> None:
    torch.manual_seed(0)
    layout = ObservationLayout(5, 6, features=default_features(has_memory=True))
    policy = JumpPolicy(JumpRules.reaching(layout, 3, allow_exit=allow_exit))
    policy.fc_out.weight.data.mul_(1000)
    layers = torch.arange(6).repeat(200)
    rows = len(layers)
    observation = _observed(layout, torch.randn(rows, 5) * 10, torch.randn(rows, 5), layers, torch.rand(rows), torch.rand(rows))
    chances = torch.softmax(policy(observation), dim=1)
    legal = legal_jumps(6, 3, allow_exit)[layers]
    assert (chances[~legal] == 0).all()
    assert torch.multinomial(chances, 1).squeeze(1).lt(legal.sum(dim=1)).all()


def test_run_bias_starts_the_policy_nearer_to_running_everything() -> None:
    layout = ObservationLayout(4, 6)
    observation = _observed(layout, torch.randn(50, 4), None, 0, torch.zeros(50), torch.ones(50))
    share = [torch.softmax(JumpPolicy(JumpRules.reaching(layout), run_bias=bias)(observation), dim=1)[:, 0].mean().item() for bias in (0.0, 2.0)]
    assert share[0] == pytest.approx(1 / 5, abs=0.03)
    assert share[1] == pytest.approx(math.exp(2) / (math.exp(2) + 4), abs=0.03)


def test_below_the_lowest_price_that_it_sees_a_policy_must_be_surer_to_skip() -> None:
    """By the logarithm of how far below, against odds that are computed apart; 0 is no price."""
    policy = JumpPolicy(JumpRules(ObservationLayout(4, 5, price_low=0.02, price_high=2.0), 2, allow_exit=True))
    odds = torch.tensor([0.5, 1.5, 3.0, 9.0, 1e6])  # of a jump of 2 over none
    logits = torch.stack([torch.zeros(5), torch.full((5,), -3.0), odds.log()], dim=1)
    for price, least in ((2.0, 1.0), (0.02, 1.0), (0.01, 2.0), (0.02 / 8, 8.0), (1e-30, math.inf), (0.0, 1.0)):
        assert (policy.likeliest(logits, torch.full((5,), price)) == 2 * (odds > least)).all(), price
    assert policy.likeliest(logits[3:], torch.tensor([1e-30, 1.0])).tolist() == [0, 2]
