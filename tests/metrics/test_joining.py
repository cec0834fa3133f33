"""Comparisons of batches put together, against one comparison of the whole."""

import math

import numpy as np
import pytest

from pytest_modelserve.errors import InputError
from pytest_modelserve.metrics import compare_outputs, join_comparisons


def compare(candidate, reference):
    return compare_outputs(candidate, reference, rtol=1e-3, atol=1e-5)


def joined(candidate, reference, sizes):
    """The comparison of `{"y": ...}` cut into batches of these sizes."""
    cuts = np.cumsum(sizes)[:-1]
    parts = zip(np.split(candidate, cuts), np.split(reference, cuts), strict=True)
    return join_comparisons((len(r), compare({"y": c}, {"y": r})) for c, r in parts)


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [7, 33], [39, 1]])
def test_batches_are_judged_like_the_whole(sizes):
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(40, 5)).astype(np.float32)
    candidate = (reference * (1 + rng.normal(scale=1e-3, size=reference.shape))).astype(np.float32)
    candidate[11, 2], reference[17, 0], candidate[30, 4], candidate[31, 1] = np.nan, np.nan, np.inf, -np.inf
    # Places hold NaN, which equals nothing: their words are compared.
    assert repr(joined(candidate, reference, sizes)) == repr(compare({"y": candidate}, {"y": reference}))


def test_of_equal_errors_in_two_batches_the_first_is_told():
    reference, candidate = np.ones((6, 2)), np.ones((6, 2))
    candidate[[1, 4], 1] = 2
    assert joined(candidate, reference, [3, 3]).tensors[0].worst.index == (1, 1)


def test_a_later_batch_is_told_by_its_row_in_the_whole():
    reference, candidate = np.ones((6, 2)), np.ones((6, 2))
    candidate[5, 1] = 2
    found = joined(candidate, reference, [2, 2, 2])
    assert found.tensors[0].worst.index == (5, 1)
    assert found.numeric_problems[0].startswith("output 'y': 1 of 12 elements are beyond")


def test_an_output_without_a_row_for_each_row_keeps_its_own_places():
    same, off = np.ones((2, 3)), np.ones((2, 3))
    off[1, 2] = 9
    found = join_comparisons([(5, compare({"y": same}, {"y": same})), (5, compare({"y": off}, {"y": same}))])
    assert found.tensors[0].worst.index == (1, 2)


def test_a_scalar_output_can_be_joined():
    found = join_comparisons((3, compare({"y": np.array(c)}, {"y": np.array(1.0)})) for c in (1.0, 2.0))
    assert (found.tensors[0].worst.index, found.tensors[0].beyond, found.n) == ((), 1, 2)


def test_sequences_of_different_lengths_have_no_common_shape():
    found = join_comparisons((2, compare({"y": np.ones((2, n))}, {"y": np.ones((2, n))})) for n in (3, 4))
    assert found.agrees
    assert found.tensors[0].reference_shape == (4, None)
    assert found.n == 14


def test_a_batch_of_another_dtype_or_shape_makes_the_whole_different():
    ones = np.ones((2, 3), np.float32)
    parts = [(2, compare({"y": c}, {"y": ones})) for c in (ones, ones.astype(np.float64), ones[:, :2])]
    found = join_comparisons(parts)
    assert found.structural_problems == (
        "output 'y': dtype is float64 where the reference has float32",
        "output 'y': shape is (2, 2) where the reference has (2, 3)",
    )
    assert join_comparisons(parts[::-1]).structural_problems == found.structural_problems
    assert not found.tensors[0].compared


def test_an_output_that_one_batch_lacks_is_missing():
    y = np.ones(2)
    whole, half = compare({"y": y, "z": y}, {"y": y, "z": y}), compare({"y": y}, {"y": y, "z": y})
    for parts in ([whole, half], [half, whole], [half, half]):
        found = join_comparisons((2, part) for part in parts)
        assert found.structural_problems == ("output 'z' is missing from the candidate",)


def test_counts_of_nan_add_up_and_the_first_place_is_kept():
    reference, candidate = np.ones((4, 1)), np.ones((4, 1))
    candidate[1:] = np.nan
    found = joined(candidate, reference, [2, 2]).tensors[0]
    assert (found.nan.count, found.nan.first.index) == (3, (1, 0))
    assert math.isnan(found.nan.first.candidate)


def test_no_batches_are_refused():
    with pytest.raises(InputError) as caught:
        join_comparisons([])
    assert str(caught.value) == "there are no batches to compare"
