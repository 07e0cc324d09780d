"""Measuring: the policy, full depth, fixed routes and random routes, on the same rows, by score, compute and time."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rl_skip.core.batches import in_batches
from rl_skip.core.features import View
from rl_skip.core.forward import routed_forward
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.progress import begin_stage
from rl_skip.core.reward import LINEAR, Reward
from rl_skip.core.routers import FixedRoute
from rl_skip.core.routing import Decision, Router, RoutingState
from rl_skip.core.stack import LayerStack
from rl_skip.core.task import Examples, Task

__all__ = [
    "BEAM",
    "EXHAUSTIVE_DEPTH",
    "Evaluation",
    "all_routes",
    "beside_full_depth",
    "best_fixed_route",
    "evaluate",
    "evaluate_routes",
    "hidden_states",
    "searched_routes",
]

EXHAUSTIVE_DEPTH = 12
BEAM = 32
ROWS_AT_ONCE = 512
SLACK = 1e-6
"""What rounding may add to a compute."""


@dataclass(frozen=True)
class Evaluation:
    """A policy, or a route, measured on a split."""

    price: float
    """The price λ, in score per unit of relative compute: the policy saw it, and the reward is computed at it."""
    route: Tensor
    """(N, L) bool."""
    correct: Tensor
    """(N,) float, the score of each row: 1 where the likeliest class is the label."""
    compute_by_row: Tensor
    """(N,), compute of each row's route."""
    prediction: Tensor
    """(N,) long, the likeliest class."""
    objective: Reward = LINEAR
    """What a row earns."""

    @property
    def rows(self) -> int:
        """N."""
        return self.correct.shape[0]

    @property
    def score(self) -> float:
        """Mean score: the accuracy, or what `Task.score_name` says."""
        return float(self.correct.double().mean())

    @property
    def compute(self) -> float:
        """Mean compute."""
        return float(self.compute_by_row.double().mean())

    @property
    def reward(self) -> float:
        """Mean of what the rows earn: score − price · compute, unless the objective is another."""
        return float(self.reward_by_row().mean())

    def reward_by_row(self) -> Tensor:
        """(N,) double, what each row earns."""
        return self.objective.total(self.correct.double(), self.compute_by_row.double(), self.price)

    @property
    def distinct_routes(self) -> int:
        """How many different routes the rows took."""
        return len(self.route.unique(dim=0))


def evaluate(
    stack: LayerStack,
    router: Router | JumpPolicy | Tensor,
    task: Task,
    examples: Examples,
    *,
    price: float = 0.0,
    reward: Reward = LINEAR,
    batch_size: int = 256,
) -> Evaluation:
    """Runs all examples in evaluation mode, on the device where they are; rows of like length run together.

    Args:
        router: decides after each layer; a policy takes the likeliest jump, and a route, (L,) or (N, L) bool, is followed.
        price: the price λ, in score per unit of relative compute; a policy sees it.
        reward: what a row earns.
    """

    route = router if isinstance(router, Tensor) else router.route if isinstance(router, FixedRoute) else None

    def run(batch: Examples, rows: Tensor) -> tuple[Tensor, ...]:
        chosen = route[rows.to(route.device)] if route is not None and route.dim() == 2 else router
        rollout = routed_forward(stack, chosen, batch.inputs, price=price)
        return rollout.route, task.score(rollout.outputs, batch.labels), rollout.compute, task.prediction(rollout.outputs)

    route, correct, compute, prediction = in_batches(run, examples, batch_size, stack)
    return Evaluation(price, route, correct, compute, prediction, reward)


def beside_full_depth(
    stack: LayerStack, policy: JumpPolicy, task: Task, examples: Examples, *, price: float, reward: Reward = LINEAR, batch_size: int = 256
) -> tuple[Evaluation, Evaluation]:
    """The policy at a price, and every layer, on the same rows."""
    begin_stage("policy")
    measured = evaluate(stack, policy, task, examples, price=price, reward=reward, batch_size=batch_size)
    begin_stage("full depth")
    return measured, evaluate(stack, torch.ones(stack.depth, dtype=torch.bool), task, examples, price=price, reward=reward, batch_size=batch_size)


def hidden_states(stack: LayerStack, examples: Examples, *, batch_size: int = 256) -> Tensor:
    """(N, L, D) on the CPU: what the hidden state is after each layer, at full depth, averaged over the real tokens; for heads or probes."""

    class Recorder(Router):
        def __init__(self) -> None:
            self.hidden: list[Tensor] = []

        def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
            self.hidden.append(View(state, rows).hidden)
            return Decision(torch.full_like(rows, i + 1))

    def run(batch: Examples, _rows: Tensor) -> tuple[Tensor]:
        recorder = Recorder()
        routed_forward(stack, recorder, batch.to(stack.layer_flops.device).inputs)
        return (torch.stack(recorder.hidden, dim=1),)

    return in_batches(run, examples, batch_size, stack)[0]


def all_routes(depth: int, allow_exit: bool) -> Tensor:
    """Every route that a policy without a limit on its jumps can take, (R, L) bool. Layer 0 always runs."""
    free = depth - 1 if allow_exit else max(depth - 2, 0)
    middle = torch.tensor(list(itertools.product([False, True], repeat=free)), dtype=torch.bool).view(-1, free)
    always = torch.ones(len(middle), 1, dtype=torch.bool)
    last = always[:, : depth - 1 - free]
    return torch.cat([always, middle, last], dim=1)


def evaluate_routes(stack: LayerStack, task: Task, examples: Examples, routes: Tensor) -> tuple[Tensor, Tensor]:
    """Every route on every example; routes that begin alike share the work.

    Args:
        routes: (R, L) bool, layer 0 run in all of them.

    Returns:
        The score of each row, (R, N) float, and its compute, (R, N).
    """

    def run(batch: Examples, _rows: Tensor) -> tuple[Tensor, Tensor]:
        correct, compute = _routes_at_once(stack, task, batch, routes)
        return correct.T, compute.T

    correct, compute = in_batches(run, examples, ROWS_AT_ONCE, stack)
    return correct.T.contiguous(), compute.T.contiguous()


def _routes_at_once(stack: LayerStack, task: Task, examples: Examples, routes: Tensor) -> tuple[Tensor, Tensor]:
    N, depth = len(examples), stack.depth
    correct, compute = torch.zeros(len(routes), N), torch.zeros(len(routes), N)
    begun = RoutingState(stack, None, examples.inputs, 0.0)
    everyone = torch.arange(N, device=begun.next_layer.device)

    def descend(i: int, chosen: Tensor, state: RoutingState) -> None:
        """Follows the routes `chosen` (indices) from layer i on; they agree on everything before."""
        if i == depth:
            state.follow(everyone, Decision(torch.full_like(everyone, depth)))
            correct[chosen], compute[chosen] = task.score(state.outputs(), examples.labels).cpu(), state.compute.cpu()
            return
        for run in (False, True):
            following = chosen[routes[chosen, i] == run]
            if len(following) == 0:
                continue
            forked = state.fork()
            if run and i > 0:
                forked.follow(everyone, Decision(torch.full_like(everyone, i)))
            if run:
                forked.visit(i)
            descend(i + 1, following, forked)

    descend(0, torch.arange(len(routes)), begun)
    return correct, compute


def best_fixed_route(
    stack: LayerStack, task: Task, validation: Examples, *, max_compute: float, allow_exit: bool = False, spends: bool = False
) -> Tensor:
    """The single route of highest validation score whose mean compute stays within `max_compute`, among the `searched_routes`.

    Args:
        max_compute: the mean compute allowed.
        allow_exit: whether a route may leave before the last layer.
        spends: leaves out routes beside which one more layer could be afforded.

    Returns:
        (L,) bool. The cheapest route where none is cheap enough.
    """
    routes, scores, computes = searched_routes(stack, task, validation, max_compute=max_compute, allow_exit=allow_exit)
    if spends:
        full = computes > max_compute - float(stack.layer_costs.min()) + SLACK
        if (full & (computes <= max_compute + SLACK)).any():
            routes, scores, computes = routes[full], scores[full], computes[full]
    return _best_within(routes, scores, computes, max_compute)


def searched_routes(
    stack: LayerStack, task: Task, validation: Examples, *, max_compute: float = math.inf, allow_exit: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Single routes up to `max_compute`, with their mean score and compute.

    All routes for up to 12 layers; above, a beam search that adds one layer at a time to the best routes so far.

    Returns:
        (R, L) bool, (R,) and (R,) double. The cheapest route is always among them.
    """
    if stack.depth <= EXHAUSTIVE_DEPTH:
        routes = all_routes(stack.depth, allow_exit)
        nominal = routes.float() @ stack.layer_costs.cpu()  # gates come on top: a route above the limit here is above it in truth
        routes = routes[nominal <= max(max_compute, float(nominal.min())) + SLACK]
        return routes, *_means(evaluate_routes(stack, task, validation, routes))
    shortest = torch.zeros(1, stack.depth, dtype=torch.bool)
    shortest[:, 0] = True
    shortest[:, -1] = not allow_exit
    beam, measured = shortest, [(shortest, *_means(evaluate_routes(stack, task, validation, shortest)))]
    while not beam[0].all():
        grown = (beam.unsqueeze(1) | torch.eye(stack.depth, dtype=torch.bool)).flatten(0, 1).unique(dim=0)
        grown = grown[grown.sum(dim=1) > beam[0].sum()]  # one layer more
        scores, computes = _means(evaluate_routes(stack, task, validation, grown))
        cheap = computes <= max_compute + SLACK
        if not cheap.any():
            break
        measured.append((grown[cheap], scores[cheap], computes[cheap]))
        beam = grown[cheap][scores[cheap].argsort(descending=True)[:BEAM]]
    routes, scores, computes = (torch.cat(parts) for parts in zip(*measured, strict=True))
    return routes, scores, computes


def _means(measured: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return measured[0].double().mean(dim=1), measured[1].double().mean(dim=1)


def _best_within(routes: Tensor, scores: Tensor, computes: Tensor, max_compute: float) -> Tensor:
    allowed = computes <= max_compute + SLACK
    if not allowed.any():
        allowed = computes <= computes.min()
    return routes[torch.where(allowed, scores - 1e-6 * computes, -1.0).argmax()]
