"""Growth with its error, as the soak tells it."""

from __future__ import annotations

import math
import random

import pytest

from loadtests.rows import trend


@pytest.mark.parametrize("rise", [0.0, 2.0, -3.0])
def test_a_line_has_its_slope_and_no_error(rise: float) -> None:
    """However many points there are."""
    found = trend([(float(x), 5.0 + rise * x) for x in range(100)])

    assert found.slope == pytest.approx(rise)
    assert found.error == pytest.approx(0.0, abs=1e-9)
    assert found.grows is (rise > 0)


def test_noise_around_a_level_does_not_grow() -> None:
    """In all but a few of a hundred runs."""
    chance = random.Random(7)
    runs = [trend([(x / 100, chance.gauss(50, 5)) for x in range(200)]) for _ in range(100)]

    assert sum(run.grows for run in runs) <= 8


def test_growth_that_stands_out_of_the_noise_is_seen() -> None:
    """And its interval holds the truth."""
    chance = random.Random(7)
    found = trend([(x / 100, 50 + 30 * x / 100 + chance.gauss(0, 5)) for x in range(200)])

    assert found.grows
    assert abs(found.slope - 30) <= 2 * found.error


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_few_points_prove_nothing(count: int) -> None:
    """Whatever their slope."""
    found = trend([(float(x), 100.0 * x) for x in range(count)])

    assert math.isinf(found.error)
    assert not found.grows
