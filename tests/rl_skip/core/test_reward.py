"""Rewards: an episode earns the same in one piece and in steps, and a budget's penalty is what it says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rl_skip import Reward, UserError
from rl_skip.core.features import as_feature
from rl_skip.core.reward import LINEAR, BudgetReward, as_reward, find_reward


class Squared(Reward):
    formula = "score − price · compute²"

    def penalty(self, compute: Tensor, price: Tensor | float) -> Tensor:
        return price * compute**2


class Halved(Reward):
    def gain(self, score: Tensor) -> Tensor:
        return score / 2


@pytest.mark.parametrize("reward", [LINEAR, Squared(), Halved(), BudgetReward(Squared(), 0.4, 0.3)])
def test_the_reward_to_go_is_the_total_less_what_was_paid_before(reward: Reward) -> None:
    score, price, spent = torch.rand(4), torch.rand(4), torch.rand(4, 6)
    to_go = reward.to_go(score, spent, price)
    for row in range(4):
        for i in range(6):
            before, whole = spent[row, : i + 1].sum(), spent[row].sum()
            expected = reward.gain(score[row]) - (reward.penalty(whole, price[row]) - reward.penalty(before, price[row]))
            torch.testing.assert_close(to_go[row, i], expected)


def test_a_budget_adds_a_penalty_for_the_squared_distance_to_any_reward() -> None:
    compute, price = torch.tensor([0.0, 0.1, 0.4, 0.9]), torch.tensor([0.5, 0.5, 0.2, 0.0])
    found = BudgetReward(Squared(), 0.4, 0.3).penalty(compute, price)
    torch.testing.assert_close(found, price * compute**2 + 0.3 * ((compute - 0.4) ** 2 - 0.4**2))
    assert found[0] == 0, "nothing costs nothing"


def test_a_reward_is_found_by_name_and_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from rl_skip import Reward\nclass Energy(Reward):\n    formula = 'score − energy'\n"
        "    def penalty(self, compute, price):\n        return 2 * price * compute\nmade = Energy()\nnot_one = 3\n"
    )
    assert find_reward("linear") is LINEAR
    assert find_reward(f"{file}:Energy").formula == find_reward(f"{file}:made").formula == "score − energy"
    with pytest.raises(UserError, match="not_one is int, not a rl_skip.Reward"):
        find_reward(f"{file}:not_one")
    with pytest.raises(UserError, match="there is no reward 'quadratic'; set --reward to linear, or file.py:name"):
        find_reward("quadratic")


@pytest.mark.parametrize("given", [3, None, Tensor])
def test_what_is_no_reward_or_feature_is_refused_in_one_line(given: Any) -> None:
    with pytest.raises(UserError, match="not a rl_skip.Reward; set --reward"):
        as_reward(given)
    with pytest.raises(UserError, match="not a rl_skip.Feature; set --feature"):
        as_feature(given)
    assert as_reward("linear") is as_reward(LINEAR) is LINEAR


class Leaking(Reward):
    def penalty(self, compute: Tensor, price: Tensor | float) -> Tensor:
        return (price * compute).mean()


class Relative(Reward):
    def penalty(self, compute: Tensor, price: Tensor | float) -> Tensor:
        return price * (compute - compute.mean())


class Chance(Reward):
    def gain(self, score: Tensor) -> Tensor:
        return score + torch.rand_like(score)


class Narrow(Reward):
    """Defined at low prices alone."""

    def penalty(self, compute: Tensor, price: Tensor | float) -> Tensor:
        return -torch.log(1 - 3 * price * compute)


class Table(Reward):
    def penalty(self, compute: Tensor, price: Tensor | float) -> Tensor:
        return torch.tensor([0.0, 0.1, 0.4])[(compute * 4).round().long()]


class Cheapest(Reward):
    def gain(self, score: Tensor) -> float:  # type: ignore[override]
        return 0.0


@pytest.mark.parametrize("given", [Leaking, Relative])
def test_what_a_row_earns_does_not_depend_on_the_rows_beside_it(given: type[Reward], tmp_path: Path) -> None:
    state = torch.get_rng_state()
    with pytest.raises(UserError, match=f"the reward {given.__name__} gives rows another reward for the rows beside them: .* together, .* alone"):
        as_reward(given)
    as_reward(Chance)
    assert state.equal(torch.get_rng_state())


@pytest.mark.parametrize("given", [Chance, Narrow, Table, Cheapest])
def test_what_cannot_be_told_beforehand_is_left_to_those_that_use_it(given: type[Reward]) -> None:
    assert isinstance(as_reward(given), given)
