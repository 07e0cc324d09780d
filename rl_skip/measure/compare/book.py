"""What routes earn on the rows of one split, looked up where every route can be tried."""

import torch
from torch import Tensor

from rl_skip.core.errors import UserError
from rl_skip.core.reward import LINEAR, Reward
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, Task
from rl_skip.measure.evaluation import EXHAUSTIVE_DEPTH, Evaluation, all_routes, evaluate, evaluate_routes

__all__ = ["RouteBook"]

OTHERS = 512


class RouteBook:
    """Scores and computes of routes on N rows: of all routes at once for up to 12 layers, of each on demand above."""

    def __init__(self, stack: LayerStack, task: Task, examples: Examples, *, allow_exit: bool) -> None:
        self.stack, self.task, self.examples, self.allow_exit = stack, task, examples, allow_exit
        self.routes: Tensor | None = None
        """(R, L) bool, all routes; None above 12 layers."""
        if stack.depth <= EXHAUSTIVE_DEPTH:
            self.routes = all_routes(stack.depth, allow_exit)
            self.correct, self.compute = evaluate_routes(stack, task, examples, self.routes)  # (R, N) each
            self.index = torch.full((2**stack.depth,), -1)
            self.index[_number(self.routes)] = torch.arange(len(self.routes))

    def follow(self, route: Tensor) -> tuple[Tensor, Tensor]:
        """Score and compute, (N,) each, of rows that each follow their own `route` (N, L), or all of them one (L,)."""
        route = self._checked(route)
        column = torch.arange(len(self.examples))
        index = self._indices(route.expand(len(column), -1))
        if index is None:
            evaluation = evaluate(self.stack, route.to(self.examples.labels.device), self.task, self.examples)
            return evaluation.correct, evaluation.compute_by_row
        return self.correct[index, column], self.compute[index, column]

    def each(self, routes: Tensor) -> tuple[Tensor, Tensor]:
        """Score and compute, (K, N) each, of every row on each of `routes` (K, L)."""
        routes = self._checked(routes)
        index = self._indices(routes)
        if index is None:
            return evaluate_routes(self.stack, self.task, self.examples, routes)
        return self.correct[index], self.compute[index]

    def _indices(self, routes: Tensor) -> Tensor | None:
        """Where routes (..., L) stand in the book; None where one of them does not, such as one that leaves early where the policy may not."""
        if self.routes is None:
            return None
        index = self.index[_number(routes)]
        return None if (index < 0).any() else index

    def _checked(self, routes: Tensor) -> Tensor:
        if routes.shape[-1] != self.stack.depth:
            raise UserError(f"a route of this network has {self.stack.depth} layers, got {routes.shape[-1]}; mend the baseline that gave it")
        if not routes[..., 0].all():
            raise UserError("layer 0 always runs, and a route leaves it out; mend the baseline that gave it")
        return routes.bool()

    def best_by_row(self, price: float, reward: Reward = LINEAR) -> tuple[Tensor, Tensor]:
        """The oracle, which knows the labels: score and compute, (N,) each, of the route of highest reward for each row."""
        assert self.routes is not None
        best = reward.total(self.correct, self.compute, price).argmax(dim=0, keepdim=True)  # (1, N)
        return self.correct.gather(0, best).squeeze(0), self.compute.gather(0, best).squeeze(0)

    def shuffled_routes(self, policy: Evaluation) -> tuple[Tensor, Tensor]:
        """Score and compute, (N,) each, where every row follows the route that the policy chose for another row.

        The mean over all other rows, of which there are at most 512, is what a random other row's route gives in
        expectation. The cost of the decisions stays the policy's mean.
        """
        N = len(policy.route)
        others = torch.randperm(N, generator=torch.Generator().manual_seed(0))[:OTHERS]
        routes, which = policy.route[others].unique(dim=0, return_inverse=True)  # (K, L), (M,)
        weight = which.bincount(minlength=len(routes)).double().repeat(N, 1)  # (N, K)
        weight[others, which] -= 1  # no row is its own other
        weight /= weight.sum(dim=1, keepdim=True).clamp(min=1)
        correct, compute = self.each(routes)
        decisions = (policy.compute_by_row - self.follow(policy.route)[1]).mean()
        return (weight * correct.T).sum(dim=1), (weight * compute.T).sum(dim=1) + decisions


def _number(route: Tensor) -> Tensor:
    """Routes (..., L) → whole numbers below 2^L."""
    return route.long() @ (2 ** torch.arange(route.shape[-1]))
