from types import SimpleNamespace

import numpy as np
import pytest

from pytest_modelserve.artifacts import LineageStep, Signature, TensorSpec
from pytest_modelserve.compression.validation import ValidationCase, check_outputs, draw_cases
from pytest_modelserve.errors import InputError, RecipeError
from pytest_modelserve.serving import serve


def trials(function, *specs, traced=None):
    lineage = () if traced is None else (LineageStep("export", {"traced": traced}, None, {}),)
    artifact = SimpleNamespace(signature=Signature(specs, ()), lineage=lineage)
    source = serve(lambda inputs: {"y": function(**inputs)}, name="source")
    return tuple(trial.inputs for trial in draw_cases(source, artifact))


def shapes(drawn, name="x"):
    return [inputs[name].shape for inputs in drawn]


def spec(*shape, dtype="float32", name="x"):
    return TensorSpec(name, dtype, shape)


def test_rows_are_drawn_in_two_numbers():
    assert shapes(trials(lambda x: x, spec("batch", 4))) == [(2, 4), (5, 4)]


def test_fixed_shape_is_drawn_twice_with_other_values():
    first, second = trials(lambda x: x, spec(1, 4))
    assert first["x"].shape == second["x"].shape == (1, 4)
    assert not np.array_equal(first["x"], second["x"])


def test_other_axes_have_the_size_that_was_traced_and_one_more():
    drawn = trials(lambda x: x, spec("batch", "time"), traced={"batch": 2, "time": 12})
    assert shapes(drawn) == [(2, 12), (5, 12), (2, 13)]


def test_other_axes_without_a_trace_have_the_first_size_that_runs():
    def at_least_20(x):
        if x.shape[1] < 20:
            raise InputError("too short")
        return x

    assert shapes(trials(at_least_20, spec("batch", "time"))) == [(2, 32), (5, 32), (2, 33)]


def test_longer_axis_that_does_not_run_is_left_out():
    def even(x):
        if x.shape[1] % 2:
            raise InputError("odd")
        return x

    assert shapes(trials(even, spec("batch", "time"))) == [(2, 8), (5, 8)]


def test_number_of_rows_that_does_not_run_is_left_out():
    def two_rows(x):
        if len(x) != 2:
            raise InputError("two rows")
        return x

    assert shapes(trials(two_rows, spec("batch", 4))) == [(2, 4)]


def test_failure_that_is_not_the_models_is_no_refusal():
    def broken(x):
        raise TypeError("a fault of ours")

    with pytest.raises(TypeError, match="a fault of ours"):
        trials(broken, spec("batch", 4))


def test_axes_of_one_name_agree_and_axes_without_a_name_are_found_too():
    drawn = trials(lambda x, z: x, spec("batch", 3), spec("batch", None, name="z"))
    assert shapes(drawn) == [(2, 3), (5, 3), (2, 3)]
    assert shapes(drawn, "z") == [(2, 8), (5, 8), (2, 9)]


@pytest.mark.parametrize(("dtype", "values"), [("int64", {0, 1}), ("int32", {0, 1}), ("bool", {False, True})])
def test_integers_index_any_table(dtype, values):
    drawn = trials(lambda x: x, spec("batch", 50, dtype=dtype))
    assert drawn[0]["x"].dtype == dtype
    assert set(np.unique(drawn[0]["x"])) == values


def test_images_have_the_range_of_bytes():
    assert trials(lambda x: x, spec("batch", 500, dtype="uint8"))[0]["x"].max() > 200


@pytest.mark.filterwarnings("ignore:invalid value encountered in sqrt")
def test_values_are_positive_where_that_alone_gives_finite_outputs():
    drawn = trials(lambda x: np.sqrt(x), spec("batch", 50))
    assert drawn[0]["x"].min() >= 0
    assert trials(lambda x: x, spec("batch", 50))[0]["x"].min() < 0


def test_model_that_always_returns_nan_is_still_compared():
    assert shapes(trials(lambda x: x * np.nan, spec("batch", 2))) == [(2, 2), (5, 2)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (spec(dtype="sequence(float32)"), "its dtype is sequence(float32)"),
        (TensorSpec("x", "float32", None), "its rank is unknown"),
    ],
)
def test_input_that_cannot_be_drawn_is_reported(bad, reason):
    with pytest.raises(RecipeError, match="input 'x': no random values can be drawn to validate the result, because"):
        trials(lambda x: x, bad)


def test_model_that_runs_on_nothing_drawn_is_reported():
    def refuse(x):
        raise InputError("no such index")

    with pytest.raises(RecipeError, match="the model rejected all random inputs for x"):
        trials(refuse, spec("batch", 4))


SMALL = np.random.default_rng(0).uniform(0.5, 1, (5, 3)).astype(np.float32) * np.array([1e4, 1, 1], np.float32)


def test_exact_recipe_has_the_tolerance_of_each_channel():
    """An error of 0.001 is a ten-millionth of the first column and a thousandth of the second."""
    cases = (ValidationCase({"x": SMALL}, {"y": SMALL}),)
    off = SMALL + np.array([0, 1e-2, 0], np.float32)
    check_outputs(serve(lambda x: {"y": SMALL}, name="same"), cases, is_exact=True)
    with pytest.raises(RecipeError, match=r"output 'y' channel 1 of axis 1: 5 of 15 elements are beyond"):
        check_outputs(serve(lambda x: {"y": off}, name="off"), cases, is_exact=True)


def test_inexact_recipe_may_round_a_channel_and_not_lose_it():
    cases = (ValidationCase({"x": SMALL}, {"y": SMALL}),)
    check_outputs(serve(lambda x: {"y": SMALL * np.float32(0.9)}, name="rounded"), cases, is_exact=False)
    lost = SMALL * np.array([1, 0, 1], np.float32)
    with pytest.raises(RecipeError, match=r"output 'y' channel 1 of axis 1: channel 1 is 0 where the reference goes"):
        check_outputs(serve(lambda x: {"y": lost}, name="lost"), cases, is_exact=False)
