"""checked_feed: what a signature takes, and the whole message for everything that it does not."""

import numpy as np
import pytest
import torch

from pytest_modelserve.artifacts import Signature, TensorSpec
from pytest_modelserve.errors import InputError
from pytest_modelserve.serving.inputs import checked_feed

ONE = Signature((TensorSpec("x", "float32", ("batch", 3)),), ())
TWO = Signature((TensorSpec("ids", "int64", ("batch", "time")), TensorSpec("mask", "bool", ("batch", "time"))), ())
SQUARE = Signature((TensorSpec("x", "float32", ("n", "n")),), ())
TEXT = Signature((TensorSpec("t", "str", (None,)),), ())
ROWS = np.zeros((2, 3), np.float32)


class FakeFrame:
    def to_numpy(self):
        return ROWS


def refusal(inputs, signature=ONE):
    with pytest.raises(InputError) as caught:
        checked_feed(inputs, signature)
    return str(caught.value)


def test_a_single_array_and_a_mapping_give_the_same_feed():
    assert checked_feed(ROWS, ONE) == {"x": ROWS} == checked_feed({"x": ROWS}, ONE)


def test_the_feed_is_in_the_order_of_the_model():
    ids, mask = np.zeros((2, 5), np.int64), np.zeros((2, 5), np.bool_)
    assert list(checked_feed({"mask": mask, "ids": ids}, TWO)) == ["ids", "mask"]


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
        ([[1.0, 2.0, 3.0]], "input 'x' is a list, not a numpy array: pass np.asarray(...) of the model's dtype"),
        (np.float32(1), "input 'x' is a float32, not a numpy array: pass np.asarray(...) of the model's dtype"),
        (FakeFrame(), "input 'x' is a FakeFrame, not a numpy array: pass .to_numpy() of the model's dtype"),
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
        (ROWS[:, :2], "input 'x' has shape [2, 2] where the model takes [batch, 3]: axis 1 is 2 instead of 3"),
        ({"xx": ROWS}, "unknown input 'xx': did you mean 'x'? Known: 'x'"),
        ({"x": ROWS, "y": ROWS}, "unknown input 'y': Known: 'x'"),
        ({1: ROWS}, "unknown input 1: Known: 'x'"),
        ({}, "input 'x' is missing: the model takes 'x'"),
        (torch.zeros(2, 3), "input 'x' is a torch.Tensor, not a numpy array: pass .detach().cpu().numpy()"),
    ],
)
def test_what_does_not_fit_is_refused(inputs, message):
    assert refusal(inputs) == message


@pytest.mark.parametrize(
    ("signature", "inputs", "message"),
    [
        (TWO, ROWS, "inputs must be a mapping from names to arrays: the model has 2 inputs ('ids', 'mask')"),
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
        (TEXT, np.array([b"a"]), "input 't' has dtype bytes8 where the model takes text: pass strings"),
        (TEXT, np.array([1.0]), "input 't' has dtype float64 where the model takes text: pass strings"),
    ],
)
def test_what_does_not_fit_two_inputs_a_square_or_text_is_refused(signature, inputs, message):
    assert refusal(inputs, signature) == message
