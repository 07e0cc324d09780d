"""The instrument itself: on a stack whose answers are known by arithmetic, `compare` must give those answers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rl_skip import JumpPolicy, JumpRules, LayerStack, ObservationLayout
from rl_skip.core.dial import PriceTable
from rl_skip.core.errors import UserError
from rl_skip.core.forward import routed_forward
from rl_skip.core.routing import Decision, Router, RoutingState
from rl_skip.core.stack import Carry
from rl_skip.core.task import Examples, Split, Task
from rl_skip.core.view import View
from rl_skip.export.policy_folder import SkipModel
from rl_skip.measure.compare import book
from rl_skip.measure.compare.baseline import BaselineRecord
from rl_skip.measure.compare.book import RouteBook
from rl_skip.measure.compare.comparison import compared
from rl_skip.measure.compare.curves import Curve, Point
from rl_skip.measure.compare.measure import Measurement, measure
from rl_skip.measure.compare.measured import Bench, MeasuredBaseline
from rl_skip.measure.compare.result import BEST_FIXED, FULL_DEPTH, ORACLE, POLICY, RANDOM, SHUFFLED, Comparison
from rl_skip.measure.compare.rows import Rows
from rl_skip.measure.compare.text import terminal
from rl_skip.measure.evaluation import evaluate
from rl_skip.nets.network import NetworkConfig, build_network
from rl_skip.tasks import load_task

DEPTH, COMMON, RARE = 4, 40, 20
PRICE = 0.2
ROWS = COMMON + RARE


class TwoKinds(LayerStack):
    """Four layers of equal cost that only write down that they ran; a row of type 0 needs layer 1, one of type 1 needs layer 2."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.width = DEPTH, 2 + DEPTH
        self.register_buffer("layer_flops", torch.full((DEPTH,), 1e12))  # beside which decisions cost nothing
        self.weight = nn.Parameter(torch.ones(1))

    def begin(self, inputs: Tensor) -> Carry:
        hidden = torch.cat([inputs, torch.zeros(len(inputs), DEPTH)], dim=1)
        return Carry(hidden=hidden, full_flops=torch.full((len(inputs),), DEPTH * 1e12))

    def run(self, i: int, carry: Carry, rows: Tensor | None) -> Tensor:
        rows = torch.arange(len(carry.hidden)) if rows is None else rows
        carry.hidden = carry.hidden.index_put((rows, torch.tensor(2 + i)), torch.ones(len(rows)))
        return self.layer_costs[i].expand(len(rows))

    def pooled(self, carry: Carry, rows: Tensor | None) -> Tensor:
        return carry.hidden if rows is None else carry.hidden[rows]

    def finish(self, carry: Carry) -> Tensor:
        return carry.hidden


class NeedsItsLayer(Task):
    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs.gather(1, 3 + labels.unsqueeze(1)).squeeze(1)


class Scripted(JumpPolicy):
    """After layer 0 jumps to layer 1 or 2 as told for each type, then to the last."""

    def __init__(self, targets: tuple[int, int]) -> None:
        super().__init__(JumpRules.reaching(ObservationLayout(2 + DEPTH, DEPTH), hidden=1))
        self.targets = torch.tensor(targets)

    def forward(self, observation: Tensor) -> Tensor:
        layer, kind = self.rules.layout.layer_of(observation), (observation[:, 1] > observation[:, 0]).long()
        next_layer = torch.where(layer == 0, self.targets[kind], DEPTH - 1)
        return torch.zeros(len(observation), self.rules.max_jump + 1).scatter(1, (next_layer - layer - 1).clamp(min=0).unsqueeze(1), 9.0)


def load(split: Split) -> Examples:
    labels = (torch.arange(ROWS) >= COMMON).long()
    return Examples(torch.eye(2)[labels], labels)


TASK = NeedsItsLayer("two kinds", ("common", "rare"), load, nn.Identity, tokens=1)
LOOKING, COMMON_ONLY = (1, 2), (1, 1)


def measured(targets: tuple[int, int], seed: int = 0, own: tuple[MeasuredBaseline, ...] = ()) -> Measurement:
    model = SkipModel(TwoKinds(), Scripted(targets), price=PRICE).eval()
    return measure(Path("run"), seed, model, TASK, Rows.load(TASK, "cpu"), budgets=(0.5,), own=own)


def comparison_of(targets: tuple[int, int], *baselines: Curve) -> Comparison:
    return compared([measured(targets)], [list(baselines)])


def at_exported(comparison: Comparison, name: str) -> tuple[float, float]:
    found = comparison.operating[0].baseline(name)
    assert found is not None
    return found.score.value, found.compute


def test_every_number_is_the_one_that_arithmetic_gives() -> None:
    found = comparison_of(LOOKING)
    close = {"rel": 1e-5, "abs": 1e-6}
    assert at_exported(found, POLICY) == pytest.approx((1.0, 0.75), **close)
    assert at_exported(found, FULL_DEPTH) == pytest.approx((1.0, 1.0), **close)
    assert at_exported(found, BEST_FIXED) == pytest.approx((COMMON / ROWS, 0.75), **close)
    assert found.operating[0].baseline(BEST_FIXED).layers == (0, 1, 3)
    assert at_exported(found, ORACLE) == pytest.approx((1.0, 0.75), **close)
    same_type = (COMMON * (COMMON - 1) + RARE * (RARE - 1)) / (ROWS * (ROWS - 1))
    assert at_exported(found, SHUFFLED) == pytest.approx((same_type, 0.75), **close)
    right, compute = at_exported(found, RANDOM)
    assert right == pytest.approx(0.5, abs=3 * 0.5 / (4 * ROWS) ** 0.5) and compute == pytest.approx(0.75, abs=1e-5)
    rewards = {POLICY: 1 - 0.75 * PRICE, BEST_FIXED: 1 - PRICE, ORACLE: 1 - 0.75 * PRICE}  # at this price full depth is the best fixed route
    assert found.operating[0].rewards == pytest.approx(rewards, **close)
    areas = {curve.record.name: curve.area.value for curve in found.curves}
    nothing = COMMON / ROWS  # where nothing is affordable the more frequent class is answered
    assert areas[POLICY] == pytest.approx((0.55 * nothing + 0.25 * 1) / 0.8, **close)
    assert areas[BEST_FIXED] == pytest.approx((0.3 * nothing + 0.25 * 0 + 0.25 * nothing) / 0.8, **close)
    assert (found.operating[0].distinct_routes, found.rows, found.depth) == (2, ROWS, DEPTH)
    shares = torch.tensor([COMMON / ROWS, RARE / ROWS])
    assert found.operating[0].route_entropy == pytest.approx(float(-(shares * shares.log2()).sum()), rel=1e-5)


def test_a_policy_that_copies_the_oracle_closes_the_gap_and_is_to_be_used() -> None:
    found = comparison_of(LOOKING)
    gap = found.operating[0].gap_closed
    assert gap is not None and (gap.value, gap.low, gap.high) == pytest.approx((1.0, 1.0, 1.0), abs=1e-4)
    assert found.verdict.use == POLICY
    lead = 100 * RARE / ROWS
    assert f"beats the best fixed route at compute 0.75 by {lead:.1f} ±" in found.verdict.sentences[0]
    assert any("it looks at its input" in sentence for sentence in found.verdict.sentences)


def test_a_policy_that_ignores_its_input_gets_the_verdict_fixed() -> None:
    found = comparison_of(COMMON_ONLY)
    assert found.verdict.use == "fixed"
    assert "a fixed route is as good here" in found.verdict.sentences[0]
    assert "`python -m rl_skip prune run DIR` writes the network without layer 2," in found.verdict.sentences[0]
    assert any("does not look at its input" in sentence for sentence in found.verdict.sentences)
    gap = found.operating[0].gap_closed
    fixed, policy, oracle = 1 - PRICE, COMMON / ROWS - 0.75 * PRICE, 1 - 0.75 * PRICE
    assert gap is not None and gap.value == pytest.approx((policy - fixed) / (oracle - fixed), rel=1e-4)


def baseline(title: str, name: str, right: int, compute: float, label: str = "one") -> Curve:
    """A baseline that is right on the first `right` rows."""
    point = Point(label, None, None, (torch.arange(ROWS) < right).float(), torch.full((ROWS,), compute))
    record = BaselineRecord(name, title, advice=f"train it with train.py --agent {name}", trained=True)
    return Curve(record, 0, (point,), (point,))


def test_a_trained_baseline_that_is_better_is_named_and_one_that_costs_more_is_not_set_beside() -> None:
    better = comparison_of(COMMON_ONLY, baseline("Gumbel gate", "gumbel", ROWS, 0.7))
    assert better.verdict.use == "gumbel"
    assert any(sentence.startswith("Gumbel gate is better by 33.3 ±") and "--agent gumbel" in sentence for sentence in better.verdict.sentences)
    dearer = comparison_of(COMMON_ONLY, baseline("Gumbel gate", "gumbel", ROWS, 0.8))
    assert dearer.verdict.use == "fixed" and dearer.operating[0].baseline("gumbel") is None


def test_a_baseline_that_is_better_on_few_rows_is_not_called_better() -> None:
    close = comparison_of(COMMON_ONLY, baseline("Gumbel gate", "gumbel", COMMON + 5, 0.7))  # 5 rows to 0: McNemar's p is 2 / 2^5
    found = close.operating[0].baseline("gumbel")
    assert found is not None and found.lead.high < 0 and found.p_value == pytest.approx(2 / 2**5)
    assert close.verdict.use == "fixed"


class AsKindsAsk(Router):
    """Three layers for each row, those that its kind needs, without asking anybody."""

    def decide(self, state: RoutingState, i: int, rows: Tensor) -> Decision:
        kind = View(state, rows).hidden[:, 1].long()
        return Decision(1 + kind if i == 0 else torch.full_like(rows, DEPTH - 1 if i < DEPTH - 1 else DEPTH))


def as_kinds_ask(bench: Bench) -> dict[str, Any]:
    """And layers 0 and 3 alone."""
    return {"as asked": AsKindsAsk(), "ends": torch.tensor([True, False, False, True])}


def test_a_baseline_of_ones_own_is_measured_listed_and_named_by_the_verdict() -> None:
    own = MeasuredBaseline(BaselineRecord("asked", "as the kinds ask", advice="use that"), as_kinds_ask)
    found = compared([measured(COMMON_ONLY, own=(own,))], [[baseline("Gumbel gate", "gumbel", COMMON, 0.7)]])
    assert [curve.record.name for curve in found.curves] == [POLICY, FULL_DEPTH, BEST_FIXED, "asked", "gumbel", RANDOM, SHUFFLED, ORACLE]
    assert [(point.label, point.compute) for point in found.curves[3].points] == [("ends", 0.5), ("as asked", 0.75)]
    assert at_exported(found, "asked") == (1.0, 0.75)
    assert found.verdict.use == "asked" and found.verdict.sentences[0].startswith("as the kinds ask is better by 33.3 ±")
    assert found.verdict.sentences[0].endswith(": use that.")


def test_a_baseline_of_ones_own_that_is_none_is_told_in_one_line() -> None:
    record = BaselineRecord("mine", "mine")
    for wrong, said in (
        (MeasuredBaseline(record, lambda bench: {}), "gave no way to run"),
        (MeasuredBaseline(BaselineRecord("mine", "mine", control=True), as_kinds_ask), "for each of the policy's prices"),
        (MeasuredBaseline(BaselineRecord(ORACLE, "mine"), as_kinds_ask), "there is a baseline 'oracle' already"),
    ):
        with pytest.raises(UserError, match=said):
            measured(LOOKING, own=(wrong,))


def test_seeds_are_averaged_and_a_baseline_that_some_lack_is_left_out() -> None:
    both = [measured(LOOKING, seed=0), measured(COMMON_ONLY, seed=1)]
    found = compared(both, [[baseline("static", "static", ROWS, 0.5)], []])
    assert found.seeds == (0, 1)
    policy = found.operating[0].baselines[0]
    assert policy.score.value == pytest.approx((1 + COMMON / ROWS) / 2)
    assert policy.score.low == pytest.approx(COMMON / ROWS, abs=0.15) and policy.score.high == pytest.approx(1.0)
    assert all(curve.record.name != "static" for curve in found.curves)
    assert any("static was measured for 1 of 2 runs" in note for note in found.notes)


def test_random_routes_cost_what_the_policy_costs_where_layers_differ_in_cost(small: tuple[SkipModel, Task, Examples]) -> None:
    model, task, _ = small
    stack = build_network(NetworkConfig(layers=5, width=16, heads=2), task.embedding, task.tokens, 10).eval()
    stack.layer_flops.copy_(torch.tensor([5e5, 1e5, 3e5, 1e5, 1e5]))
    found = measure(Path("run"), 0, SkipModel(stack, model.policy, price=0.1), task, Rows.load(task, "cpu"), ())
    policy, chance = (found.curves[name].test[0].mean_compute for name in (POLICY, RANDOM))
    assert chance == pytest.approx(policy, abs=0.02)


def test_time_is_given_for_each_batch_size() -> None:
    times = comparison_of(LOOKING).times
    assert [one.batch_size for one in times] == [1, 8, ROWS]
    assert all(one.full_depth > 0 and one.policy > 0 and 0 <= one.policy_share <= 1 and 0 <= one.break_even <= 1 for one in times)


@pytest.fixture(scope="module")
def small() -> tuple[SkipModel, Task, Examples]:
    """A network that nobody trained, with a policy that sends rows different ways."""
    task = load_task("digits")
    torch.manual_seed(2)
    stack = build_network(NetworkConfig(layers=5, width=16, heads=2), task.embedding, task.tokens, 10).eval()
    for parameter in stack.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(16, 5))).eval()
    nn.init.normal_(policy.fc_out.weight)
    nn.init.normal_(policy.fc_in.weight)
    return SkipModel(stack, policy, price=0.1), task, task.load("validation").take(slice(0, 24))


def alike(few: Examples) -> Rows:
    """The same rows for validation and test."""
    return Rows(few, few, (torch.arange(len(few)),) * 2, (len(few),) * 2)


@pytest.mark.parametrize("deepest", [12, 1])
def test_shuffled_routes_equal_a_loop_over_all_pairs(
    small: tuple[SkipModel, Task, Examples], monkeypatch: pytest.MonkeyPatch, deepest: int
) -> None:
    model, task, few = small
    monkeypatch.setattr(book, "EXHAUSTIVE_DEPTH", deepest)  # 1: nothing is looked up
    policy = evaluate(model.stack, model.policy, task, few, price=0.1)
    correct, compute = RouteBook(model.stack, task, few, allow_exit=False).shuffled_routes(policy)
    assert policy.distinct_routes > 2
    decisions = (policy.compute_by_row - policy.route.double().mean(dim=1)).mean()
    with torch.no_grad():
        for i in range(len(few)):
            others = [j for j in range(len(few)) if j != i]
            inputs = few.inputs[i].expand(len(others), -1, -1)
            rollout = routed_forward(model.stack, policy.route[others], inputs)
            right = (rollout.outputs.argmax(dim=1) == few.labels[i]).double().mean()
            assert float(correct[i]) == pytest.approx(float(right), abs=1e-6)
            assert float(compute[i]) == pytest.approx(float(rollout.compute.double().mean() + decisions), abs=1e-6)


@pytest.mark.parametrize("deepest", [12, 1])
def test_rows_that_follow_routes_equal_a_routed_forward_of_one_row_at_a_time(
    small: tuple[SkipModel, Task, Examples], monkeypatch: pytest.MonkeyPatch, deepest: int
) -> None:
    model, task, few = small
    monkeypatch.setattr(book, "EXHAUSTIVE_DEPTH", deepest)
    routes = torch.rand(len(few), 5, generator=torch.Generator().manual_seed(0)) < 0.5
    routes[:, 0] = routes[:, -1] = True
    correct, compute = RouteBook(model.stack, task, few, allow_exit=False).follow(routes)
    for i in range(len(few)):
        alone = routed_forward(model.stack, routes[i], few.inputs[i : i + 1])
        assert bool(correct[i]) == (int(alone.outputs.argmax()) == int(few.labels[i]))
        assert float(compute[i]) == pytest.approx(float(alone.compute), abs=1e-6)


def test_without_all_routes_there_is_no_oracle_and_it_is_said(small: tuple[SkipModel, Task, Examples], monkeypatch: pytest.MonkeyPatch) -> None:
    model, task, few = small
    monkeypatch.setattr(book, "EXHAUSTIVE_DEPTH", 1)
    found = compared([measure(Path("run"), 0, model, task, alike(few), ())], [[]])
    assert all(curve.record.name != ORACLE for curve in found.curves) and found.operating[0].gap_closed is None
    assert any("no oracle" in note for note in found.notes)


def test_the_dial_is_turned_to_every_budget(small: tuple[SkipModel, Task, Examples]) -> None:
    model, task, few = small
    stack, policy = model.stack, model.policy
    computes = {price: evaluate(stack, policy, task, few, price=price).compute for price in (0.001, 10.0)}
    low, high = computes[10.0], computes[0.001]
    assert low < high
    table = PriceTable.monotone([(10.0, low, 0.1), (0.001, high, 0.2)])
    found = measure(Path("run"), 0, SkipModel(stack, policy, price=0.1, table=table), task, alike(few), (low / 2, high))
    assert [one.budget for one in found.operating] == [None, low / 2, high]
    assert [one.price for one in found.operating] == pytest.approx([0.1, 10.0, 0.001])
    at = {point.price: point for point in found.curves[POLICY].test}
    assert len(at) >= 17
    for one in found.operating:
        alone = evaluate(stack, policy, task, few, price=one.price)
        torch.testing.assert_close(one.policy, alone.correct - one.price * alone.compute_by_row)
        assert torch.equal(at[one.price].correct, alone.correct)


def test_below_the_policys_reach_the_others_keep_to_the_budget() -> None:
    model = SkipModel(TwoKinds(), Scripted(LOOKING), price=PRICE, table=PriceTable.monotone([(PRICE, 0.75, 1.0)])).eval()
    run = measure(Path("run"), 0, model, TASK, Rows.load(TASK, "cpu"), budgets=(0.5, 0.75))
    within, dearer = (baseline(title, title, COMMON, compute) for title, compute in (("within", 0.5), ("dearer", 0.6)))
    exported, below, at = compared([run], [[within, dearer]]).operating
    assert (exported.reached, below.reached, at.reached) == (True, False, True)
    assert {one.record.name: one.compute for one in below.baselines} == pytest.approx({POLICY: 0.75, FULL_DEPTH: 1.0, BEST_FIXED: 0.5, "within": 0.5})
    assert {"dearer", RANDOM, SHUFFLED, ORACLE} <= {one.record.name for one in at.baselines}
    table = terminal(compared([run], [[within, dearer]]))
    assert "no less than 0.750" in table and "the policy spends at least 0.75; a fixed route has 0.0% at compute 0.5" in table


def test_few_rows_are_always_the_same_ones() -> None:
    task = load_task("digits")
    rows, again = Rows.load(task, "cpu", 50), Rows.load(task, "cpu", 50)
    test = task.load("test")
    assert len(rows.validation) == len(rows.test) == 50 and rows.totals == (len(task.load("validation")), len(test))
    assert torch.equal(rows.test.inputs, test.inputs[rows.indices[1]]) and torch.equal(rows.test.labels, test.labels[rows.indices[1]])
    assert torch.equal(rows.indices[1], again.indices[1]) and len(rows.indices[1].unique()) == 50
    everything = Rows.load(task, "cpu")
    assert torch.equal(everything.test.labels, test.labels)
