"""Baselines that leave by their readouts: against obvious loops over rows, and what they cost."""

import itertools
from dataclasses import fields
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from rl_skip.core.features import CONFIDENCES
from rl_skip.core.forward import routed_forward
from rl_skip.measure.compare.leaving import (
    EntropyExits,
    ExitTable,
    Patience,
    agreed,
    entropy,
    exit_table,
    exits_seen,
    one_threshold,
    threshold_for_each_class,
    threshold_for_each_exit,
)
from rl_skip.measure.evaluation import evaluate
from rl_skip.measure.every_price import exit_outcomes
from tests.rl_skip.measure.leaving_stack import DEPTH, ROWS, make_policy, make_stack, make_task


def every_logit() -> Tensor:
    """(N, L, C), what each exit says of each row, in plain calls."""
    stack, x = make_stack(), make_task().load("test").inputs
    hidden, said = stack.embed(x), []
    assert stack.readouts is not None
    for layer, head in zip(stack.layers, [*stack.readouts.each, stack.head], strict=True):
        hidden = layer(hidden)
        said.append(head(hidden))
    return torch.stack(said, dim=1).detach()


def leave_one_by_one(leaves: Tensor) -> list[int]:
    return [next((k for k in range(DEPTH - 1) if row[k]), DEPTH - 1) for row in leaves.tolist()]


def leave_as_expected(router: EntropyExits | Patience, leaves: Tensor) -> bool:
    """Whether rows leave where they should, at different depths, are answered there, and pay for the layers and a look at each readout."""
    stack, task, logits = make_stack(), make_task(), every_logit()
    at = evaluate(stack, router, task, task.load("test"), batch_size=16)
    expected = leave_one_by_one(leaves)
    assert (at.route.sum(dim=1) - 1).tolist() == expected
    assert at.prediction.tolist() == [logits[row, k].argmax().item() for row, k in enumerate(expected)]
    assert stack.readouts is not None
    readout = stack.readouts.flops / float(stack.layer_flops.sum())
    paid = torch.tensor([(k + 1) / DEPTH + min(k + 1, DEPTH - 1) * readout for k in expected])
    torch.testing.assert_close(at.compute_by_row, paid)
    return len(set(expected)) > 1


def test_thresholds() -> None:
    entropies = entropy(every_logit().flatten(0, 1)).view(ROWS, DEPTH)[:, :-1]
    limit = float(entropies.quantile(0.3))
    assert leave_as_expected(EntropyExits(limit), entropies < limit)
    limits = entropies.quantile(torch.tensor([0.2, 0.4, 0.3, 0.5]), dim=0).diagonal().tolist()
    assert leave_as_expected(EntropyExits(limits), entropies < torch.tensor(limits))
    answers = every_logit().argmax(dim=-1)[:, :-1]
    assert len(answers.unique()) > 1
    by_class = entropies.flatten().quantile(torch.linspace(0.2, 0.5, int(answers.max()) + 1)).tolist()
    below = [[entropies[row, k] < by_class[answers[row, k]] for k in range(DEPTH - 1)] for row in range(ROWS)]
    assert leave_as_expected(EntropyExits(by_class, by_class=True), torch.tensor(below))


@pytest.mark.parametrize("steps", [1, 2])
def test_patience(steps: int) -> None:
    answers = every_logit().argmax(dim=-1)
    same = answers[:, 1:] == answers[:, :-1]
    leaves = torch.zeros(ROWS, DEPTH - 1, dtype=torch.bool)
    for row, k in itertools.product(range(ROWS), range(steps, DEPTH - 1)):
        leaves[row, k] = bool(same[row, k - steps : k].all())
    assert leave_as_expected(Patience(steps), leaves)
    assert torch.equal(agreed(answers)[:, :-1] >= steps, leaves)


def test_the_table_is_what_the_exits_say_and_cost() -> None:
    stack, task, logits = make_stack(), make_task(), every_logit()
    examples = task.load("test")
    table = exit_table(stack, task, examples)
    assert torch.equal(table.answer, logits.argmax(dim=-1))
    assert torch.equal(table.score.bool(), table.answer == examples.labels.unsqueeze(1))
    for k in range(DEPTH):
        route = torch.arange(DEPTH) <= k
        torch.testing.assert_close(table.alone[:, k], routed_forward(stack, route, examples.inputs).compute)
    never = routed_forward(stack, EntropyExits(0.0), examples.inputs)
    torch.testing.assert_close(table.asked[:, -1], never.compute)
    always = routed_forward(stack, EntropyExits(float("inf")), examples.inputs)
    torch.testing.assert_close(table.asked[:, 0], always.compute)


def test_one_pass_for_both_finds_what_a_pass_for_each_finds() -> None:
    stack, task = make_stack(), make_task()
    policy, examples = make_policy(stack, *CONFIDENCES), task.load("test")
    table, outcomes = exits_seen(stack, policy, task, examples)
    with patch.object(type(stack), "run", autospec=True, side_effect=type(stack).run) as run:
        exits_seen(stack, policy, task, examples)
    assert run.call_count == DEPTH
    alone = exit_outcomes(stack, policy, task, examples)
    assert alone is not None
    for found, expected in ((table, exit_table(stack, task, examples)), (outcomes, alone)):
        for field in fields(expected):
            assert torch.equal(getattr(found, field.name), getattr(expected, field.name)), field.name


def test_thresholds_for_each_exit_earn_what_the_best_of_all_earn_where_they_can_be_tried() -> None:
    torch.manual_seed(5)
    score, entropies = torch.rand(12, 3).round(), torch.rand(12, 2)
    zeros = torch.zeros(12, 1)
    table = ExitTable(score, entropies, score, torch.arange(1.0, 4).expand(12, 3) / 3, zeros, zeros, zeros)

    def earned(limits: list[float]) -> float:
        rows = [next((k for k in range(2) if row[k] < limits[k]), 2) for row in entropies.tolist()]
        return sum(float(score[n, k]) - 0.3 * (k + 1) / 3 for n, k in enumerate(rows)) / 12

    found = threshold_for_each_exit(table, 0.3)
    candidates = [[0.0, *sorted(entropies[:, k].tolist()), 2.0] for k in range(2)]
    best = max(earned(list(limits)) for limits in itertools.product(*candidates))
    assert earned(found) == pytest.approx(best, abs=1e-6)
    assert earned(found) > max(earned([limit, limit]) for limit in one_threshold(entropies))


def test_thresholds_for_each_class_earn_what_the_best_of_all_earn_where_they_can_be_tried() -> None:
    torch.manual_seed(5)
    score, entropies, answers, zeros = torch.rand(12, 3).round(), torch.rand(12, 2), torch.randint(2, (12, 3)), torch.zeros(12, 1)
    table = ExitTable(score, entropies, answers, torch.arange(1.0, 4).expand(12, 3) / 3, zeros, zeros, zeros)

    def earned(limits: list[float]) -> float:
        rows = [next((k for k in range(2) if entropies[n, k] < limits[int(answers[n, k])]), 2) for n in range(12)]
        return sum(float(score[n, k]) - 0.3 * (k + 1) / 3 for n, k in enumerate(rows)) / 12

    found = threshold_for_each_class(table, 3, 0.3)  # of the third, which no readout answers, nothing is learned
    candidates = [[0.0, *sorted(entropies[answers[:, :-1] == c].tolist()), 2.0] for c in range(2)]
    best = max(earned(list(limits)) for limits in itertools.product(*candidates))
    assert earned(found[:2]) == pytest.approx(best, abs=1e-6)
    assert earned(found[:2]) > max(earned([limit, limit]) for limit in one_threshold(entropies))
