"""Batches in turn, and inputs that change from call to call without leaving what was given."""

import ml_dtypes
import numpy as np
import pandas as pd
import pytest

import pytest_modelserve as ms
from pytest_modelserve.performance.batches import InputSource, largest_batch, vary_rows

ROWS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def varied(batch, seed=0):
    return vary_rows(batch, np.random.default_rng(seed))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_floats_change_slightly_within_their_range(dtype):
    rows = ROWS.astype(dtype)
    first, second = varied(rows, 0), varied(rows, 1)
    assert first.dtype == rows.dtype
    assert first.shape == rows.shape
    assert not np.array_equal(first, second)
    assert rows.min() <= first.min() <= first.max() <= rows.max()
    close = np.abs(first[:, None] - rows[None]).max(axis=-1).min(axis=1)  # to the row that it was made of
    assert (close <= 0.014 * np.abs(rows).max()).all()  # 1 %, and the rounding of bfloat16


def test_zero_infinity_and_nan_stay():
    rows = np.array([[0.0, np.inf, np.nan, 2.0]])
    changed = varied(rows)
    assert changed[0, 0] == 0
    assert changed[0, 1] == np.inf
    assert np.isnan(changed[0, 2])
    assert 1.98 <= changed[0, 3] < 2


@pytest.mark.parametrize("rows", [np.arange(8), np.array(list("abcdefgh")), np.arange(8) % 2 == 0])
def test_ids_text_and_flags_keep_their_values(rows):
    changed = [varied(rows, seed) for seed in range(4)]
    assert all(sorted(each) == sorted(rows) for each in changed)
    assert any(not np.array_equal(each, rows) for each in changed)


def test_inputs_of_a_row_stay_together():
    ids = np.arange(8)
    changed = varied({"ids": ids, "lengths": 10 * ids, "text": ids.astype(str).astype(object)})
    assert changed["lengths"].tolist() == (10 * changed["ids"]).tolist()
    assert changed["text"].tolist() == changed["ids"].astype(str).tolist()


def test_batch_without_common_rows_keeps_its_order():
    changed = varied({"ids": np.arange(4), "table": np.arange(9)})
    assert (changed["ids"].tolist(), changed["table"].tolist()) == ([0, 1, 2, 3], [*range(9)])


def test_given_batches_come_first_as_they_are_and_then_varied_in_turn():
    source = InputSource([ROWS, ROWS[:2]], vary=True, seed=0)
    drawn = [np.asarray(source()) for _ in range(6)]
    assert [len(batch) for batch in drawn] == [8, 2, 8, 2, 8, 2]
    assert [np.array_equal(batch, ROWS[: len(batch)]) for batch in drawn] == [True, True, False, False, False, False]


def test_inputs_are_repeated_where_that_is_requested():
    source = InputSource(ROWS, vary=False, seed=0)
    assert all(source() is ROWS for _ in range(5))
    assert (source.method, source.finding()) == ("repeated inputs", "")


def test_callable_and_iterable_are_taken_as_they_are():
    rng = np.random.default_rng(0)
    fresh = InputSource(lambda: rng.normal(size=(2, 3)), vary=True, seed=0)
    assert not np.array_equal(fresh(), fresh())
    assert fresh.method == "inputs from a callable"
    stream = InputSource((np.full((1, 1), i) for i in range(2)), vary=True, seed=0)
    assert [int(stream()[0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(ms.InputError, match="inputs ended after 2 batches, and more calls are needed"):
        stream()


def test_iterable_that_can_begin_again_is_repeated():
    class Loader:
        def __iter__(self):
            return iter([ROWS, ROWS[:1]])

    source = InputSource(Loader(), vary=True, seed=0)
    assert [len(source()) for _ in range(5)] == [8, 1, 8, 1, 8]


def test_empty_batch_of_an_iterable_is_refused():
    source = InputSource(iter([ROWS, ROWS[:0]]), vary=True, seed=0)
    source()
    with pytest.raises(ms.InputError, match=r"the input is empty \(shape \(0, 3\)\)"):
        source()


@pytest.mark.parametrize("inputs", [{"x": [ROWS, ROWS[:2]]}, {"x": None}, pd.DataFrame(ROWS)])
def test_what_is_no_array_is_left_to_the_predictor(inputs):
    source = InputSource(inputs, vary=True, seed=0)
    assert (source() is inputs, source.is_varied) == (True, False)


@pytest.mark.parametrize(
    ("inputs", "finding"),
    [
        (ROWS, ""),
        ({"ids": np.arange(4), "x": ROWS[:4]}, ""),
        (np.arange(6).reshape(3, 2), "rows were reordered and no new ones made"),
        (np.arange(6).reshape(1, 6), "every call got the same values"),
        (np.zeros((1, 3), np.float32), "every call got the same values"),
    ],
)
def test_finding_says_where_inputs_cannot_change(inputs, finding):
    found = InputSource(inputs, vary=True, seed=0).finding()
    assert found.startswith(finding)
    assert bool(found) == bool(finding)


def test_largest_batch_has_the_most_values():
    assert largest_batch([ROWS[:2], {"x": ROWS, "y": ROWS}, ROWS])["x"] is ROWS
