"""Steps between floating-point numbers, against numpy.nextafter, numpy.spacing and exhaustive float16."""

import ml_dtypes
import numpy as np
import pytest

from pytest_modelserve.metrics import ulp_distance

FLOATS = [np.float16, np.float32, np.float64]


def steps_from(start, count, towards):
    value = start
    for _ in range(count):
        value = np.nextafter(value, towards)
    return value


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("start", [1.0, -1.0, 0.0, 2.0, -1024.0])
@pytest.mark.parametrize("count", [0, 1, 2, 17])
def test_counts_the_steps_that_nextafter_takes(dtype, start, count):
    first = np.array([start], dtype)
    for towards in (dtype(np.inf), dtype(-np.inf)):
        second = np.array([steps_from(dtype(start), count, towards)], dtype)
        assert ulp_distance(first, second).tolist() == [count]
        assert ulp_distance(second, first).tolist() == [count]


@pytest.mark.parametrize("dtype", FLOATS)
def test_crossing_zero_counts_the_subnormals_on_both_sides(dtype):
    least = np.finfo(dtype).smallest_subnormal
    assert ulp_distance(np.array([3 * least], dtype), np.array([-2 * least], dtype)).tolist() == [5]


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_two_zeros_are_one_number(dtype):
    assert ulp_distance(np.array([0.0], dtype), np.array([-0.0], dtype)).tolist() == [0]


@pytest.mark.parametrize("dtype", FLOATS)
def test_infinity_is_one_step_beyond_the_largest_number(dtype):
    assert ulp_distance(np.array([np.inf], dtype), np.array([np.finfo(dtype).max], dtype)).tolist() == [1]


@pytest.mark.parametrize(("dtype", "bits"), [(np.float16, 16), (np.float32, 32), (np.float64, 64)])
def test_the_widest_distance_does_not_overflow(dtype, bits):
    infinity = np.array([np.inf], dtype)
    mantissa = np.finfo(dtype).nmant
    numbers_up_to_infinity = (2 ** (bits - 1 - mantissa) - 1) * 2**mantissa
    assert ulp_distance(infinity, -infinity).tolist() == [2 * numbers_up_to_infinity]


def test_every_float16_is_as_far_from_one_as_its_rank_says():
    numbers = np.arange(2**16, dtype=np.uint16).view(np.float16)
    numbers = np.unique(numbers[np.isfinite(numbers)])  # sorted; -0 and +0 are one
    rank_of_one = int(np.searchsorted(numbers, 1.0))
    expected = np.abs(np.arange(len(numbers)) - rank_of_one)
    np.testing.assert_array_equal(ulp_distance(numbers, np.ones_like(numbers)), expected)


def test_no_elements_have_no_distances():
    assert ulp_distance(np.zeros(0, np.float32), np.zeros(0, np.float32)).shape == (0,)


def test_every_bfloat16_is_as_far_from_one_as_its_rank_says():
    numbers = np.arange(2**16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    with np.errstate(invalid="ignore"):  # signalling NaNs are among them
        wide = numbers.astype(np.float32)
    ordered = np.unique(wide[np.isfinite(wide)]).astype(ml_dtypes.bfloat16)
    rank_of_one = int(np.searchsorted(ordered.astype(np.float32), 1.0))
    expected = np.abs(np.arange(len(ordered)) - rank_of_one)
    np.testing.assert_array_equal(ulp_distance(ordered, np.ones_like(ordered)), expected)
