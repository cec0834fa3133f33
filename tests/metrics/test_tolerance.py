"""The floor of rounding, from hand-made reruns."""

import ml_dtypes
import numpy as np
import pytest

from pytest_modelserve.errors import InputError
from pytest_modelserve.metrics import calibrate_tolerances
from pytest_modelserve.metrics.tolerance import OUTPUT_PARITY_EPSILONS, RERUN_FACTOR

Y = np.array([[1.0, -8.0], [2.0, 0.5]], np.float32)


def floor_of(again, array=Y):
    (found,) = calibrate_tolerances({"y": array}, {"again": {"y": again}})
    return found


def test_the_floor_is_a_multiple_of_the_largest_difference_relative_to_the_scale():
    found = floor_of(Y + np.array([[0, 1e-3], [-2e-3, 0]]))
    assert (found.scale.largest, found.dtype) == (8.0, "float32")
    assert found.differences["again"] == pytest.approx(2e-3, rel=1e-6)
    assert found.relative.largest == pytest.approx(RERUN_FACTOR * 2e-3 / 8, rel=1e-4)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_runs_that_agree_to_the_bit_leave_a_few_steps_of_the_dtype(dtype):
    found = floor_of(Y.astype(dtype), Y.astype(dtype))
    assert found.observed == 0
    assert found.relative.largest == OUTPUT_PARITY_EPSILONS * float(ml_dtypes.finfo(dtype).eps)


def test_the_worst_of_several_reruns_counts():
    (found,) = calibrate_tolerances({"y": Y}, {"a": {"y": Y + 1e-3}, "b": {"y": Y + 4e-3}})
    assert found.relative.largest == pytest.approx(RERUN_FACTOR * 4e-3 / 8, rel=1e-3)


def test_elements_that_are_not_finite_count_for_nothing():
    array = np.array([np.nan, np.inf, 2.0], np.float32)
    found = floor_of(np.array([1.0, 1.0, 2.5]), array)
    assert (found.scale.largest, found.differences["again"]) == (2.0, 0.5)


def test_an_output_of_zeros_has_no_scale_and_no_difference():
    found = floor_of(np.zeros(3), np.zeros(3, np.float32))
    assert (found.scale.largest, found.observed) == (0.0, 0.0)


def test_integers_and_text_have_no_floor():
    assert calibrate_tolerances({"a": np.arange(3), "b": np.array(["x"], object)}, {}) == ()


def test_what_moves_half_of_the_digits_is_not_rounding():
    assert floor_of(Y + 8 * 3e-4).is_rounding
    assert not floor_of(Y + 8 * 4e-4).is_rounding


def test_another_shape_is_refused():
    with pytest.raises(InputError, match=r"output 'y' has shape \(1, 2\) again and \(2, 2\) else"):
        floor_of(Y[:1])
