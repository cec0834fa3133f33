"""Comparisons of outputs, and of many batches as one."""

import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.metrics import Place, compare_outputs, elementwise, join_comparisons, pair_outputs

BEYOND_A_CHUNK = 3 * elementwise._CHUNK + 5


def compare(candidate, reference, *, rtol=1e-3, atol=1e-5):
    return compare_outputs({"y": candidate}, {"y": reference}, rtol=rtol, atol=atol)


def tensor(candidate, reference, **tolerance):
    return compare(candidate, reference, **tolerance).tensors[0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_elements_beyond_tolerance_are_those_that_isclose_rejects(dtype):
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(BEYOND_A_CHUNK // 7, 7)).astype(dtype)
    candidate = (reference * (1 + rng.normal(scale=1e-3, size=reference.shape))).astype(dtype)
    found = tensor(candidate, reference)
    close = np.isclose(candidate.astype(np.float64), reference.astype(np.float64), rtol=1e-3, atol=1e-5)
    assert 0 < found.beyond == np.count_nonzero(~close)


def test_maxima_are_those_of_the_formulas():
    rng = np.random.default_rng(2)
    reference = rng.normal(size=BEYOND_A_CHUNK)
    candidate = reference + rng.normal(scale=1e-3, size=reference.shape)
    found = tensor(candidate, reference)
    error = np.abs(candidate - reference)
    multiples = error / (1e-5 + 1e-3 * np.abs(reference))
    worst = int(multiples.argmax())
    assert found.max_abs_error == error.max()
    assert found.max_rel_error == (error / np.abs(reference)).max()
    assert found.worst_multiple == pytest.approx(multiples.max(), rel=1e-15)
    assert found.worst == Place((worst,), candidate=candidate[worst], reference=reference[worst])


def test_the_denominator_is_the_reference():
    assert tensor(np.array([1.0]), np.array([2.0]), rtol=1, atol=0).max_rel_error == 0.5
    assert tensor(np.array([2.0]), np.array([1.0]), rtol=1, atol=0).max_rel_error == 1.0


def test_an_error_equal_to_its_tolerance_is_within_it():
    at, above = 1.5, np.nextafter(1.5, 2)
    assert compare(np.array([at]), np.array([1.0]), rtol=0.25, atol=0.25).agrees
    assert tensor(np.array([at, above]), np.array([1.0, 1.0]), rtol=0.25, atol=0.25).beyond == 1


@pytest.mark.parametrize("planted", [0, elementwise._CHUNK - 1, elementwise._CHUNK, BEYOND_A_CHUNK - 1])
def test_the_worst_place_is_found_in_every_chunk(planted):
    reference = np.ones(BEYOND_A_CHUNK, np.float32)
    candidate = reference.copy()
    candidate[planted] = 2
    found = tensor(candidate, reference)
    assert found.worst == Place((planted,), candidate=2.0, reference=1.0)
    assert found.beyond == 1


def test_of_equal_errors_the_first_place_is_told():
    reference = np.ones((2, elementwise._CHUNK), np.float32)
    candidate = reference.copy()
    candidate[:, 7] = 2
    assert tensor(candidate, reference).worst.index == (0, 7)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.T,
        lambda a: a[:, ::2],
        lambda a: a[::-1],
        lambda a: np.broadcast_to(a[0], a.shape),
        lambda a: a.astype(a.dtype.newbyteorder()),
        lambda a: np.frombuffer(b"x" + a.tobytes(), a.dtype, offset=1).reshape(a.shape),
    ],
    ids=["transposed", "strided", "reversed", "broadcast", "byte-swapped", "unaligned"],
)
def test_memory_layout_does_not_change_the_result(view):
    rng = np.random.default_rng(3)
    reference = rng.normal(size=(50, 40)).astype(np.float32)
    candidate = reference + rng.normal(scale=1e-3, size=reference.shape).astype(np.float32)
    plain = tensor(view(candidate).astype(np.float32, order="C"), view(reference).astype(np.float32, order="C"))
    assert tensor(view(candidate), view(reference)) == plain
    assert plain.max_ulp > 0


def test_ulps_are_counted_where_both_dtypes_are_the_same_float():
    one = np.float32(1)
    assert tensor(np.array([np.nextafter(one, 2 * one)]), np.array([one])).max_ulp == 1
    assert tensor(np.array([one]), np.array([1.0], np.float64)).max_ulp is None
    assert tensor(np.array([1]), np.array([1])).max_ulp is None


def test_nan_in_the_same_places_agrees():
    values = np.array([1.0, np.nan, np.inf, -np.inf])
    found = compare(values, values.copy())
    assert found.agrees
    assert found.tensors[0].max_abs_error == 0


def test_nan_is_told_on_its_own_and_stays_out_of_the_maxima():
    candidate = np.array([[1.0, np.nan], [np.nan, 4.0]], np.float32)
    reference = np.array([[1.5, 2.0], [np.nan, np.nan]], np.float32)
    found = compare(candidate, reference)
    assert found.structural_problems == (
        "output 'y': NaN in only one of the two, at 2 of 4 elements, first at [0, 1] (candidate nan, reference 2.0)",
    )
    assert found.tensors[0].max_abs_error == 0.5
    assert found.tensors[0].beyond == 1


def test_infinities_are_told_on_their_own_and_stay_out_of_the_maxima():
    candidate = np.array([np.inf, 1.0, -np.inf, np.inf, np.nan])
    reference = np.array([np.inf, np.inf, np.inf, 3.0, np.inf])
    found = compare(candidate, reference)
    assert found.structural_problems == (
        "output 'y': NaN in only one of the two, at 1 of 5 elements, first at [4] (candidate nan, reference inf)",
        "output 'y': infinities differ at 3 of 5 elements, first at [1] (candidate 1.0, reference inf)",
    )
    assert found.tensors[0].worst_multiple == 0


def test_a_nan_behind_the_first_chunk_is_found_at_its_place():
    reference = np.ones(BEYOND_A_CHUNK)
    candidate = reference.copy()
    candidate[-1], candidate[-2] = np.nan, np.inf
    found = tensor(candidate, reference)
    assert (found.nan.first.index, found.inf.first.index) == ((BEYOND_A_CHUNK - 1,), (BEYOND_A_CHUNK - 2,))
    assert (found.nan.count, found.inf.count) == (1, 1)


def test_no_tolerance_makes_any_difference_infinite_and_equality_none():
    assert compare(np.array([0.0, 1.0]), np.array([0.0, 1.0]), rtol=0, atol=0).agrees
    found = tensor(np.array([0.0, 1e-30]), np.array([0.0, 0.0]), rtol=0, atol=0)
    assert (found.worst_multiple, found.max_rel_error, found.beyond) == (math.inf, math.inf, 1)


@pytest.mark.parametrize(
    ("candidate", "reference", "error"),
    [
        (np.array([2**62 + 1]), np.array([2**62]), 1.0),
        (np.array([-(2**63)]), np.array([2**63 - 1]), float(2**64)),
        (np.array([0], np.uint8), np.array([255], np.uint8), 255.0),
        (np.array([-1], np.int8), np.array([255], np.uint8), 256.0),
        (np.array([2**64 - 1], np.uint64), np.array([2**64 - 2], np.uint64), 1.0),
        (np.array([True]), np.array([False]), 1.0),
    ],
    ids=["large", "widest", "uint8", "mixed", "uint64", "bool"],
)
def test_integers_and_booleans_have_to_be_equal_and_their_error_is_exact(candidate, reference, error):
    found = tensor(candidate, reference, rtol=1e9, atol=1e9)
    assert (found.beyond, found.max_abs_error, found.worst_multiple) == (1, error, math.inf)


def test_integer_sentences_speak_of_no_tolerance():
    found = compare(np.array([1, 2, 3]), np.array([1, 5, 4]))
    assert found.numeric_problems == (
        "output 'y': 2 of 3 elements differ but must be equal, first at [1] (candidate 2, reference 5)",
    )


def test_strings_have_to_be_equal_however_they_are_stored():
    fixed, objects = np.array(["cat", "dog"]), np.array(["cat", "do"], dtype=object)
    found = compare(objects, fixed)
    assert found.structural_problems == ()
    assert found.numeric_problems == (
        "output 'y': 1 of 2 elements differ but must be equal, first at [1] (candidate 'do', reference 'dog')",
    )
    assert found.tensors[0].max_abs_error is None
    assert compare(fixed, fixed.astype(object)).agrees


def test_text_beside_numbers_is_told_and_not_compared():
    found = compare(np.array(["1"]), np.array([1]))
    assert found.structural_problems == (
        "output 'y': dtype is str where the reference has int64",
        "output 'y': text and numbers cannot be compared",
    )
    assert not found.tensors[0].compared


def test_a_different_dtype_is_told_and_the_values_are_still_compared():
    found = compare(np.array([1.0, 2.0], np.float64), np.array([1.0, 4.0], np.float32))
    assert found.structural_problems == ("output 'y': dtype is float64 where the reference has float32",)
    assert found.tensors[0].max_abs_error == 2.0


def test_a_different_shape_is_told_and_nothing_is_compared():
    found = compare(np.zeros((2, 3)), np.zeros((3, 2)))
    assert found.structural_problems == ("output 'y': shape is (2, 3) where the reference has (3, 2)",)
    assert (found.tensors[0].compared, found.tensors[0].max_abs_error, found.n) == (False, None, 0)


def test_missing_and_unexpected_outputs_are_told_and_the_rest_is_compared():
    same = np.zeros(2)
    found = compare_outputs({"a": same, "extra": same}, {"a": same, "lost": same}, rtol=0, atol=0)
    assert found.structural_problems == (
        "output 'lost' is missing from the candidate",
        "output 'extra' is unknown to the reference",
    )
    assert (found.n, found.agrees) == (2, False)


def test_a_numeric_sentence_tells_the_tolerance_and_the_worst_place():
    candidate, reference = np.array([[1.0, 0.1], [0.3, 4.0]], np.float32), np.ones((2, 2), np.float32)
    assert compare(candidate, reference).numeric_problems == (
        "output 'y': 3 of 4 elements are beyond rtol 0.001, atol 1e-05; the worst is 2.97e+03 × its tolerance at "
        "[1, 1] (candidate 4.0, reference 1.0)",
    )


def test_values_are_told_with_the_digits_that_their_dtype_tells_apart():
    found = compare(np.array([0.1], np.float32), np.array([0.2], np.float64))
    assert found.numeric_problems[0].endswith("at [0] (candidate 0.1, reference 0.2)")


def test_zero_elements_say_so_and_differ_in_nothing():
    found = compare(np.zeros((0, 3)), np.zeros((0, 3)))
    assert (found.n, found.agrees, found.tensors[0].max_abs_error, found.worst_multiple) == (0, True, 0.0, 0.0)


def test_only_builtins_leave_the_comparison():
    found = tensor(np.array([1.0, np.nan], np.float32), np.array([2.0, 1.0], np.float32))
    place = found.worst
    assert {type(v) for v in (place.candidate, place.reference, found.max_abs_error, found.max_rel_error)} == {float}
    assert {type(v) for v in (*place.index, found.max_ulp, found.beyond, found.nan.count, found.n)} == {int}


def test_extra_memory_stays_below_four_megabytes():
    reference = np.ones(2_000_000, np.float32)
    candidate = reference * np.float32(1.0001)
    tracemalloc.start()
    compare(candidate, reference)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < peak < 4e6


def test_the_only_outputs_of_both_sides_are_paired_whatever_their_names():
    a, b = np.zeros(1), np.ones(1)
    assert pair_outputs({"y": a}, {"output": b}) == {"output": a}
    assert pair_outputs({"y": a, "z": b}, {"output": b}) == {"y": a, "z": b}
    assert pair_outputs({"y": a}, {"y": a, "z": b}) == {"y": a}


BF16 = np.dtype(ml_dtypes.bfloat16)


def test_bfloat16_is_compared_within_a_tolerance_and_counted_in_steps():
    reference = np.array([1.0, 2.0, np.nan, np.inf], BF16)
    candidate = np.array([1.0078125, 2.0, np.nan, np.inf], BF16)
    found = tensor(candidate, reference, rtol=1e-3, atol=0)
    assert (found.beyond, found.max_ulp, found.reference_dtype, found.is_exact) == (1, 1, "bfloat16", False)
    assert found.max_abs_error == 0.0078125
    assert tensor(candidate, reference, rtol=0.01, atol=0).beyond == 0


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"])
def test_smaller_floats_are_compared_as_numbers_and_have_no_steps(name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    found = tensor(np.array([1.0, 2.0], dtype), np.array([1.0, 4.0], dtype))
    assert (found.beyond, found.max_abs_error, found.max_ulp) == (1, 2.0, None)


@pytest.mark.parametrize("name", ["int4", "uint4", "int2"])
def test_integers_of_less_than_a_byte_have_to_be_equal(name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    found = tensor(np.array([0, 1], dtype), np.array([0, 0], dtype), rtol=9, atol=9)
    assert (found.beyond, found.max_abs_error, found.is_exact) == (1, 1.0, True)


def test_each_output_can_have_a_tolerance_of_its_own():
    one, off, whole = np.ones(1), np.full(1, 1.5), np.array([7])
    candidate = {"a": off, "b": off, "c": whole}
    found = compare_outputs(
        candidate, {"a": one, "b": one, "c": whole}, rtol={"a": 0.0, "b": 0.1}, atol={"a": 0.6, "b": 0.1}
    )
    assert found.numeric_problems == (
        "output 'b': 1 of 1 elements are beyond rtol 0.1, atol 0.1; the worst is 2.5 × its tolerance at [0] "
        "(candidate 1.5, reference 1.0)",
    )
    with pytest.raises(UsageError, match="atol must be a finite number of at least 0, got -1"):
        compare_outputs(candidate, candidate, rtol=0, atol={"a": 0, "b": -1})


def compare_batches(candidate, reference):
    return compare_outputs(candidate, reference, rtol=1e-3, atol=1e-5)


def joined(candidate, reference, sizes):
    """The comparison of `{"y": ...}` cut into batches of these sizes."""
    cuts = np.cumsum(sizes)[:-1]
    parts = zip(np.split(candidate, cuts), np.split(reference, cuts), strict=True)
    return join_comparisons((len(r), compare_batches({"y": c}, {"y": r})) for c, r in parts)


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [7, 33], [39, 1]])
def test_batches_are_judged_like_the_whole(sizes):
    rng = np.random.default_rng(1)
    reference = rng.normal(size=(40, 5)).astype(np.float32)
    candidate = (reference * (1 + rng.normal(scale=1e-3, size=reference.shape))).astype(np.float32)
    candidate[11, 2], reference[17, 0], candidate[30, 4], candidate[31, 1] = np.nan, np.nan, np.inf, -np.inf
    # Places hold NaN, which equals nothing: their words are compared.
    assert repr(joined(candidate, reference, sizes)) == repr(compare_batches({"y": candidate}, {"y": reference}))


def test_of_equal_errors_in_two_batches_the_first_is_told():
    reference, candidate = np.ones((6, 2)), np.ones((6, 2))
    candidate[[1, 4], 1] = 2
    assert joined(candidate, reference, [3, 3]).tensors[0].worst.index == (1, 1)


def test_an_output_without_a_row_for_each_row_keeps_its_own_places():
    same, off = np.ones((2, 3)), np.ones((2, 3))
    off[1, 2] = 9
    found = join_comparisons(
        [(5, compare_batches({"y": same}, {"y": same})), (5, compare_batches({"y": off}, {"y": same}))]
    )
    assert found.tensors[0].worst.index == (1, 2)


def test_a_scalar_output_can_be_joined():
    found = join_comparisons((3, compare_batches({"y": np.array(c)}, {"y": np.array(1.0)})) for c in (1.0, 2.0))
    assert (found.tensors[0].worst.index, found.tensors[0].beyond, found.n) == ((), 1, 2)


def test_sequences_of_different_lengths_have_no_common_shape():
    found = join_comparisons((2, compare_batches({"y": np.ones((2, n))}, {"y": np.ones((2, n))})) for n in (3, 4))
    assert found.agrees
    assert found.tensors[0].reference_shape == (4, None)
    assert found.n == 14


def test_a_batch_of_another_dtype_or_shape_makes_the_whole_different():
    ones = np.ones((2, 3), np.float32)
    parts = [(2, compare_batches({"y": c}, {"y": ones})) for c in (ones, ones.astype(np.float64), ones[:, :2])]
    found = join_comparisons(parts)
    assert found.structural_problems == (
        "output 'y': dtype is float64 where the reference has float32",
        "output 'y': shape is (2, 2) where the reference has (2, 3)",
    )
    assert join_comparisons(parts[::-1]).structural_problems == found.structural_problems
    assert not found.tensors[0].compared


def test_an_output_that_one_batch_lacks_is_missing():
    y = np.ones(2)
    whole, half = compare_batches({"y": y, "z": y}, {"y": y, "z": y}), compare_batches({"y": y}, {"y": y, "z": y})
    for parts in ([whole, half], [half, whole], [half, half]):
        found = join_comparisons((2, part) for part in parts)
        assert found.structural_problems == ("output 'z' is missing from the candidate",)
