"""The exact gradient on a problem whose optimum is known: rows of four types, a table of what each exit is worth to each, and all stopping rules."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from agents.options.config import PolicyConfig, PriceConfig, ScheduleConfig, TrainConfig
from agents.policy.reinforce import Reinforce
from agents.run.learner import Learner
from rl_skip.core.forward import routed_forward
from rl_skip.core.stack import Carry, LayerStack
from rl_skip.core.task import Examples, Split, Task
from rl_skip.learning.prices import FixedPrice

GROUPS, KINDS, DEPTH, SHOWN = 2, 2, 6, 2
"""Each type is a group and a kind; which kind a row is shows only after layer `SHOWN`."""
TYPES, WIDTH, ROWS = GROUPS * KINDS, GROUPS + KINDS + DEPTH, 64
PRICES = (0.1, 0.3, 0.7)
FLOPS = [1e5, 1e5, 2e5, 1e5, 2e5, 1e5]
SCORE = torch.tensor(
    [
        [0.75, 0.80, 0.82, 0.85, 0.86, 0.87],  # group 0, kind 0: leaves at once, if it could be told from kind 1
        [0.10, 0.20, 0.30, 0.90, 0.92, 0.95],  # group 0, kind 1
        [0.50, 0.65, 0.66, 0.67, 0.68, 0.69],  # group 1, kind 0
        [0.45, 0.70, 0.60, 0.40, 0.70, 0.99],  # group 1, kind 1: answers are lost in the middle
    ],
    dtype=torch.float64,
)
"""(K, L), of leaving after each layer."""


class ShowingStack(LayerStack):
    """Layers that write into the hidden state, beside group and kind, that they have run."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.width = DEPTH, WIDTH
        self.register_buffer("layer_flops", torch.tensor(FLOPS))
        self.spell = nn.Linear(WIDTH, DEPTH, bias=False)
        self.spell.weight.data = torch.eye(WIDTH)[GROUPS + KINDS :]

    def begin(self, inputs: Tensor) -> Carry:
        return Carry(hidden=torch.cat([inputs, torch.zeros(len(inputs), DEPTH)], dim=1), full_flops=torch.full((len(inputs),), sum(FLOPS)))

    def run(self, i: int, carry: Carry, rows: Tensor | None) -> Tensor:
        rows = torch.arange(len(carry.hidden)) if rows is None else rows
        carry.hidden = carry.hidden.clone()
        carry.hidden[rows, GROUPS + KINDS + i] = 1.0
        return self.layer_costs[i].expand(len(rows))

    def pooled(self, carry: Carry, rows: Tensor | None) -> Tensor:
        """What the policy sees: the kind only once layer `SHOWN` has run."""
        seen = carry.hidden.clone() if rows is None else carry.hidden[rows]
        seen[:, GROUPS : GROUPS + KINDS] *= seen[:, GROUPS + KINDS + SHOWN].unsqueeze(1)
        return seen

    def readout(self) -> nn.Module:
        return self.spell

    def read(self, readout: nn.Module, carry: Carry, rows: Tensor | None) -> Tensor:
        return readout(self.gathered(carry, rows)[0])

    def finish(self, carry: Carry) -> Tensor:
        return self.spell(carry.hidden)


class TableTask(Task):
    """The score is what the table says of the exit, which the outputs spell, and of the type, which is the label."""

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return SCORE.float()[labels, (outputs > 0.5).sum(dim=1) - 1]


def load(split: Split) -> Examples:
    labels = torch.arange(ROWS) % TYPES
    return Examples(torch.cat([torch.eye(GROUPS)[labels // KINDS], torch.eye(KINDS)[labels % KINDS]], dim=1), labels)


def learner(price: float, updates: int) -> Learner:
    schedule = ScheduleConfig(warmup_epochs=0, epochs=updates, batch_size=ROWS, policy_learning_rate=1e-2, tune="frozen")
    policy = PolicyConfig(readouts=True, jumps=False, feature=("hidden",))
    config = TrainConfig(pricing=PriceConfig(price=price), schedule=schedule, policy=policy)
    return Learner(config, TableTask("table", tuple("abcd"), load, nn.Identity, tokens=1), torch.device("cpu"), ShowingStack())


def rewards(hidden: int, price: float) -> Tensor:
    """(K, L), by the formula: score less price times the layers that ran, a decision after each but the last, and a readout where a row leaves."""
    decision = 2 * (WIDTH + 3) * hidden + 2 * hidden * DEPTH
    decisions = torch.tensor([*range(1, DEPTH), DEPTH - 1])
    readouts = 2 * WIDTH * DEPTH * (torch.arange(DEPTH) < DEPTH - 1)
    return SCORE - price * (torch.tensor(FLOPS).cumsum(0) + decision * decisions + readouts).double() / sum(FLOPS)


def best_of_all_rules(reward: Tensor) -> float:
    """Every stopping rule that looks at the group before the kind is shown and at both afterwards, tried on types of equal frequency."""
    total = 0.0
    for group in reward.view(GROUPS, KINDS, DEPTH):
        earned = []
        early, late = range(SHOWN), range(SHOWN, DEPTH - 1)
        for decisions in itertools.product([False, True], repeat=len(early) + KINDS * len(late)):  # whether to leave: by group, then by kind
            by_group, by_kind = decisions[: len(early)], decisions[len(early) :]
            exits = []
            for kind in range(KINDS):
                leaves = [*by_group, *by_kind[kind * len(late) : (kind + 1) * len(late)], True]
                exits.append(group[kind, leaves.index(True)].item())
            earned.append(sum(exits) / KINDS)
        total += max(earned) / GROUPS
    return total


def best_single_exit(reward: Tensor) -> float:
    return reward.mean(dim=0).max().item()


@pytest.mark.parametrize("price", PRICES)
def test_the_exact_gradient_finds_the_best_stopping_rule(price: float) -> None:
    updates = 250
    taught = learner(price, updates)
    agent = Reinforce(taught, FixedPrice(price))
    assert agent.exact
    for update in range(updates):
        agent.update(update)
    rows, reward = taught.validation, rewards(taught.rules.hidden, price)
    with torch.no_grad():
        found = routed_forward(taught.stack, taught.policy, rows.inputs, price=price)
    earned = (taught.task.score(found.outputs, rows.labels).double() - price * found.compute.double()).mean().item()
    best = best_of_all_rules(reward)
    assert 0.995 * best <= earned <= best + 1e-6
    assert best_single_exit(reward) < 0.995 * best, "looking pays"


def test_the_problem_is_one_of_looking_further() -> None:
    """What the best rule earns lies below what types that showed at once would let it, and what is best differs with the price."""
    reward = {price: rewards(128, price) for price in PRICES}
    assert all(best_of_all_rules(table) <= table.max(dim=1).values.mean().item() + 1e-9 for table in reward.values())
    assert best_of_all_rules(reward[0.3]) < reward[0.3].max(dim=1).values.mean().item() - 0.01
    assert len({tuple(table.argmax(dim=1).tolist()) for table in reward.values()}) == 3
