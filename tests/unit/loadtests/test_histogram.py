"""The histogram of the load drivers: exact where it says so, close elsewhere, bounded always."""

from __future__ import annotations

import pytest

from proxy.cli.bench.histogram import Histogram


def filled(*values: int) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


def test_small_values_are_counted_exactly() -> None:
    """Below 512 each value has a bucket of its own."""
    histogram = filled(*range(512))

    assert histogram.buckets() == [(float(value), 1) for value in range(512)]


@pytest.mark.parametrize("value", [512, 513, 999, 1023, 1024, 65_535, 1_000_000, 3_600_000_000])
def test_a_large_value_is_found_again_within_its_promised_error(value: int) -> None:
    """Among others the bucket's middle is at most 0.4 % off."""
    histogram = filled(value, 10 * value)

    assert abs(histogram.quantile(0.5) - value) <= value * 0.004


def test_neighbouring_buckets_meet_without_gap_or_overlap() -> None:
    """Values in ascending order fall into buckets in ascending order."""
    middles = [filled(value, 10**9).quantile(0.5) for value in range(480, 5000)]

    assert middles == sorted(middles)


def test_quantiles_are_those_of_the_sorted_values() -> None:
    """The value of which the given share is not above it."""
    histogram = filled(*range(1, 101))

    assert [histogram.quantile(share) for share in (0.01, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]


def test_the_highest_quantile_is_never_above_the_maximum() -> None:
    """A bucket's middle may be, the answer may not."""
    assert filled(1025).quantile(1.0) == 1025.0


def test_an_empty_histogram_has_zeros_for_everything() -> None:
    """Reports of loads without answers need no special case."""
    histogram = Histogram()

    assert (histogram.quantile(0.99), histogram.mean, histogram.maximum, histogram.buckets()) == (0.0, 0.0, 0, [])


def test_merging_is_the_same_as_recording_everything_in_one() -> None:
    """Also when the other one has longer tails."""
    ours, theirs = filled(1, 2, 3), filled(2, 1_000_000)
    ours.merge(theirs)
    together = filled(1, 2, 3, 2, 1_000_000)

    assert (ours.buckets(), ours.count, ours.mean, ours.maximum) == (
        together.buckets(),
        together.count,
        together.mean,
        together.maximum,
    )


def test_a_negative_duration_counts_as_none() -> None:
    """Clocks of a shared machine are no reason to fail."""
    assert filled(-5).buckets() == [(0.0, 1)]
