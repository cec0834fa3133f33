from __future__ import annotations

import numpy as np
import pytest

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.progress import progress
from pytest_modelserve.training import ModelSource

ROWS = np.zeros((3, 2), np.float32)


def nothing(*_, **__):
    """Stands where a function belongs."""


def source(**changes):
    parts = {"name": "m", "build": nothing, "fit": nothing, "data": {"x": ROWS}, "example_inputs": ROWS}
    return ModelSource(**{**parts, **changes})


def test_data_with_nan_are_accepted_because_a_model_may_impute_them():
    holed = np.array([[np.nan, 1.0]])
    assert source(data={"x": holed}).data["x"] is holed


def test_source_keeps_its_data_when_the_mapping_is_changed_later():
    data = {"x": ROWS}
    kept = source(data=data)
    data["y"] = ROWS
    assert list(kept.data) == ["x"]


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "a b", "é", "x" * 101, 3, None])
def test_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(UsageError, match="letters, digits"):
        source(name=name)


def test_message_for_a_bad_name():
    with pytest.raises(UsageError) as caught:
        source(name="a/b")
    assert str(caught.value) == (
        "model name 'a/b': letters, digits, '.', '_' and '-' make a name, and a letter or digit starts it, as it names "
        "files too"
    )


@pytest.mark.parametrize("role", ["build", "fit"])
def test_something_that_is_no_function_is_refused(role):
    with pytest.raises(UsageError) as caught:
        source(**{role: 3})
    assert str(caught.value) == f"{role} of source 'm' must be a function; got int"


def test_fit_gets_a_progress_bar_only_where_it_accepts_one():
    calls = []
    for fit in (
        lambda module, data: calls.append(None),
        lambda module, data, *, progress: calls.append(progress),
        lambda module, data, **settings: calls.append(settings["progress"]),
    ):
        source(fit=fit).fit_module(None)
    assert calls == [None, progress, progress]


def test_fit_of_another_signature_is_refused():
    with pytest.raises(UsageError, match=r"fit of source 'm' must accept fit\(module, data\).*argument: 'bar'"):
        source(fit=lambda module, data, bar: None)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({}, "data of source 'm' are empty: there is no array in them"),
        ({"x": [1.0]}, "data of source 'm': 'x' is no numpy array but list"),
        ({"x": np.zeros((0, 4))}, "data of source 'm': 'x' has shape (0, 4): there are no values in it"),
        ({"x": np.array(["a", None])}, "data of source 'm': 'x' has dtype object, which torch cannot take"),
        (ROWS, "data of source 'm' must be a mapping from names to arrays; got ndarray"),
    ],
)
def test_bad_data_are_refused_by_name(data, told):
    with pytest.raises(InputError) as caught:
        source(data=data)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("examples", "told"),
    [
        (
            [1.0],
            "example_inputs of source 'm' are a list of numbers: pass np.asarray(...) of the model's dtype",
        ),
        (np.zeros((0, 4)), "example_inputs of source 'm' has shape (0, 4): there are no values in it"),
        ({}, "example_inputs of source 'm' are empty: there is no array in them"),
    ],
)
def test_bad_example_inputs_are_refused(examples, told):
    with pytest.raises(InputError) as caught:
        source(example_inputs=examples)
    assert str(caught.value) == told
