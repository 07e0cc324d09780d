"""A run of any length has enough points, at even distances."""

import pytest

from agents.run.cadence import Cadence

RUNS = [
    (640, 240, 16, 5),  # digits
    (7 * 156, 3 * 156, 156, 1),  # few long epochs
    (7 * 10_007, 3 * 10_007, 10_007, 1),
    (90_000, 1_000, 16, 5),
    (130, 0, 1, 5),
    (101, 1, 5, 2),
]


@pytest.mark.parametrize(("updates", "warmup", "per_epoch", "eval_epochs"), RUNS)
def test_a_run_has_fifty_points_and_ten_validations_at_even_distances(updates: int, warmup: int, per_epoch: int, eval_epochs: int) -> None:
    cadence = Cadence(updates, warmup, per_epoch, eval_epochs)
    joint = range(warmup + 1, updates + 1)
    validated = [done for done in joint if cadence.validates(done)]
    reported = [done for done in joint if cadence.reports(done)]
    assert len(reported) >= 50 and len(validated) >= 10 and set(validated) <= set(reported)
    assert validated[-1] == reported[-1] == updates
    assert len({later - before for before, later in zip(validated[:-1], validated[1:-1], strict=False)}) == 1
    assert max(later - before for before, later in zip(reported, reported[1:], strict=False)) <= cadence.report_every
    assert not any(cadence.validates(done) for done in range(1, warmup + 1)), "the warm-up has no policy"
    assert cadence.validations(updates) == len(validated)


def test_more_are_made_where_epochs_are_many() -> None:
    cadence = Cadence(updates=100_000, warmup_updates=0, updates_per_epoch=100, eval_epochs=2)
    assert (cadence.report_every, cadence.validate_every) == (50, 200)


@pytest.mark.parametrize("updates", [1, 7, 49])
def test_a_run_of_few_updates_has_a_point_at_each(updates: int) -> None:
    cadence = Cadence(updates + 2, 2, updates_per_epoch=4, eval_epochs=5)
    assert all(cadence.reports(done) for done in range(1, updates + 3))
    assert sum(cadence.validates(done) for done in range(3, updates + 3)) >= min(updates, 10)


def test_a_run_that_is_all_warm_up_has_points_too() -> None:
    cadence = Cadence(updates=500, warmup_updates=500, updates_per_epoch=100, eval_epochs=5)
    assert sum(cadence.reports(done) for done in range(1, 501)) == 50 and cadence.validations(500) == 0
