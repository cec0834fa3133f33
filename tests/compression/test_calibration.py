from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from pytest_modelserve.artifacts import Signature, TensorSpec
from pytest_modelserve.compression.calibration import open_calibration
from pytest_modelserve.errors import RecipeError

ONE = Signature((TensorSpec("x", "float32", ("batch", 4)),), ())
TWO = Signature((TensorSpec("ids", "int64", ("batch", "time")), TensorSpec("x", "float32", ("batch", 4))), ())


def ones(*shape):
    return np.ones(shape, np.float32)


def sizes(given, signature=ONE):
    with open_calibration(given, signature) as calibration:
        return [tuple(array.shape for array in batch.values()) for batch in calibration.batches()]


def digest(given, signature=ONE):
    with open_calibration(given, signature) as calibration:
        return calibration.digest


def test_one_array_is_cut_into_batches():
    assert sizes(ones(70, 4)) == [((32, 4),), ((32, 4),), ((6, 4),)]


def test_mapping_is_cut_alike_for_all_inputs():
    given = {"ids": np.zeros((40, 3), np.int64), "x": ones(40, 4)}
    assert sizes(given, TWO) == [((32, 3), (32, 4)), ((8, 3), (8, 4))]


@pytest.mark.parametrize(
    "shapes",
    [
        {"x": (40, 4)},  # fixed
        {"x": ("batch", 4), "z": ("time", 4)},  # not one axis
        {"x": ("batch", 4), "z": ()},
    ],
)
def test_arrays_whose_first_axis_is_not_one_free_axis_stay_whole(shapes):
    signature = Signature(tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items()), ())
    given = {name: ones(*(40 if isinstance(dim, str) else dim for dim in shape)) for name, shape in shapes.items()}
    assert len(sizes(given, signature)) == 1


@pytest.mark.parametrize("kind", [list, tuple, iter, lambda batches: (batch for batch in batches)])
def test_batches_of_an_iterable_stay_as_they_are_and_can_be_read_twice(kind):
    given = [ones(50, 4), {"x": ones(3, 4)}]
    with open_calibration(kind(given), ONE) as calibration:
        for _ in range(2):
            assert [batch["x"].shape for batch in calibration.batches()] == [(50, 4), (3, 4)]


def test_values_survive_the_disk():
    given = {"ids": np.arange(6).reshape(2, 3), "x": np.random.default_rng(0).random((2, 4), np.float32)}
    with open_calibration(iter([given]), TWO) as calibration:
        (batch,) = calibration.batches()
    assert batch.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(batch[name], array, strict=True)


def test_more_than_nine_batches_keep_their_order():
    with open_calibration((np.full((1, 4), number, np.float32) for number in range(12)), ONE) as calibration:
        assert [batch["x"][0, 0] for batch in calibration.batches()] == list(range(12))


def test_digest_is_of_the_values_and_not_of_the_container():
    batches = [ones(3, 4), 2 * ones(3, 4)]
    assert digest(batches) == digest(iter(batches))
    assert digest(batches) != digest(batches[::-1])
    assert digest(batches) != digest(batches[:1])


def test_loader_that_shuffles_is_read_once():
    class Shuffling:
        reads = 0

        def __iter__(self):
            Shuffling.reads += 1
            return iter([Shuffling.reads * ones(2, 4)])

    with open_calibration(Shuffling(), ONE) as calibration:
        assert [batch["x"][0, 0] for _ in range(2) for batch in calibration.batches()] == [1, 1]
    assert Shuffling.reads == 1


def test_stream_never_lies_in_memory_whole():
    batches = 40
    tracemalloc.start()
    try:
        with open_calibration((np.full((1000, 4), 1.0, np.float32) for _ in range(batches)), ONE) as calibration:
            assert sum(1 for _ in calibration.batches()) == batches
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < batches * 16_000 / 4


def bad(position, value):
    array = ones(3, 4)
    array[position] = value
    return array


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "calibration= has no batches: pass representative inputs"),
        (iter([]), "calibration= has no batches: pass representative inputs"),
        (ones(0, 4), "calibration= is empty: input 'x' has shape [0, 4]"),
        (
            bad((2, 1), np.nan),
            "calibration= holds nan at [2, 1] of input 'x': remove such rows, because no range contains them",
        ),
        (
            [ones(2, 4), bad((0, 3), np.inf)],
            "batch 1 of calibration= holds inf at [0, 3] of input 'x': remove such rows, because no range contains them",
        ),
        (
            ones(3, 5),
            "calibration= does not fit the model: input 'x' has shape [3, 5] where the model takes [batch, 4]: axis 1 is "
            "5 instead of 4",
        ),
        (
            iter([np.ones((2, 4))]),
            "batch 0 of calibration= does not fit the model: input 'x' has dtype float64 where the model takes float32: "
            "cast it with .astype('float32') if that is intended",
        ),
        ({"z": ones(2, 4)}, "calibration= does not fit the model: unknown input 'z': Known: 'x'"),
        (
            7,
            "calibration= is a int: pass an array, a mapping from input names to arrays, or an iterable of such batches",
        ),
    ],
)
def test_calibration_data_that_cannot_serve_are_refused(given, told):
    with pytest.raises(RecipeError) as caught, open_calibration(given, ONE):
        pass
    assert str(caught.value) == told
