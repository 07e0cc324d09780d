import json
import math
import re
from fractions import Fraction
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.distributions import Binomial

from rl_skip import load, save
from rl_skip.cli.main import main
from rl_skip.core.dial import Guarantee, PricePoint, PriceTable, price_grid
from rl_skip.core.errors import UserError
from rl_skip.core.forward import routed_forward
from rl_skip.core.policy import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.core.task import Task
from rl_skip.measure.guarantee import PairedTest, RiskBound, guarantee, smallest_guaranteed, tango_z
from rl_skip.nets.network import NetworkConfig, build_network, network_to_json
from rl_skip.tasks import load_task
from tests.rl_skip.run_config import run_config

CRITICAL = 1.6448536269514722  # the 95% quantile of the normal distribution


def holds(rows, losses, gains, tolerance):
    return PairedTest(tolerance, rows, losses, gains).holds


@pytest.mark.parametrize(
    ("rows", "losses", "gains", "tolerance"),
    [(359, 3, 4, 0.01), (359, 1, 0, 0.01), (100, 20, 7, 0.05), (1000, 40, 60, 0.02), (50, 25, 24, 0.3), (200, 0, 9, 0.01)],
)
def test_the_statistic_is_that_of_the_likeliest_chances_at_the_tolerance(rows, losses, gains, tolerance):
    # the likelihood of (losses, gains, rest) with a loss more likely than a gain by the tolerance, searched on a fine grid
    q = torch.linspace(1e-9, (1 - tolerance) / 2 - 1e-9, 1_000_001, dtype=torch.float64)
    likelihood = losses * (q + tolerance).log() + gains * q.log() + (rows - losses - gains) * (1 - 2 * q - tolerance).log()
    best = float(q[likelihood.argmax()])
    variance = rows * ((best + tolerance) + best - tolerance**2)  # of a sum of independent +1, −1, 0
    expected = (losses - gains - rows * tolerance) / math.sqrt(variance)
    assert tango_z(rows, losses, gains, tolerance) == pytest.approx(expected, abs=1e-4)


def test_nothing_lost_and_nothing_gained_passes_from_the_closed_bound_on():
    for tolerance in (0.003, 0.01, 0.02, 0.1):
        least = math.ceil(CRITICAL**2 * (1 - tolerance) / tolerance)
        assert holds(least, 0, 0, tolerance)
        assert not holds(least - 1, 0, 0, tolerance)
        assert PairedTest(tolerance, 7, 0, 0).rows_needed == least
    assert holds(268, 0, 0, 0.01) and not holds(267, 0, 0, 0.01)


@pytest.mark.parametrize("gain", [0.0, 0.003, 0.02, 0.1])
@pytest.mark.parametrize(("rows", "tolerance"), [(360, 0.01), (1000, 0.01), (200, 0.02)])
def test_a_loss_at_the_tolerance_passes_at_most_once_in_twenty(rows, tolerance, gain):
    torch.manual_seed(0)
    draws, lose = 100_000, torch.tensor(gain + tolerance, dtype=torch.float64)
    losses = Binomial(rows, lose).sample((draws,))
    gains = Binomial(rows - losses, gain / (1 - lose)).sample()
    pairs, counts = torch.stack([losses, gains], dim=1).long().unique(dim=0, return_counts=True)
    passed = sum(n for (b, c), n in zip(pairs.tolist(), counts.tolist(), strict=True) if holds(rows, b, c, tolerance))
    assert passed / draws <= 0.0525
    assert passed / draws >= 0.015  # it is not so careful that it never passes


def test_without_gains_the_exact_chance_of_error_is_as_documented():
    def chance(rows):
        total, losses = 0.0, 0
        while holds(rows, losses, 0, 0.01):
            total += math.comb(rows, losses) * 0.01**losses * 0.99 ** (rows - losses)
            losses += 1
        return total

    chances = {rows: chance(rows) for rows in range(100, 1001)}
    assert max(chances, key=chances.__getitem__) == 268
    assert (round(chances[268], 3), round(chances[446], 3), round(chances[360], 3)) == (0.068, 0.062, 0.027)


def test_a_policy_that_loses_nothing_is_found_out_given_enough_rows():
    torch.manual_seed(1)
    losses = Binomial(2000, torch.tensor(0.01)).sample((2000,))
    gains = Binomial(2000 - losses, torch.tensor(0.01 / 0.99)).sample()
    passed = sum(holds(2000, int(b), int(c), 0.01) for b, c in zip(losses, gains, strict=True)) / 2000
    # normal approximation: (0.01 − 1.645 · √(0.03 / 2000)) / √(0.02 / 2000) = 1.15 standard deviations
    assert passed == pytest.approx(0.875, abs=0.04)


def test_more_losses_speak_against_and_more_gains_and_tolerance_for_it():
    for rows in (40, 359):
        for losses in range(0, 15):
            for gains in range(0, 15):
                here = tango_z(rows, losses, gains, 0.02)
                assert tango_z(rows, losses + 1, gains, 0.02) > here
                assert tango_z(rows, losses, gains + 1, 0.02) < here
                assert tango_z(rows, losses, gains, 0.03) < here
                assert tango_z(4 * rows, 4 * losses, 4 * gains, 0.02) == pytest.approx(2 * here)


def test_rows_needed_and_least_tolerance_are_where_it_turns():
    found = PairedTest(0.01, 1000, 10, 5)
    assert not found.holds and found.rows_needed is not None
    k = found.rows_needed / 1000
    assert tango_z(1000, 10, 5, 0.01) * math.sqrt(k) <= -CRITICAL < tango_z(1000, 10, 5, 0.01) * math.sqrt(k - 0.001)
    assert holds(1000, 10, 5, found.least_tolerance) and not holds(1000, 10, 5, found.least_tolerance - 0.0001)
    assert PairedTest(0.01, 1000, 15, 5).rows_needed is None


def fixed_order(outcomes, tolerance=0.01, kind="confidence"):
    """The guarantee, and which prices are tested; outcomes: price → (losses, gains) of 1,000 rows, and the compute, 1 / price where not given."""
    tested = []
    full = torch.cat([torch.ones(500), torch.zeros(500)])

    def measured_at(price):
        tested.append(price)
        losses, gains, *compute = outcomes[price]
        right = full.clone()
        right[:losses], right[500 : 500 + gains] = 0, 1
        return right, torch.full((1000,), *(compute or [1 / price]))

    return smallest_guaranteed(outcomes, measured_at, full, tolerance, kind), tested


def test_the_last_that_passes_before_the_first_that_fails_is_taken():
    found, tested = fixed_order({0.01: (0, 0), 0.1: (2, 3), 0.5: (9, 0), 1.0: (0, 0)})
    assert found == Guarantee("confidence", 0.01, price=0.1, rows=1000)
    assert tested == [0.01, 0.1, 0.5]  # 1.0 would pass, but after a failure nothing is tested
    assert fixed_order({0.01: (0, 0), 1.0: (0, 1)})[0].price == 1.0


@pytest.mark.parametrize("kind", ["confidence", "expectation"])
def test_of_those_that_pass_the_smallest_compute_is_taken(kind):
    outcomes = {0.01: (0, 0, 0.9), 0.1: (0, 0, 0.5), 0.3: (0, 0, 0.6), 0.5: (400, 0, 0.2)}
    assert fixed_order(outcomes, kind=kind)[0] == Guarantee(kind, 0.01, price=0.1, rows=1000)


def test_a_refusal_says_what_was_seen_and_what_would_do():
    with pytest.raises(UserError) as refused:
        fixed_order({0.05: (8, 4), 1.0: (0, 0)})
    message = str(refused.value)
    assert "\n" not in message and "0.01" in message and "price 0.05" in message and "8 of 1000 validation rows" in message and "4 gained" in message
    rows, tolerance = (float(re.search(pattern, message)[1]) for pattern in (r"about (\d+) rows", r"--guarantee to ([\d.]+) or more"))
    assert holds(int(rows), round(0.008 * rows), round(0.004 * rows), 0.01) and rows > 1000
    assert fixed_order({0.05: (8, 4)}, tolerance)[0].price == 0.05
    assert "--guarantee-kind expectation, which these rows allow" in message
    assert fixed_order({0.05: (8, 4)}, kind="expectation")[0].price == 0.05
    with pytest.raises(UserError, match="more rows would not help.*--guarantee") as refused:
        fixed_order({0.05: (14, 4)})
    assert "expectation" not in str(refused.value)  # which would be refused too


def test_a_refusal_in_expectation_says_what_was_seen_and_what_would_do():
    with pytest.raises(UserError) as refused:
        fixed_order({0.05: (10, 40)}, 0.0105, "expectation")
    message = str(refused.value)
    assert "\n" not in message and "price 0.05" in message and "10 of 1000 validation rows are lost" in message
    rows, tolerance = (float(re.search(pattern, message)[1]) for pattern in (r"about (\d+) rows", r"--guarantee to ([\d.]+) or more"))
    assert RiskBound(0.0105, int(rows), 0.01 * rows).holds and not RiskBound(0.0105, int(rows) - 1, 0.01 * (rows - 1)).holds
    assert fixed_order({0.05: (10, 40)}, tolerance, "expectation")[0].price == 0.05
    with pytest.raises(UserError, match="lowest, 10 of"):
        fixed_order({0.05: (10, 40)}, tolerance - 0.0001, "expectation")
    with pytest.raises(UserError, match="more rows would not help.*--guarantee"):
        fixed_order({0.05: (11, 400)}, 0.0105, "expectation")


@pytest.mark.parametrize("kind", ["confidence", "expectation"])
@pytest.mark.parametrize("tolerance", [0.0, 1.0, -0.1, math.nan])
def test_a_tolerance_that_is_none_is_refused(tolerance, kind):
    with pytest.raises(UserError, match=r"\(0, 1\).*--guarantee"):
        fixed_order({0.05: (0, 0)}, tolerance, kind)


def in_expectation(score, full, tolerance):
    """The place of the price that a guarantee in expectation picks from scores (K, N), whose compute falls from each to the next; None: refused."""
    prices = [float(k) for k in range(len(score))]
    try:
        found = smallest_guaranteed(
            prices, lambda price: (score[int(price)], torch.full_like(full, 1 - price / len(score))), full, tolerance, "expectation"
        )
    except UserError:
        return None
    return int(found.price)


def test_nothing_lost_passes_in_expectation_from_the_closed_bound_on():
    for tolerance, least in ((0.01, 99), (0.02, 49), (0.1, 9), (0.003, 333)):
        assert RiskBound(tolerance, least, 0.0).holds and not RiskBound(tolerance, least - 1, 0.0).holds
        assert RiskBound(tolerance, 7, 0.0).rows_needed == least


def test_the_threshold_in_expectation_is_that_of_a_slow_computation_in_fractions():
    torch.manual_seed(0)
    picked = set()
    for _ in range(300):
        n, prices, tolerance = 12, 5, Fraction(int(torch.randint(10, 60, ())), 100)
        full, score = torch.randint(0, 5, (n,)) / 4, torch.randint(0, 5, (prices, n)) / 4  # quarters, which floats hold exactly
        score = torch.where(torch.rand(prices, n) < 0.7, full, score)
        expected = None
        for k in range(prices):
            total = Fraction(0)
            for row in range(n):
                total += max([Fraction(0)] + [Fraction(float(full[row])) - Fraction(float(score[j, row])) for j in range(k + 1)])
            if Fraction(n, n + 1) * (total / n) + Fraction(1, n + 1) <= tolerance:
                expected = k
        assert in_expectation(score, full, float(tolerance)) == expected
        picked.add(expected)
    assert picked == {None, *range(5)}


def test_in_expectation_the_loss_is_as_much_as_promised_and_no_more():
    # a row is lost from its own place in a long row of prices on, so with m losses allowed the pick is just before loss m + 1,
    # below which a share of (m + 1) / (n + 1) of all rows lies on average: an order statistic
    torch.manual_seed(0)
    n, prices, tolerance, draws, steepest = 120, 100, 0.025, 400, 0.1
    ladder = torch.linspace(0, steepest, prices, dtype=torch.float64)  # the share of all rows that each price loses
    total = 0.0
    for _ in range(draws):
        score = (torch.rand(n, dtype=torch.float64) >= ladder.unsqueeze(1)).double()  # (K, N)
        pick = in_expectation(score, torch.ones(n, dtype=torch.float64), tolerance)
        total += float(ladder[pick])
    m = 2  # (2 + 1) / 121 is below 0.025, (3 + 1) / 121 is not
    step = steepest / (prices - 1)
    error = 3 * math.sqrt((m + 1) / n**2 / draws)
    assert (m + 1) / (n + 1) - step - error < total / draws < min((m + 1) / (n + 1), tolerance) + error


def test_in_expectation_prices_that_lose_other_rows_each_do_not_wear_the_promise_out():
    # every price loses 8 rows of 100, each others: some price or other looks good on 100 rows, and the last that does was picked by chance
    torch.manual_seed(1)
    n, prices, tolerance, rate, draws = 100, 30, 0.05, 0.08, 400
    full, last, ours = torch.ones(n), 0.0, 0.0
    for _ in range(draws):
        score = (torch.rand(prices, n) >= rate).float()
        last += rate * bool((((1 - score).sum(dim=1) + 1) / (n + 1) <= tolerance).any())
        ours += rate * (in_expectation(score, full, tolerance) is not None)
    assert last / draws > 1.3 * tolerance
    assert 0 < ours / draws <= tolerance


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the task digits, as training leaves it, whose network and policy nobody trained."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    task = load_task("digits")
    torch.manual_seed(3)
    config = NetworkConfig(layers=4, width=16, heads=2)
    stack = build_network(config, task.embedding, task.tokens, len(task.classes)).eval()
    policy = JumpPolicy(JumpRules.reaching(ObservationLayout(16, 4, price_low=0.01, price_high=1.0))).eval()
    torch.nn.init.normal_(policy.fc_out.weight, std=1.0)
    network = network_to_json(config, task.embedding, task.tokens, len(task.classes))
    table = [(1.0, 0.3, 0.08), (0.1, 0.5, 0.09), (0.01, 0.9, 0.095)]
    save(folder / "policy", policy, stack=stack, network=network, price=0.1, price_table=table, trained_on={"task": "digits"})
    (folder / "config.json").write_text(json.dumps(run_config("digits", config)))
    return folder


@cache
def loaded(folder: Path):
    """The run's model, its validation data, and which of them are right at full depth."""
    model, rows = load(folder / "policy"), load_task("digits").load("validation")
    with torch.no_grad():
        outputs = routed_forward(model.stack, torch.ones(4, dtype=torch.bool), rows.inputs).outputs
    return model, rows, outputs.argmax(dim=1) == rows.labels


def counted(folder: Path, price: float) -> tuple[int, int, int, float]:
    """Rows, losses, gains and mean compute on validation data, by routed forward passes over all rows at once."""
    model, rows, full = loaded(folder)
    with torch.no_grad():
        rollout = routed_forward(model.stack, model.policy, rows.inputs, price=price)
    right = rollout.outputs.argmax(dim=1) == rows.labels
    return len(rows), int((full & ~right).sum()), int((right & ~full).sum()), float(rollout.compute.double().mean())


def tolerance_met(run: Path) -> float:
    """The smallest tolerance that the lowest price meets with confidence."""
    tolerance = PairedTest(0.5, *counted(run, 0.01)[:3]).least_tolerance
    assert 0 < tolerance < 1
    return tolerance


def test_eval_runs_at_the_guaranteed_price(capsys, run):
    tolerance = tolerance_met(run)
    passed = []
    for price in price_grid(0.01, 1.0):  # the range that the policy sees; not the table, whose points were picked on the same rows
        *numbers, compute = counted(run, price)
        if not holds(*numbers, tolerance):
            break
        passed.append((compute, price))
    expected = min(passed)[1]
    assert main(["eval", str(run), "--guarantee", str(tolerance), "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found[key] for key in ("guarantee", "guarantee_kind", "guarantee_rows", "split")] == [tolerance, "confidence", 359, "test"]
    assert found["guarantee_price"] == found["price"] == expected
    assert main(["eval", str(run), "--price", str(expected), "--json", "--device", "cpu"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in plain} == plain


def test_eval_promises_what_is_asked_for(capsys, run):
    rows, losses, _, _ = counted(run, 0.01)
    tolerance = (losses + 1) / (rows + 1)  # the least that the lowest price allows in expectation
    for kind, least in (("expectation", tolerance), ("confidence", tolerance_met(run))):
        assert main(["eval", str(run), "--guarantee", str(least), "--guarantee-kind", kind, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [found[key] for key in ("guarantee", "guarantee_kind", "guarantee_rows")] == [least, kind, 359]


def test_eval_refuses_what_the_data_cannot_support(capsys, run):
    tolerance = tolerance_met(run)
    rows, losses, _, _ = counted(run, 0.01)
    bound = (losses + 1) / (rows + 1)
    for words, named in (
        (["--guarantee", f"{tolerance - 0.0001:.4f}"], f"--guarantee to {tolerance:g} or more"),
        (["--guarantee", str(bound - 1e-6), "--guarantee-kind", "expectation"], f"--guarantee to {math.ceil(bound * 10_000) / 10_000:g} or more"),
        (["--guarantee", "0.01", "--guarantee-kind", "certainty"], "'certainty'"),
        (["--guarantee-kind", "expectation"], "set --guarantee"),
        (["--guarantee", "0.01", "--budget", "0.5"], "not allowed with"),
        (["--guarantee", "0.01", "--price", "0.5"], "not allowed with"),
        (["--guarantee", "1"], "(0, 1)"),
        (["--guarantee", "little"], "'little'"),
    ):
        assert main(["eval", str(run), *words]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and named in captured.err, captured.err


def test_without_a_table_the_policys_own_price_is_the_candidate(run):
    model, task = load(run / "policy"), load_task("digits")
    for kind in ("confidence", "expectation"):
        found = guarantee(model.stack, model.policy, task, task.load("validation"), PriceTable(), 0.7, 0.99, kind)
        assert found == Guarantee(kind, 0.99, price=0.7, rows=359)
        found = guarantee(model.stack, model.policy, task, task.load("validation"), PriceTable((PricePoint(1.0, 0.5, 0.5),)), 0.7, 0.99, kind)
        assert found.price in price_grid(0.01, 1.0)


class LikelihoodTask(Task):
    """A task whose score is the probability of the label."""

    def score(self, outputs, labels):
        return self.probability(outputs, labels)


class TwiceAsLikely(Task):
    """A task whose score leaves [0, 1]."""

    def score(self, outputs, labels):
        return 1 + self.probability(outputs, labels)


def test_scores_in_between_are_for_expectation_and_scores_beyond_one_for_nothing(run):
    model, rows = load(run / "policy"), load_task("digits").load("validation")
    task = LikelihoodTask(**vars(load_task("digits")))
    with torch.no_grad():
        policy, full = (
            task.score(routed_forward(model.stack, router, rows.inputs, price=0.1).outputs, rows.labels).double()
            for router in (model.policy, torch.ones(4, dtype=torch.bool))
        )
    risk = (float((full - policy).clamp(min=0).sum()) + 1) / 360

    def promised(tolerance, kind):
        return guarantee(model.stack, model.policy, task, rows, PriceTable(), 0.1, tolerance, kind)

    assert promised(risk + 1e-6, "expectation") == Guarantee("expectation", risk + 1e-6, price=0.1, rows=359)
    with pytest.raises(UserError, match="--guarantee to"):
        promised(risk - 1e-6, "expectation")
    with pytest.raises(UserError, match=r"'digits' have scores in between; set --guarantee-kind expectation"):
        promised(0.5, "confidence")
    task = TwiceAsLikely(**vars(task))
    with pytest.raises(UserError, match=r"\[0, 1\].*'digits' leaves it; set --budget"):
        promised(0.5, "expectation")
