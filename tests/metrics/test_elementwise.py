"""Kinds of dtypes, machine epsilon, and distances in units in the last place."""

import ml_dtypes
import numpy as np
import pytest

from pytest_modelserve.metrics import dtype_name, kind_of, machine_epsilon, ulp_distance


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (np.float32, "real"),
        (ml_dtypes.bfloat16, "real"),
        (ml_dtypes.float8_e4m3fn, "real"),
        (ml_dtypes.float8_e5m2, "real"),
        (ml_dtypes.float4_e2m1fn, "real"),
        (ml_dtypes.int4, "exact"),
        (ml_dtypes.uint4, "exact"),
        (np.bool_, "exact"),
        (np.uint64, "exact"),
        ("U3", "text"),
        (object, "text"),
        (np.complex64, None),
        ([("a", np.int8)], None),
        ("V2", None),
        ("S3", None),
    ],
)
def test_every_dtype_that_models_give_is_compared_in_its_own_way(dtype, kind):
    assert kind_of(np.dtype(dtype)) == kind


def test_all_text_has_one_name():
    assert {dtype_name(np.dtype(dtype)) for dtype in ("U3", "U9", object)} == {"str"}
    assert dtype_name(np.dtype(ml_dtypes.bfloat16)) == "bfloat16"


@pytest.mark.parametrize(
    "name",
    ["float16", "float32", "float64", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"],
)
def test_epsilon_is_the_step_after_one(name):
    assert machine_epsilon(name) == float(ml_dtypes.finfo(getattr(ml_dtypes, name, name)).eps)


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
    with np.errstate(invalid="ignore"):  # signaling NaNs are among them
        wide = numbers.astype(np.float32)
    ordered = np.unique(wide[np.isfinite(wide)]).astype(ml_dtypes.bfloat16)
    rank_of_one = int(np.searchsorted(ordered.astype(np.float32), 1.0))
    expected = np.abs(np.arange(len(ordered)) - rank_of_one)
    np.testing.assert_array_equal(ulp_distance(ordered, np.ones_like(ordered)), expected)
