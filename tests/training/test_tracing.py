from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.training.export_request import plan_tracing


class Two(nn.Module):
    def forward(self, ids, features, mask=None):
        return features if mask is None else features + ids


class Hidden(nn.Module):
    def forward(self, *arrays, **more):
        return arrays[0] if arrays else more


ONE = np.zeros((1, 3), np.float32)
IDS, FEATURES = np.zeros((4, 7), np.int64), np.zeros((4, 3), np.float32)


def test_one_array_is_the_first_parameter_of_forward():
    tracing = plan_tracing(nn.Linear(3, 2), ONE, ("batch",))
    assert list(tracing.inputs) == ["input"]
    assert tracing.axes == {"input": {0: "batch"}}


def test_single_row_is_repeated_because_torch_takes_the_size_one_for_a_constant():
    array = np.array([[1.0, 2.0, 3.0]], np.float32)
    tracing = plan_tracing(nn.Linear(3, 2), array, ("batch",))
    assert np.array_equal(tracing.inputs["input"], np.repeat(array, 2, axis=0))
    assert tracing.sizes == {"batch": 2}


def test_fixed_axes_keep_the_size_one():
    tracing = plan_tracing(nn.Linear(3, 2), ONE, ())
    assert tracing.inputs["input"].shape == (1, 3)
    assert tracing.sizes == {}


def test_inputs_come_in_the_order_of_forward():
    tracing = plan_tracing(Two(), {"features": FEATURES, "ids": IDS}, ("batch",))
    assert list(tracing.inputs) == ["ids", "features"]


def test_several_names_stand_for_the_leading_axes_of_every_input():
    scalars = {"ids": IDS, "features": np.zeros(4, np.float32)}
    tracing = plan_tracing(Two(), scalars, ("batch", "time"))
    assert tracing.axes == {"ids": {0: "batch", 1: "time"}, "features": {0: "batch"}}


def test_mapping_names_axes_one_by_one_and_negative_ones_count_from_the_end():
    tracing = plan_tracing(Two(), {"ids": IDS, "features": FEATURES}, {"ids": {-1: "time"}})
    assert tracing.axes == {"ids": {1: "time"}, "features": {}}
    assert tracing.sizes == {"time": 7}


def test_tuple_goes_by_position_and_what_is_left_over_is_numbered():
    assert list(plan_tracing(Two(), (IDS, FEATURES), ("batch",)).inputs) == ["ids", "features"]
    tracing = plan_tracing(Hidden(), (ONE, ONE), ("batch",))
    assert list(tracing.inputs) == ["arrays_0", "arrays_1"]
    assert tracing.call.args == ("arrays_0", "arrays_1")


def test_axes_of_nested_inputs_go_by_their_flat_names():
    examples = {"ids": {"left": IDS, "right": IDS}, "features": FEATURES}
    tracing = plan_tracing(Two(), examples, {"left": {0: "batch", 1: "time"}, "features": {0: "batch"}})
    assert tracing.axes == {"left": {0: "batch", 1: "time"}, "right": {}, "features": {0: "batch"}}
    assert tracing.call.kwargs == {"ids": {"left": "left", "right": "right"}, "features": "features"}


@pytest.mark.parametrize(
    ("dynamic", "axes"),
    [
        ({"ids": [0]}, {"ids": {0: "batch"}, "features": {}}),
        ({"ids": (0, 1), "features": [0]}, {"ids": {0: "batch", 1: "ids_axis_1"}, "features": {0: "batch"}}),
        ({"ids": [-1], "features": None}, {"ids": {1: "ids_axis_1"}, "features": {}}),
        ({"ids": {0}, "features": {0: "batch"}}, {"ids": {0: "batch"}, "features": {0: "batch"}}),
    ],
)
def test_list_of_axes_as_torch_takes_it_gets_names(dynamic, axes):
    assert plan_tracing(Two(), {"ids": IDS, "features": FEATURES}, dynamic).axes == axes


@pytest.mark.parametrize(
    ("dynamic", "told"),
    [
        ("batch", "dynamic must be a tuple of names or a mapping; got 'batch': pass ('batch',)"),
        (("batch", "time", "extra"), "dynamic: no input has an axis 2, which 'extra' names"),
        (("batch", "batch"), "dynamic: input 'ids' has two axes called 'batch'"),
        (("2 * n",), "dynamic: an axis name must be an identifier such as 'batch'; input 'ids' has '2 * n'"),
        ({"idz": {0: "batch"}}, "dynamic: unknown input 'idz': did you mean 'ids'? Known: 'ids', 'features'"),
        ({"ids": {2: "batch"}}, "dynamic: input 'ids' has 2 axes, so 2 is out of range"),
        ({"ids": {True: "batch"}}, "dynamic: input 'ids' has 2 axes, so True is out of range"),
        ({"ids": [2]}, "dynamic: input 'ids' has 2 axes, so 2 is out of range"),
        ({"ids": ["batch"]}, "dynamic: input 'ids' has 2 axes, so 'batch' is out of range"),
        ({"ids": "batch"}, "dynamic: input 'ids' has 'batch'; pass its axes, such as {'ids': {0: 'batch'}}"),
    ],
)
def test_axes_that_the_inputs_do_not_have_are_refused(dynamic, told):
    with pytest.raises(UsageError) as caught:
        plan_tracing(Two(), {"ids": IDS, "features": FEATURES}, dynamic)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    ("module", "examples", "told"),
    [
        (
            Two(),
            {"ids": IDS, "featurs": FEATURES},
            "unknown input 'featurs': did you mean 'features'? Known: 'ids', 'features', 'mask'",
        ),
        (
            Two(),
            IDS,
            "forward() takes 2 inputs ('ids', 'features'): give a mapping from their names to arrays",
        ),
        (Two(), {}, "example_inputs are empty: there is no array in them"),
        (nn.Linear(3, 2), np.zeros((0, 3)), "example_inputs has shape (0, 3): there are no values in it"),
        (
            nn.Linear(3, 2),
            [1.0],
            "example_inputs are a list of numbers: pass np.asarray(...) of the model's dtype",
        ),
        (
            Two(),
            {"ids": IDS, "features": FEATURES[:2]},
            "example_inputs: axis 'batch' has size 4 in 'ids' and size 2 in 'features'; axes of one name must have one size",
        ),
    ],
)
def test_examples_that_forward_does_not_take_are_refused(module, examples, told):
    with pytest.raises(InputError) as caught:
        plan_tracing(module, examples, ("batch",))
    assert str(caught.value) == told
