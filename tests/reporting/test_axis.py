"""The axes of drawings."""

from __future__ import annotations

import itertools
import math

import pytest

from pytest_modelserve.evidence import Unit
from pytest_modelserve.reporting.plots import Axis, axis_through


def labels(axis: Axis) -> list[str]:
    return [tick.label for tick in axis.ticks()]


def test_values_lie_between_the_ends_with_room_and_a_stranger_at_an_end() -> None:
    axis = axis_through([2.0, 3.0, math.inf, math.nan], start=100, end=200, unit="ms")
    assert 100 < axis.place(2.0) < axis.place(2.5) == 150 < axis.place(3.0) < 200
    assert (axis.place(-math.inf), axis.place(math.inf)) == (100, 200)


def test_axis_may_run_upwards() -> None:
    axis = axis_through([0.0, 10.0], start=164, end=8, unit="bytes")
    assert 164 == axis.place(0.0) > axis.place(5.0) > axis.place(10.0) > 8


def test_long_tail_takes_a_logarithmic_axis_and_a_short_one_does_not() -> None:
    assert axis_through([1.0, 8.1], start=0, end=100, unit="ms").is_log
    assert not axis_through([1.0, 7.9], start=0, end=100, unit="ms").is_log
    assert not axis_through([0.0, 100.0], start=0, end=100, unit="ms").is_log
    assert not axis_through([1.0, 100.0], start=0, end=100, unit="ms", may_be_log=False).is_log


def test_equal_ratios_are_equally_far_apart_on_a_logarithmic_axis() -> None:
    axis = axis_through([0.1, 1000.0], start=0, end=10_000, unit="ms")
    places = [axis.place(value) for value in (0.1, 1.0, 10.0, 100.0, 1000.0)]
    steps = [right - left for left, right in itertools.pairwise(places)]
    assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize(
    ("values", "unit", "expected"),
    [
        ((0.042, 0.29), "ms", ["50 µs", "100 µs", "150 µs", "200 µs", "250 µs"]),
        ((0.02, 0.28), "ms", ["20 µs", "50 µs", "100 µs", "200 µs"]),
        ((0.1, 1000.0), "ms", ["100 µs", "1 ms", "10 ms", "100 ms", "1 s"]),
        ((0.95, 1.12), "ratio", ["× 0.95", "× 1", "× 1.05", "× 1.1"]),
        ((0.0, 5 * 2**20), "bytes", ["0", "1 MiB", "2 MiB", "3 MiB", "4 MiB", "5 MiB"]),
        ((-300 * 1024.0, 300 * 1024.0), "bytes", ["-300 KiB", "-200 KiB", "-100 KiB", "0", "100 KiB", "200 KiB", "300 KiB"]),
        ((0.0, 5280.0), "count", ["0", "1,000", "2,000", "3,000", "4,000", "5,000"]),
    ],
)  # fmt: skip
def test_ticks_are_round_numbers_in_a_scale_that_suits(
    values: tuple[float, float], unit: Unit, expected: list[str]
) -> None:
    assert labels(axis_through(values, start=0, end=900, unit=unit)) == expected


@pytest.mark.parametrize("high", [1.0001, 1.7, 3.0, 7.9, 12.0, 99.0, 1e4, 1e7, 1e12])
def test_there_are_never_too_many_ticks_nor_none(high: float) -> None:
    assert 1 <= len(labels(axis_through([1.0, high], start=0, end=900, unit="ms"))) <= 9


def test_ticks_stand_where_their_values_lie() -> None:
    axis = axis_through([0.0, 5280.0], start=0, end=900, unit="count")
    assert [tick.at for tick in axis.ticks()] == [axis.place(1000.0 * i) for i in range(6)]


def test_one_value_has_an_axis() -> None:
    assert axis_through([0.0], start=0, end=100, unit="bytes").place(0.0) == 0
    assert axis_through([5.0, 5.0], start=0, end=100, unit="ms").place(5.0) == 50
