"""A failing row becomes one that a person can read: the true features, plain numbers, in few trials."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pytest_modelserve.robustness.minimizer import minimize, simpler_values

RNG = np.random.default_rng


def least(row: NDArray[Any], base: NDArray[Any], fails: Callable[[NDArray[Any]], NDArray[np.bool_]], **options: Any):
    return minimize({"x": row}, {"x": base}, lambda rows: fails(rows["x"]), **options)


def test_two_of_150528_pixels_are_found_alone() -> None:
    base = np.zeros((1, 3, 224, 224), np.float32)
    row = RNG(0).uniform(0.2, 1, base.shape).astype(np.float32)

    def both_bright(images: NDArray[Any]) -> NDArray[np.bool_]:
        return (images[:, 0, 5, 9] > 0.1) & (images[:, 2, 200, 100] > 0.1)

    found = least(row, base, both_bright)
    assert found.coordinates == (5 * 224 + 9, 2 * 224 * 224 + 200 * 224 + 100)
    assert found.trials < 1000


@pytest.mark.parametrize("features", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("size", [10, 640])
def test_as_many_features_remain_as_the_fault_needs(features: int, size: int) -> None:
    needed = RNG(features).choice(size, features, replace=False)
    found = least(np.ones((1, size)), np.zeros((1, size)), lambda rows: (rows[:, needed] > 0.5).all(axis=1))
    assert found.coordinates == tuple(sorted(needed))


def test_a_fault_of_either_of_two_features_leaves_one() -> None:
    found = least(np.ones((1, 50)), np.zeros((1, 50)), lambda rows: (rows[:, 3] > 0) | (rows[:, 40] > 0))
    assert len(found.coordinates) == 1


def test_a_fault_of_a_sum_leaves_no_feature_without_which_it_fails_as_well() -> None:
    row, base = np.ones((1, 40)), np.zeros((1, 40))
    found = least(row, base, lambda rows: rows.sum(axis=1) > 6.5)
    assert len(found.coordinates) == 7


def test_nothing_remains_where_the_base_row_fails_too() -> None:
    found = least(np.ones((1, 5)), np.zeros((1, 5)), lambda rows: np.ones(len(rows), np.bool_))
    assert found.coordinates == ()
    assert (found.row["x"] == 0).all()


def test_numbers_become_plain_and_stay_between_base_and_row() -> None:
    row, base = np.array([[0.87431286, 7.13]], np.float32), np.array([[0.2, 0.0]], np.float32)
    found = least(row, base, lambda rows: (rows[:, 0] > 0.8) & (rows[:, 1] > 2.5))
    assert found.row["x"].tolist() == [[np.float32(0.85), 3.0]]


def test_integers_stay_within_the_table() -> None:
    asked: list[NDArray[Any]] = []

    def fails(rows: NDArray[Any]) -> NDArray[np.bool_]:
        asked.append(rows)
        return rows[:, 0] >= 6

    found = least(np.array([[9, 2]]), np.array([[3, 2]]), fails)
    assert found.row["x"].tolist() == [[6, 2]]
    assert np.concatenate(asked).min() >= 2
    assert np.concatenate(asked).max() <= 9


def test_a_nan_that_is_needed_is_kept_and_one_that_is_not_becomes_a_number() -> None:
    row, base = np.array([[np.nan]]), np.array([[0.5]])
    assert np.isnan(least(row, base, lambda rows: np.isnan(rows[:, 0])).row["x"]).all()
    assert least(row, base, lambda rows: rows[:, 0] != 0.5).row["x"].tolist() == [[0.0]]


def test_text_and_several_inputs_are_minimised_together() -> None:
    row = {"s": np.array([["bad", "worse"]], object), "x": np.array([[5.0, 6.0]])}
    base = {"s": np.array([["a", "b"]], object), "x": np.array([[0.0, 0.0]])}
    found = minimize(row, base, lambda rows: (rows["s"][:, 1] == "worse") & (rows["x"][:, 0] > 1))
    assert found.coordinates == (1, 2)
    assert found.row["s"].tolist() == [["a", "worse"]]
    assert found.row["x"].tolist() == [[2.0, 0.0]]


def test_trials_end_at_the_limit_with_a_row_that_still_fails() -> None:
    needed = RNG(0).choice(2000, 300, replace=False)
    found = least(
        np.ones((1, 2000)), np.zeros((1, 2000)), lambda rows: (rows[:, needed] > 0.5).all(axis=1), max_trials=200
    )
    assert found.trials < 400
    assert set(needed) <= set(found.coordinates)


def test_simpler_values_come_plainest_first_and_leave_the_two_ends_out() -> None:
    found = simpler_values(np.float32(3.7), np.float32(0.0), np.dtype(np.float32)).tolist()
    assert found[0] == 1.0
    assert 0.0 not in found
    assert max(found) <= np.float32(3.7)


def test_a_zero_of_the_other_sign_is_a_change_that_can_matter() -> None:
    found = least(np.array([[-0.0, 1.0]]), np.array([[0.0, 0.0]]), lambda rows: np.signbit(rows[:, 0]))
    assert found.coordinates == (0,)
