"""Growth is told from noise."""

import numpy as np
import pytest

from benchmarks.soak import Series


def series(slope_an_hour: float, noise: float) -> Series:
    seconds = np.arange(0, 600.0)
    values = 100 + slope_an_hour * seconds / 3600 + noise * np.random.default_rng(0).standard_normal(600)
    values[seconds < 100] += 50  # what is taken at the beginning
    return Series("memory", "MiB", seconds, values)


@pytest.mark.parametrize(("slope", "noise", "flat"), [(0, 1, True), (60, 1, False), (60, 0, False), (-60, 1, True), (0, 0, True), (3, 0, True)])
def test_what_grows_by_more_than_its_error_and_a_hundredth_is_not_flat(slope: float, noise: float, flat: bool) -> None:
    watched = series(slope, noise)
    found, error = watched.growth(120)
    assert found == pytest.approx(slope, abs=4 * error + 1e-9)
    assert watched.is_flat(120) is flat
