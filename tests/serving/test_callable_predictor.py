"""CallablePredictor: any function as a model, kept apart from the caller's arrays."""

import functools

import numpy as np
import pytest

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving import CallablePredictor

X = np.array([1.0, 2.0])


def double(x):
    return 2 * x


class Model:
    def __call__(self, x):
        return x


@pytest.mark.parametrize(
    ("function", "name"),
    [(double, "double"), (functools.partial(double), "double"), (Model(), "Model"), (lambda x: x, "<lambda>")],
)
def test_a_function_is_called_by_its_name(function, name):
    predictor = CallablePredictor(function)
    assert (predictor.subject, predictor.signature, predictor.transport) == (Subject(name), None, "callable")
    assert predictor.describe() == f"{name}, a Python callable"


def test_a_function_is_given_what_predict_was_given():
    assert CallablePredictor(double).predict(X)["output"].tolist() == [2.0, 4.0]
    add = CallablePredictor(lambda arrays: {"sum": arrays["a"] + arrays["b"]})
    assert add.predict({"a": X, "b": X})["sum"].tolist() == [2.0, 4.0]


def test_a_function_that_works_in_place_leaves_the_inputs_alone():
    def centered(x):
        x -= x.mean()
        return x

    array = X.copy()
    predictor = CallablePredictor(centered)
    assert predictor.predict(array)["output"].tolist() == [-0.5, 0.5]
    assert array.tolist() == X.tolist()


def test_a_function_that_reuses_its_buffer_does_not_change_earlier_outputs():
    buffer = np.zeros(2)

    def reuse(x):
        buffer[:] = x
        return buffer

    predictor = CallablePredictor(reuse)
    first = predictor.predict(X)["output"]
    predictor.predict(10 * X)
    assert first.tolist() == [1.0, 2.0]


def test_exceptions_of_the_function_pass_through():
    error = RuntimeError("no such model")

    def fail(x):
        raise error

    with pytest.raises(RuntimeError) as caught:
        CallablePredictor(fail).predict(X)
    assert caught.value is error


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (1.0, "the input is a float, not an array: pass a numpy array, a tensor, a list or a frame"),
        ({"a": None}, "input 'a' is a NoneType, not an array: pass a numpy array, a tensor, a list or a frame"),
    ],
)
def test_inputs_that_are_no_arrays_are_refused(inputs, message):
    with pytest.raises(InputError) as caught:
        CallablePredictor(lambda x: pytest.fail("the function was called")).predict(inputs)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (1.5, "double returned a float as 'output', which is no array: convert it in the function"),
        ({"y": "text"}, "double returned a str as 'y', which is no array: convert it in the function"),
        ([1.0, 2.0], "double returned a float as 'output_0', which is no array: convert it in the function"),
        (None, "the model returned None: return its outputs"),
    ],
)
def test_results_that_are_no_arrays_are_refused(result, message):
    with pytest.raises(UsageError) as caught:
        CallablePredictor(lambda x: result, name="double").predict(X)
    assert str(caught.value) == message


def test_a_closed_predictor_refuses():
    with CallablePredictor(double) as predictor:
        predictor.predict(X)
    predictor.close()
    with pytest.raises(UsageError, match="the predictor of double is closed: serve the model again, or close it later"):
        predictor.predict(X)
