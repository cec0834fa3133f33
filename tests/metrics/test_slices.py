"""Slices by columns, bins and predicates."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve.metrics import SliceFigure, slice_figures

N = 200
INPUTS = np.arange(N, dtype=np.float32)[:, None]
SITE = {"site": np.arange(N) // 100}


def sizes(columns):
    return {part.label: part.n for part in ms.Slices(columns).parts(INPUTS, N)}


def test_bins_name_their_edges():
    found = ms.bins([17, 18, 39.5, 40, 65, np.nan], [18, 40, 65])
    assert found.tolist() == ["< 18", "[18, 40)", "[18, 40)", "[40, 65)", ">= 65", "NaN"]
    assert ms.bins(np.array([1, 2]), [2]).tolist() == ["< 2", ">= 2"]


@pytest.mark.parametrize(
    ("values", "edges", "message"),
    [
        ([[1.0]], [1], "values must be numbers of shape (rows,); got shape (1, 1) of float64"),
        (["a"], [1], "values must be numbers of shape (rows,); got shape (1,) of <U1"),
        ([1.0], [2, 1], "edges must be strictly increasing numbers; got [2, 1]"),
        ([1.0], [], "edges must be strictly increasing numbers; got []"),
    ],
)
def test_invalid_bins_are_refused(values, edges, message):
    with pytest.raises(ms.InputError) as caught:
        ms.bins(values, edges)
    assert str(caught.value) == message


def test_predicate_marks_its_rows_and_a_function_may_return_a_column():
    columns = {"early": lambda inputs: inputs[:, 0] < 10, "age": lambda inputs: ms.bins(inputs[:, 0], [50])}
    assert sizes(columns) == {"early": 10, "age=< 50": 50, "age=>= 50": 150}


def test_missing_values_are_a_slice_of_their_own_and_objects_go_by_their_text():
    assert sizes({"x": np.where(np.arange(N) < 50, np.nan, 1.0)}) == {"x=1.0": 150, "x=nan": 50}
    assert sizes({"x": np.array([None] * 50 + ["a"] * 150, dtype=object)}) == {"x=None": 50, "x=a": 150}


def test_slice_without_a_value_has_no_figure():
    def figure(rows):
        if rows[0]:
            raise ms.UsageError("no value")
        return float(rows.sum())

    assert slice_figures(ms.Slices(SITE).parts(INPUTS, N), figure) == [SliceFigure(100, "site=1", 100)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": np.arange(N)}, "slice 'x' has 200 different values: put them into bins, 'x': ms.bins(values, edges)"),
        ({"x": lambda inputs: inputs[:, 0] < 0}, "slice 'x' has none of the 200 rows"),
        ({"x": lambda inputs: inputs}, "slice 'x' has shape (200, 1); it needs one value for each of the 200 rows"),
    ],
)
def test_columns_that_do_not_fit_are_refused(columns, message):
    with pytest.raises(ms.InputError) as caught:
        ms.Slices(columns).parts(INPUTS, N)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("columns", "budget", "message"),
    [
        (SITE, {"max_drop": 0.1}, "Slices: max_drop= needs min_rows=: give both to test slices, or neither"),
        (SITE, {"min_rows": 9}, "Slices: min_rows= needs a budget: give both to test slices, or neither"),
        ({}, {"max_drop": 0.1, "min_rows": 9}, "Slices: max_drop= is a budget of slices, but there are no columns"),
        (SITE, {"max_drop": 0.1, "max_rise": 0.1}, "Slices: max_drop= and max_rise= exclude each other: give one"),
        (SITE, {"max_drop": 0.1, "min_rows": 0}, "Slices: min_rows must be a count of at least 1, got 0"),
        (SITE["site"], {}, 'slices must be a frame, or map names to columns, got ndarray: pass {"site": column}'),
    ],
)
def test_arguments_that_do_not_belong_together_are_refused(columns, budget, message):
    with pytest.raises(ms.UsageError) as caught:
        ms.Slices(columns, **budget)
    assert str(caught.value).startswith(message)
