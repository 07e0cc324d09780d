"""The reward: what an episode earns, for agents, environment, evaluation, oracle, telemetry and card alike."""

import torch
from torch import Tensor

from rl_skip.core.plugins import Registry, made, own_code

__all__ = ["REWARDS", "LINEAR", "BudgetReward", "Reward", "as_reward", "check_reward", "find_reward"]


class Reward:
    """Reward = score − price · compute, in units of score. For another one, override what differs.

    Relative compute is a share of the full stack's operations, and the price λ is in score per unit of it: at a price of 0.1,
    running half of the layers less is worth five points of accuracy. It must not depend on how an episode is cut into
    steps, so a reward has two parts: what the answer is worth, and what the compute of the whole route costs.

    Example:
        >>> import torch
        >>> Reward().total(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.25]), price=0.1)
        tensor([ 0.9500, -0.0250])
    """

    formula = "score − price · compute"
    """What reports and model cards call it; a subclass that computes another and does not say so is called by its name."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "formula" not in vars(cls) and vars(cls).keys() & {"gain", "penalty", "total"}:
            cls.formula = cls.__name__

    def gain(self, score: Tensor) -> Tensor:
        """What an answer of that score is worth; any shape, in units of score."""
        return score

    def penalty(self, compute: Tensor, price: Tensor | float) -> Tensor:
        """What compute costs at a price, elementwise, in units of score; no compute costs nothing."""
        return price * compute

    def total(self, score: Tensor, compute: Tensor, price: Tensor | float) -> Tensor:
        """What a whole episode earns, elementwise."""
        return self.gain(score) - self.penalty(compute, price)

    def to_go(self, score: Tensor, spent: Tensor, price: Tensor) -> Tensor:
        """What an episode still earns after the decision of each column.

        Args:
            score: (B,).
            spent: (B, L), compute spent at each layer.
            price: (B,).

        Returns:
            (B, L): the gain less the penalty of all compute that follows.
        """
        so_far = self.penalty(spent.cumsum(dim=1), price.unsqueeze(1))  # (B, L)
        return self.total(score, spent.sum(dim=1), price).unsqueeze(1) + so_far


class BudgetReward(Reward):
    """Another reward, less a penalty for the squared distance of a row's compute from a budget.

    A multiplier only limits: where the score needs less than the budget, the price falls to nothing, and noise decides
    the routes. The small penalty then decides instead.

    Args:
        inner: the reward.
        budget: the mean compute allowed.
        weight: of the penalty. More brings every row nearer to the budget; 0 to 0.5.
    """

    def __init__(self, inner: Reward, budget: float, weight: float) -> None:
        self.inner, self.budget, self.weight = inner, budget, weight
        self.formula = f"{inner.formula} − {weight:g} · (compute − {budget:g})²"

    def gain(self, score: Tensor) -> Tensor:
        return self.inner.gain(score)

    def penalty(self, compute: Tensor, price: Tensor | float) -> Tensor:
        distance = self.weight * compute * (compute - 2 * self.budget)  # (compute − budget)², less that of no compute
        return self.inner.penalty(compute, price) + distance


LINEAR = Reward()
REWARDS: Registry[Reward] = Registry("reward", "--reward")
REWARDS.register("linear", LINEAR)


def as_reward(given: "Reward | type[Reward] | str") -> Reward:
    """A reward as it is, one of a class that needs no arguments, or the one of a name.

    Raises:
        UserError: if it is none, or not one that a route can earn, as `check_reward` says.
    """
    if isinstance(given, str):
        return find_reward(given)
    name = getattr(given, "__name__", repr(given))
    reward = made(given, Reward, REWARDS.kind, REWARDS.flag, name)
    check_reward(reward, name)
    return reward


def find_reward(reference: str) -> Reward:
    """The reward that is registered as `reference`, or that `file.py:name` names: a `Reward`, or a class of one.

    Raises:
        UserError: if there is none, or it is not one that a route can earn.
    """
    reward = made(REWARDS.find(reference), Reward, REWARDS.kind, REWARDS.flag, reference)
    check_reward(reward, reference)
    return reward


def check_reward(reward: Reward, name: str) -> None:
    """Refuses a reward that is not a finite number of each row, the same each time and whichever rows stand beside it.

    Args:
        name: the reward's, for the message.

    Raises:
        UserError: in one line, also where the reward fails.
    """
    score, compute, price = torch.tensor([[0.25, 1.0, 0.5, 0.9], [0.1, 1.0, 0.4, 1.2], [0.01, 1.0, 0.1, 3.0]])

    def earned(rows: slice) -> Tensor:
        return reward.gain(score[rows]) - torch.as_tensor(reward.penalty(compute[rows], price[rows])).expand(score[rows].shape)

    with own_code(f"the reward {name}"), torch.random.fork_rng(devices=[]):
        together, again = earned(slice(None)), earned(slice(None))
        if together.shape != score.shape or not together.isfinite().all():
            raise ValueError(f"{len(score)} rows must earn a finite number each, got {together.tolist()}")
        alone = torch.cat([earned(slice(i, i + 1)) for i in range(len(score))])
        if not torch.allclose(together, again) or not torch.allclose(together, alone):
            raise ValueError("what a row earns must not differ from call to call, nor with the rows beside it")
