"""Conversion of inputs, and the whole message for everything that a signature does not take."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pytest_modelserve.artifacts import Signature, TensorSpec
from pytest_modelserve.errors import InputError
from pytest_modelserve.serving import CallablePredictor
from pytest_modelserve.serving.conversion import as_array, cast_exactly
from pytest_modelserve.serving.inputs import as_batch, checked_feed, count_rows, iterate_batches, slice_rows

ONE = Signature((TensorSpec("x", "float32", ("batch", 3)),), ())
TWO = Signature((TensorSpec("ids", "int64", ("batch", "time")), TensorSpec("mask", "bool", ("batch", "time"))), ())
COLUMN = Signature((TensorSpec("x", "float32", ("batch", 1)),), ())
IMAGE = Signature((TensorSpec("x", "float32", (None, 1, 8, 8)),), ())
SQUARE = Signature((TensorSpec("x", "float32", ("n", "n")),), ())
TEXT = Signature((TensorSpec("t", "str", (None,)),), ())
ROWS = np.zeros((2, 3), np.float32)


def refusal(inputs, signature=ONE):
    with pytest.raises(InputError) as caught:
        checked_feed(inputs, signature)
    return str(caught.value)


def test_a_single_array_and_a_mapping_give_the_same_feed():
    assert checked_feed(ROWS, ONE) == {"x": ROWS} == checked_feed({"x": ROWS}, ONE)


def test_unknown_dims_and_ranks_take_anything():
    signature = Signature((TensorSpec("a", "float32", (None, None)), TensorSpec("b", "float32", None)), ())
    arrays = {"a": np.zeros((1, 2), np.float32), "b": np.zeros((), np.float32)}
    assert checked_feed(arrays, signature) == arrays


def test_a_symbol_may_have_another_size_in_the_next_call():
    for rows in (1, 7, 0):
        array = np.zeros((rows, 3), np.float32)
        assert checked_feed(array, ONE)["x"] is array


def test_swapped_bytes_are_put_in_order_and_keep_their_values():
    swapped = np.arange(6, dtype=np.float32).reshape(2, 3).astype(np.dtype(np.float32).newbyteorder())
    array = checked_feed(swapped, ONE)["x"]
    assert array.dtype.isnative
    np.testing.assert_array_equal(array, np.arange(6).reshape(2, 3))


@pytest.mark.parametrize("dtype", ["<U3", object, np.dtypes.StringDType()])
def test_text_is_taken_however_numpy_stores_it(dtype):
    array = checked_feed(np.array(["a", "bé"], dtype=dtype), TEXT)["t"]
    assert array.dtype.kind in "UO"
    assert array.tolist() == ["a", "bé"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (1.0, "input 'x' is a float, not an array: pass a numpy array, a tensor, a list or a frame"),
        ([[1.0, 2.0], [3.0]], "input 'x' is a list of items of different shapes: pad them to one ("),
        (
            np.ma.array(ROWS, mask=ROWS > 0),
            "input 'x' is a masked array, and a model ignores the mask: fill it with .filled(...)",
        ),
        (
            ROWS.astype(np.float64),
            "input 'x' has dtype float64 where the model takes float32: cast it with .astype('float32') if that is intended",
        ),
        (
            ROWS.astype(object),
            "input 'x' has dtype object where the model takes float32: cast it with .astype('float32') if that is intended",
        ),
        (
            ROWS[0],
            "input 'x' has shape [3] where the model takes [batch, 3]: rank 1 instead of 2; a single row needs a "
            "batch axis, x[np.newaxis]",
        ),
        (ROWS[np.newaxis], "input 'x' has shape [1, 2, 3] where the model takes [batch, 3]: rank 3 instead of 2"),
        (
            ROWS[:, :2],
            "input 'x' has shape [2, 2] where the model takes [batch, 3]: axis 1 is 2 instead of 3; if its size varies, "
            "export the model with that axis in `dynamic`",
        ),
        ({"xx": ROWS}, "unknown input 'xx': did you mean 'x'? Known: 'x'"),
        ({"x": ROWS, "y": ROWS}, "unknown input 'y': known: 'x'"),
        (
            {"x": ROWS, "labels": ROWS},
            "unknown input 'labels': known: 'x'; labels are no input: name them as labels=, or",
        ),
        ({1: ROWS}, "unknown input 1: known: 'x'"),
        ({}, "input 'x' is missing: the model takes 'x'"),
        (
            torch.zeros(2, 3, dtype=torch.float64),
            "input 'x' has dtype float64 where the model takes float32: cast it with .astype('float32') if that is intended",
        ),
    ],
)
def test_what_does_not_fit_is_refused(inputs, message):
    assert refusal(inputs).startswith(message)


@pytest.mark.parametrize(
    ("signature", "inputs", "message"),
    [
        (
            TWO,
            ROWS,
            "inputs must be a mapping from names to arrays, or a frame with these columns: the model has 2 inputs ('ids', 'mask')",
        ),
        (TWO, {"ids": np.zeros((1, 1), np.int64)}, "input 'mask' is missing: the model takes 'ids', 'mask'"),
        (
            TWO,
            {"ids": np.zeros((2, 5), np.int64), "mask": np.zeros((2, 4), np.bool_)},
            "inputs disagree on 'time': axis 1 of 'ids' is 5 and axis 1 of 'mask' is 4",
        ),
        (SQUARE, ROWS, "inputs disagree on 'n': axis 0 of 'x' is 2 and axis 1 of 'x' is 3"),
        (
            TEXT,
            np.array(["a", None], dtype=object),
            "input 't' holds None (NoneType) where the model takes text: pass strings",
        ),
        (
            COLUMN,
            ROWS[:, 0],
            "input 'x' has shape [2] where the model takes [batch, 1]: rank 1 instead of 2; an axis of size 1 is "
            "missing, x[:, None]",
        ),
        (
            IMAGE,
            np.zeros((2, 8, 8), np.float32),
            "input 'x' has shape [2, 8, 8] where the model takes [?, 1, 8, 8]: rank 3 instead of 4; an axis of size 1 "
            "is missing, x[:, None]",
        ),
        (TEXT, np.array([b"a"]), "input 't' has dtype bytes8 where the model takes text: pass strings"),
        (TEXT, np.array([1.0]), "input 't' has dtype float64 where the model takes text: pass strings"),
    ],
)
def test_what_does_not_fit_two_inputs_a_square_or_text_is_refused(signature, inputs, message):
    assert refusal(inputs, signature) == message


TWO_COLUMNS = Signature((TensorSpec("age", "float32", ("n", 1)), TensorSpec("city", "str", ("n", 1))), ())
VECTOR = Signature((TensorSpec("age", "int64", ("n",)),), ())


def test_tensors_lists_and_series_have_the_values_of_the_array():
    for given in (torch.from_numpy(ROWS), torch.from_numpy(ROWS).requires_grad_(), ROWS.tolist(), {"x": ROWS.tolist()}):
        feed = checked_feed(given, ONE)
        assert feed["x"].dtype == np.float32
        np.testing.assert_array_equal(feed["x"], ROWS)
    assert checked_feed(pd.Series([1, 2]), VECTOR)["age"].tolist() == [1, 2]
    assert checked_feed(pl.Series([1, 2]), VECTOR)["age"].tolist() == [1, 2]


def test_a_tensor_of_bfloat16_keeps_its_values():
    array = as_array("x", torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
    assert array.dtype.name == "bfloat16"
    assert array.astype(np.float32).tolist() == [1.5, -2.0]


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_a_frame_is_the_one_input_column_by_column_or_several_by_name(frame):
    whole = frame({"a": [0, 3], "b": [1.0, 4.0], "c": [2.5, 5.0]})
    np.testing.assert_array_equal(checked_feed(whole, ONE)["x"], np.array([[0, 1, 2.5], [3, 4, 5]], np.float32))
    people = frame({"id": [7, 8], "city": ["Bonn", "Rom"], "age": [40.0, 41.0]})
    feed = checked_feed(people, TWO_COLUMNS)
    assert feed["age"].tolist() == [[40.0], [41.0]]
    assert feed["city"].tolist() == [["Bonn"], ["Rom"]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"age": [40.1], "city": ["Bonn"]}, "column 'age' has dtype float64 where the model takes float32, and value 0, 40.1"),
        ({"age": [2**24 + 1], "city": ["Bonn"]}, "column 'age' has dtype int64 where the model takes float32, and value 0, 16777217"),
        ({"ages": [40.0], "city": ["Bonn"]}, "the frame has no column for input 'age': unknown column 'age': did you mean 'ages'?"),
        ({"age": [40.0], "city": [None]}, "input 'city' holds None (NoneType) where the model takes text"),
    ],
)  # fmt: skip
def test_a_frame_whose_values_would_change_is_refused(columns, message):
    with pytest.raises(InputError) as caught:
        checked_feed(pd.DataFrame(columns), TWO_COLUMNS)
    assert str(caught.value).startswith(message)


def test_missing_integers_are_nan_where_the_model_takes_floats():
    frame = pd.DataFrame({"a": pd.array([1, None], "Int64"), "b": [True, False], "c": [0.5, 1.0]})
    np.testing.assert_array_equal(checked_feed(frame, ONE)["x"], np.array([[1, 1, 0.5], [np.nan, 0, 1]], np.float32))


@pytest.mark.parametrize("value", [2.0**63, 2.5, np.nan, -(2.0**63) - 2**12])
def test_a_float_that_no_integer_holds_is_not_cast(value):
    assert cast_exactly(np.array([value]), "int64") is None


def test_a_frame_keeps_its_type_for_a_function_and_its_rows_when_sliced():
    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0]})
    assert slice_rows(as_batch(frame), 1, first=1).native["a"].tolist() == [2.0]
    assert count_rows(as_batch(pl.DataFrame({"a": [1.0, 2.0]}))) == 2
    assert CallablePredictor(lambda f: f[["a"]].to_numpy() * 2).predict(frame)["output"].tolist() == [
        [2.0],
        [4.0],
        [6.0],
    ]


def test_a_fixed_batch_axis_is_named_with_what_to_do():
    signature = Signature((TensorSpec("x", "float32", (2, 3)),), ())
    with pytest.raises(
        InputError, match="axis 0 is 5 instead of 2; its batch axis is fixed: pass batches of 2, or convert"
    ):
        checked_feed(np.zeros((5, 3), np.float32), signature)


def test_of_a_data_loader_of_pairs_the_labels_are_left_out():
    loader = DataLoader(TensorDataset(torch.zeros(4, 3), torch.zeros(4)), batch_size=2)
    assert [batch.shape for batch in iterate_batches(loader)] == [(2, 3), (2, 3)]


def test_a_pair_whose_second_item_may_be_an_input_is_refused_with_the_right_call():
    loader = DataLoader(TensorDataset(torch.zeros(4, 3), torch.zeros(4, 3)), batch_size=2)
    with pytest.raises(InputError, match=r"batch 0 of the inputs is a pair, .*pass \(x for x, _ in loader\)"):
        list(iterate_batches(loader))
    assert [len(batch) for batch in iterate_batches(x for x, _ in loader)] == [2, 2]
