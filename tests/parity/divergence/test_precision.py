"""Which differences of two tensors rounding or a lower precision explains."""

import numpy as np
import pytest

from pytest_modelserve.metrics.tolerance import OTHER_KERNEL_EPSILONS, SAME_KERNEL_EPSILONS
from pytest_modelserve.parity.divergence.precision import error_in_steps, find_deviation, scale

ONE = np.float32(1)
EPS = float(np.finfo(np.float32).eps)


def test_steps_count_epsilons_of_value_and_scale():
    reference = np.array([1, 0], np.float32)
    inside = np.array([1, 15.9 * EPS], np.float32)
    beyond = np.array([1, 16.1 * EPS], np.float32)
    assert find_deviation(inside, reference, "same", steps=16) is None
    found = find_deviation(beyond, reference, "same", steps=16)
    assert found is not None
    assert found.index == (1,)
    assert error_in_steps(beyond, reference) == pytest.approx(16.1, rel=1e-3)


def test_coarser_dtype_decides_what_a_step_is():
    reference = np.array([1.0, 0.5])
    found = find_deviation(reference.astype(np.float16) + np.float16(0.01), reference, "same", steps=16)
    assert found is not None
    assert found.problem == "dtype is float16 where the reference has float64"
    assert find_deviation(reference.astype(np.float16), reference, "float16", steps=16) is None


def test_scale_leaves_masks_out():
    scores = np.array([0.3, -2.0, 1.5, -1e9, -1e9, -1e9, -np.inf, 0], np.float32)
    assert scale(scores) == 2.0
    assert scale(np.zeros(3, np.float32)) == 0.0


@pytest.mark.parametrize(("precision", "floor"), [("float16", 55), ("int8", 25), ("int4", 18)])
def test_lower_precision_has_to_reach_its_floor(precision, floor):
    reference = np.ones(10, np.float32)
    for decibels, agrees in ((floor + 0.1, True), (floor - 0.1, False)):
        candidate = (reference * (1 + 10 ** (-decibels / 20))).astype(np.float32)
        assert (find_deviation(candidate, reference, precision, steps=16) is None) is agrees


def test_lower_precision_may_not_bring_nan_and_need_not_keep_masks():
    reference = np.array([1, -3e38, 2], np.float32)
    assert find_deviation(np.array([1, -65504, 2], np.float16), reference, "float16", steps=16) is None
    assert find_deviation(np.array([1, -np.inf, 2], np.float16), reference, "float16", steps=16) is None
    found = find_deviation(np.array([1, -65504, np.nan], np.float16), reference, "float16", steps=16)
    assert found is not None
    assert (found.index, found.problem) == ((2,), "NaN where the reference is finite, 1 of 3 elements")


@pytest.mark.parametrize("mask", [-np.inf, -3e38])
@pytest.mark.parametrize("left", [-6.4, np.inf, np.nan])
def test_lower_precision_has_to_keep_a_mask_a_mask(mask, left):
    found = find_deviation(np.array([1, left, 2], np.float32), np.array([1, mask, 2], np.float32), "int8", steps=16)
    assert found is not None
    assert found.index == (1,)
    if np.isfinite(left):
        assert found.problem == "a mask or infinity of the reference is lost, 1 of 3 elements"


def test_eight_bits_may_be_off_by_one_step_with_another_kernel():
    reference = np.array([3, 4], np.uint8)
    candidate = np.array([3, 5], np.uint8)
    assert find_deviation(candidate, reference, "same", steps=OTHER_KERNEL_EPSILONS) is None
    assert find_deviation(candidate, reference, "same", steps=SAME_KERNEL_EPSILONS) is not None
    assert find_deviation(candidate + np.uint8(1), reference, "same", steps=OTHER_KERNEL_EPSILONS) is not None
    wide = reference.astype(np.int64)
    assert find_deviation(wide + 1, wide, "same", steps=OTHER_KERNEL_EPSILONS) is not None
