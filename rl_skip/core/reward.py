"""The reward: what an episode earns, for agents, environment, evaluation, oracle, telemetry and card alike."""

import torch
from torch import Tensor

from rl_skip.core.errors import UserError
from rl_skip.core.plugins import Registry, made

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
        UserError: if it is none, or as `check_reward` says.
    """
    name = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    reward = find_reward(given) if isinstance(given, str) else made(given, Reward, REWARDS.kind, REWARDS.flag, name)
    check_reward(reward, name)
    return reward


def find_reward(reference: str) -> Reward:
    """The reward that is registered as `reference`, or that `file.py:name` names: a `Reward`, or a class of one.

    Raises:
        UserError: if there is none.
    """
    return made(REWARDS.find(reference), Reward, REWARDS.kind, REWARDS.flag, reference)


def check_reward(reward: Reward, name: str) -> None:
    """Refuses a reward by which what a row earns differs with the rows beside it, such as a mean over rows.

    One that changes from call to call, or cannot be told on made-up numbers, is left to those that use it.

    Args:
        name: the reward's, for the message.

    Raises:
        UserError: in one line.
    """
    score, compute, price = torch.tensor([[0.25, 1.0, 0.5, 0.9], [0.2, 0.9, 0.4, 0.7], [0.05, 0.2, 0.1, 0.4]])

    def earned(rows: slice) -> Tensor:
        parts = reward.gain(score[rows]), reward.penalty(compute[rows], price[rows])
        gain, penalty = (torch.as_tensor(part, dtype=torch.float32).expand(score[rows].shape) for part in parts)
        return gain - penalty

    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            first, again = earned(slice(None)), earned(slice(None))
            alone = torch.cat([earned(slice(i, i + 1)) for i in range(len(score))])
    except Exception:  # it may want other numbers than these
        return
    if torch.allclose(first, again, equal_nan=True) and not torch.allclose(first, alone, equal_nan=True):
        raise UserError(f"the reward {name} gives rows another reward for the rows beside them: {first.tolist()} together, {alone.tolist()} alone")
