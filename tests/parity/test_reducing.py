"""The fewest neighbouring rows that still fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_modelserve.parity.failing_inputs import smallest_failing_rows


def needing(first: int, last: int, asked: list[tuple[int, int]]) -> Callable[[int, int], bool]:
    """Fails where all rows from `first` to `last` are there."""

    def fails(start: int, stop: int) -> bool:
        assert start < stop
        asked.append((start, stop))
        return start <= first and last < stop

    return fails


def test_a_row_that_fails_alone_is_the_only_attempt() -> None:
    asked: list[tuple[int, int]] = []
    assert smallest_failing_rows(1000, 7, needing(7, 7, asked)) == (7, 8)
    assert asked == [(7, 8)]


@pytest.mark.parametrize("rows", [2, 3, 7, 64, 1000])
def test_no_end_of_what_is_found_can_be_left_out(rows: int) -> None:
    for first, last in {(0, 1), (rows - 2, rows - 1), (rows // 2 - 1, rows // 2), (0, rows - 1)}:
        assert smallest_failing_rows(rows, 0, needing(first, last, [])) == (first, last + 1)


def test_attempts_grow_with_the_logarithm_of_the_rows() -> None:
    asked: list[tuple[int, int]] = []
    assert smallest_failing_rows(2**20, 0, needing(699_050, 699_051, asked)) == (699_050, 699_052)
    assert len(asked) <= 4 * 20


def test_what_does_not_fail_as_a_whole_is_nothing() -> None:
    assert smallest_failing_rows(8, 3, lambda start, stop: False) is None
    assert smallest_failing_rows(1, 0, lambda start, stop: False) is None
