import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch.distributions import Binomial

from rl_skip import load, save
from rl_skip.cli.main import main
from rl_skip.core.dial import PricePoint, PriceTable
from rl_skip.core.errors import UserError
from rl_skip.core.forward import routed_forward
from rl_skip.core.policy import JumpPolicy, JumpRules, ObservationLayout
from rl_skip.measure.guarantee import Guarantee, guarantee, smallest_guaranteed, tango_z
from rl_skip.nets.network import NetworkConfig, build_network, network_to_json
from rl_skip.tasks import load_task
from tests.rl_skip.run_config import run_config

CRITICAL = 1.6448536269514722  # the 95% quantile of the normal distribution


def holds(rows, losses, gains, tolerance):
    return Guarantee(0.0, tolerance, rows, losses, gains).holds


def rows_right(losses, gains, both):
    """(full depth, policy), rows with the given disagreements; the rest right under both."""
    full = torch.tensor([1.0] * losses + [0.0] * gains + [1.0] * both)
    policy = torch.tensor([0.0] * losses + [1.0] * gains + [1.0] * both)
    return full, policy


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
        assert Guarantee(0.0, tolerance, 7, 0, 0).rows_needed == least
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
    found = Guarantee(0.0, 0.01, 1000, 10, 5)
    assert not found.holds and found.rows_needed is not None
    k = found.rows_needed / 1000
    assert tango_z(1000, 10, 5, 0.01) * math.sqrt(k) <= -CRITICAL < tango_z(1000, 10, 5, 0.01) * math.sqrt(k - 0.001)
    assert holds(1000, 10, 5, found.least_tolerance) and not holds(1000, 10, 5, found.least_tolerance - 0.0001)
    assert Guarantee(0.0, 0.01, 1000, 15, 5).rows_needed is None


def fixed_order(outcomes, tolerance=0.01):
    """The guarantee, and which prices are tested; outcomes: price → (losses, gains) of 1,000 rows."""
    tested = []
    full = torch.cat([torch.ones(500), torch.zeros(500)])

    def correct_at(price):
        tested.append(price)
        losses, gains = outcomes[price]
        right = full.clone()
        right[:losses], right[500 : 500 + gains] = 0, 1
        return right

    return smallest_guaranteed(outcomes, correct_at, full, tolerance), tested


def test_the_last_that_passes_before_the_first_that_fails_is_taken():
    found, tested = fixed_order({0.01: (0, 0), 0.1: (2, 3), 0.5: (9, 0), 1.0: (0, 0)})
    assert found == Guarantee(0.1, 0.01, 1000, 2, 3)
    assert tested == [0.01, 0.1, 0.5]  # 1.0 would pass, but after a failure nothing is tested
    found, tested = fixed_order({0.01: (0, 0), 1.0: (0, 1)})
    assert found == Guarantee(1.0, 0.01, 1000, 0, 1)


def test_a_refusal_says_what_was_seen_and_what_would_do():
    with pytest.raises(UserError) as refused:
        fixed_order({0.05: (8, 4), 1.0: (0, 0)})
    message = str(refused.value)
    assert "\n" not in message and "0.01" in message and "price 0.05" in message and "8 of 1000 validation rows" in message and "4 gained" in message
    rows, tolerance = (float(re.search(pattern, message)[1]) for pattern in (r"about (\d+) rows", r"--guarantee to ([\d.]+) or more"))
    assert holds(int(rows), round(0.008 * rows), round(0.004 * rows), 0.01) and rows > 1000
    assert fixed_order({0.05: (8, 4)}, tolerance)[0].price == 0.05
    with pytest.raises(UserError, match="more rows would not help.*--guarantee"):
        fixed_order({0.05: (14, 4)})


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -0.1, math.nan])
def test_a_tolerance_that_is_none_is_refused(tolerance):
    with pytest.raises(UserError, match=r"\(0, 1\).*--guarantee"):
        fixed_order({0.05: (0, 0)}, tolerance)


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


def counted(folder: Path, price: float) -> tuple[int, int, int]:
    """Rows, losses and gains on validation data, by two routed forward passes over all rows at once."""
    model, rows = load(folder / "policy"), load_task("digits").load("validation")
    with torch.no_grad():
        right = routed_forward(model.stack, model.policy, rows.inputs, price=price).outputs.argmax(dim=1) == rows.labels
        full = routed_forward(model.stack, torch.ones(4, dtype=torch.bool), rows.inputs).outputs.argmax(dim=1) == rows.labels
    return len(rows), int((full & ~right).sum()), int((right & ~full).sum())


def test_eval_runs_at_the_guaranteed_price(capsys, run):
    # the tolerance that the largest compute just meets, and the price at which testing by hand then ends
    tolerance = Guarantee(0.01, 0.5, *counted(run, 0.01)).least_tolerance
    assert 0 < tolerance < 1
    expected = 0.01
    for price in (0.1, 1.0):
        if not holds(*counted(run, price), tolerance):
            break
        expected = price
    assert main(["eval", str(run), "--guarantee", str(tolerance), "--json", "--device", "cpu"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["guarantee"], found["guarantee_price"], found["guarantee_rows"], found["split"]) == (tolerance, expected, 359, "test")
    assert main(["eval", str(run), "--price", str(expected), "--json", "--device", "cpu"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in plain} == plain


def test_eval_refuses_what_the_data_cannot_support(capsys, run):
    tolerance = Guarantee(0.01, 0.5, *counted(run, 0.01)).least_tolerance
    for words, named in (
        (["--guarantee", f"{tolerance - 0.0001:.4f}"], f"--guarantee to {tolerance:g} or more"),
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
    rows, losses, gains = counted(run, 1.0)
    for table in (PriceTable(), PriceTable((PricePoint(1.0, 0.5, 0.5),))):
        found = guarantee(model.stack, model.policy, task, task.load("validation"), table, 1.0, 0.99)
        assert (found.price, found.rows, found.losses, found.gains) == (1.0, rows, losses, gains)
