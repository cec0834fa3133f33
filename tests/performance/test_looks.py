"""When a latency is looked at, and what each look may err."""

from __future__ import annotations

import pytest

from pytest_modelserve.performance.latency import plan_looks

MS = 1e6


@pytest.mark.parametrize(
    ("typical_ms", "calls"),
    [
        (0.01, (25_000, 75_000)),  # a quarter of a second, and three times that; 225,000 would be more than are kept
        (0.05, (5000, 13_572, 36_840, 100_000)),
        (1.0, (640, 1789, 5000)),  # eight times the 80 that a third of 5 % takes
        (5.0, (576, 1000)),  # eight times the 72 that half of 5 % takes
        (8.0, (472,)),  # eight times the 59 that 5 % takes
        (50.0, (100,)),  # as many as 5 s have room for
        (3000.0, (59,)),  # the fewest that can pass
    ],
)
def test_looks_lie_between_a_quarter_of_a_second_and_five(typical_ms: float, calls: tuple[int, ...]) -> None:
    assert plan_looks(0.95, low_error=0.001, high_error=0.05, typical_ns=typical_ms * MS).calls == calls


def test_both_error_rates_are_split_over_the_looks() -> None:
    looks = plan_looks(0.95, low_error=0.001, high_error=0.05, typical_ns=0.05 * MS)
    assert looks.low_level == pytest.approx(1 - 0.001 / 4)
    assert looks.high_level == pytest.approx(1 - 0.05 / 4)
    assert looks.fewest == 86  # 0.95 ** 86 <= 0.0125 < 0.95 ** 85


def test_one_look_has_both_error_rates_undivided() -> None:
    looks = plan_looks(0.95, low_error=0.001, high_error=0.05, typical_ns=8 * MS)
    assert (looks.low_level, looks.high_level, looks.fewest) == (0.999, 0.95, 59)
