"""A problem with a known optimum: rows of a few types, and a table that says what each route is worth to each type."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from agents.options.config import PriceConfig, ScheduleConfig, TrainConfig
from agents.run.learner import Learner
from rl_skip.core.forward import routed_forward
from rl_skip.core.policy import JumpPolicy
from rl_skip.core.stack import Carry, LayerStack
from rl_skip.core.task import Examples, Split, Task
from rl_skip.nets.network import NetworkConfig

TYPES, DEPTH, ROWS = 6, 6, 96
WIDTH = TYPES + DEPTH
FLOPS = [1e5, 1e5, 2e5, 1.5e5, 2e5, 1e5]
CORES = [(), (1,), (3,), (2,), (4,), (1,)]
EXTRAS = [(3,), (4,), (1, 4), (3,), (1,), (2, 3)]


class RouteStack(LayerStack):
    """Layers that do nothing but write into the hidden state, beside the row's type, that they have run."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.width = DEPTH, WIDTH
        self.register_buffer("layer_flops", torch.tensor(FLOPS))
        self.dummy = nn.Parameter(torch.ones(1))  # something for the optimiser to hold

    def begin(self, inputs: Tensor) -> Carry:
        hidden = torch.cat([inputs, torch.zeros(len(inputs), DEPTH)], dim=1)
        return Carry(hidden=hidden, full_flops=torch.full((len(inputs),), sum(FLOPS)))

    def run(self, i: int, carry: Carry, rows: Tensor | None) -> Tensor:
        rows = torch.arange(len(carry.hidden)) if rows is None else rows
        carry.hidden = carry.hidden.clone()
        carry.hidden[rows, TYPES + i] = 1.0
        return self.layer_costs[i].expand(len(rows))

    def pooled(self, carry: Carry, rows: Tensor | None) -> Tensor:
        return carry.hidden if rows is None else carry.hidden[rows]

    def finish(self, carry: Carry) -> Tensor:
        """(B, L + 1), the route and the dummy."""
        return torch.cat([carry.hidden[:, TYPES:], self.dummy.expand(len(carry.hidden), 1)], dim=1)


class RouteTask(Task):
    """The score of a row is what the table says of the route that the outputs spell and the type that is the label."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs[:, -1].square()

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return score_table()[labels, _number(outputs[:, :DEPTH])]

    def probability(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.score(outputs, labels)


def _number(route: Tensor) -> Tensor:
    """Routes (..., L) → numbers below 2^L, the lowest layer the lowest digit."""
    return (route > 0.5).long() @ (2 ** torch.arange(DEPTH))


@cache
def score_table() -> Tensor:
    """(K, 2^L): each type has layers that it needs, others that are worth something beside those alone; every route has a little noise."""
    generator = torch.Generator().manual_seed(0)
    table = 0.4 + 0.03 * torch.rand(TYPES, 2**DEPTH, generator=generator)
    for kind, route in itertools.product(range(TYPES), itertools.product([0, 1], repeat=DEPTH)):
        has_core = all(route[i] for i in CORES[kind])
        has_extra = has_core and all(route[i] for i in EXTRAS[kind])
        table[kind, _number(torch.tensor(route))] += 0.35 * has_core + 0.2 * has_extra
    return table


def _load(split: Split) -> Examples:
    generator = torch.Generator().manual_seed(len(split))
    labels = torch.arange(ROWS) % TYPES
    return Examples(torch.eye(TYPES)[labels] + 0.1 * torch.randn(ROWS, TYPES, generator=generator), labels)


@dataclass(frozen=True)
class Answers:
    """What every route earns with every type, types being equally frequent."""

    reward: Tensor
    """(K, R)."""

    @property
    def best(self) -> float:
        """Each type on its own best route."""
        return self.reward.max(dim=1).values.mean().item()

    @property
    def best_single_route(self) -> float:
        """All types on one route."""
        return self.reward.mean(dim=0).max().item()

    @property
    def random_routes(self) -> float:
        """A route drawn from all."""
        return self.reward.mean().item()

    @property
    def best_routes(self) -> list[int]:
        """(K), which route is the best of each type."""
        return self.reward.argmax(dim=1).tolist()


@dataclass(frozen=True)
class KnownOptimum:
    """The problem, learners for it, and the answers."""

    task: Task = field(default_factory=lambda: RouteTask("routes", tuple("abcdef"), _load, nn.Identity, tokens=1))

    def learner(self, pricing: PriceConfig, updates: int, **options: object) -> Learner:
        """A learner each of whose epochs is one update. `options` are those of `TrainConfig`."""
        schedule = ScheduleConfig(warmup_epochs=0, epochs=updates, batch_size=ROWS, policy_learning_rate=1e-2, full_depth_weight=0.0)
        config = TrainConfig(**{"pricing": pricing, "schedule": schedule, **options})
        return Learner(config, self.task, torch.device("cpu"), stack=RouteStack())

    def routes(self) -> Tensor:
        """(R, L) bool, all 16 routes; the first and the last layer always run."""
        return torch.tensor([(1, *middle, 1) for middle in itertools.product([0, 1], repeat=DEPTH - 2)]).bool()

    def compute(self, policy: JumpPolicy) -> Tensor:
        """(R,), by the formula: the layers that ran, and a decision after each of them but the last two of the stack."""
        H, J = policy.rules.hidden, policy.rules.max_jump
        decision = 2 * (WIDTH + 3) * H + 2 * H * (J + 1)
        routes = self.routes()
        return (routes.double() @ torch.tensor(FLOPS).double() + decision * routes[:, : DEPTH - 2].sum(dim=1)) / sum(FLOPS)

    def answers(self, policy: JumpPolicy, price: float) -> Answers:
        """By trying every route with every type."""
        return Answers(score_table()[:, _number(self.routes())].double() - price * self.compute(policy))

    def reward(self, learner: Learner, price: float) -> float:
        """What the greedy policy earns in the mean on rows that it was not trained on."""
        rows = learner.validation
        with torch.no_grad():
            found = routed_forward(learner.stack, learner.policy, rows.inputs, price=price)
        return (self.task.score(found.outputs, rows.labels) - price * found.compute).double().mean().item()


@pytest.fixture
def known_optimum() -> KnownOptimum:
    return KnownOptimum()


def _load_sums(split: Split) -> Examples:
    x = torch.randn(128, 5, 3, generator=torch.Generator().manual_seed(len(split)))
    return Examples(x, (x.sum(dim=(1, 2)) > 0).long())


@pytest.fixture
def tiny_learner() -> Callable[..., Learner]:
    """Learners with a network of four small layers on 128 rows, four updates to an epoch. Takes options of `TrainConfig`."""

    def make(**options: object) -> Learner:
        task = Task("sums", ("minus", "plus"), _load_sums, embedding=lambda width: nn.Linear(3, width), tokens=5)
        network, schedule = NetworkConfig(layers=4, width=16, heads=2), ScheduleConfig(warmup_epochs=2, epochs=3, batch_size=32)
        return Learner(TrainConfig(**{"network": network, "schedule": schedule, **options}), task, torch.device("cpu"))

    return make
