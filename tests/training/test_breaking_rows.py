"""Which rows are planted where, before any model sees them."""

from __future__ import annotations

import numpy as np

from pytest_modelserve.training.export_checks import edge_case_rows
from pytest_modelserve.training.export_request import Tracing


def planted(arrays, axes):
    return {kind.name: inputs for kind, inputs in edge_case_rows(Tracing(arrays, axes))}


def test_each_sort_of_input_gets_its_own_rows_and_the_rest_stays():
    ids = np.array([[3, 4], [5, 6]])
    flags = np.array([[True, False], [False, True]])
    x = np.array([[1.0, -2.0], [0.5, 1.0]], np.float32)
    rows = planted({"ids": ids, "flags": flags, "x": x}, {name: {0: "batch"} for name in ("ids", "flags", "x")})
    assert {name: each["ids"][1].tolist() for name, each in rows.items()} == {
        "an all-padding row (integers 0)": [0, 0],
        "an all-padding row (the smallest integer)": [3, 3],
        "a row of the largest integer": [6, 6],
        "an all-padding row (True)": [5, 6],
        "an all-padding row (False)": [5, 6],
        "a row of zeros": [5, 6],
        "a row of large values": [5, 6],
    }
    assert rows["an all-padding row (True)"]["flags"].tolist() == [[True, False], [True, True]]
    assert rows["an all-padding row (False)"]["flags"].tolist() == [[True, False], [False, False]]
    assert rows["a row of zeros"]["x"].tolist() == [[1.0, -2.0], [0.0, 0.0]]
    assert rows["a row of large values"]["x"].tolist() == [[1.0, -2.0], [20000.0, -20000.0]]
    assert all(
        each[name].dtype == {"ids": ids, "flags": flags, "x": x}[name].dtype for each in rows.values() for name in each
    )


def test_what_the_example_holds_anyway_is_left_out():
    assert list(planted({"ids": np.array([[1, 2], [0, 0]])}, {"ids": {0: "batch"}})) == ["a row of the largest integer"]
    assert planted({"ids": np.zeros((2, 2), np.int64)}, {"ids": {0: "batch"}}) == {}


def test_inputs_that_all_rows_share_stay():
    x, table = np.ones((2, 2), np.float32), np.ones((3, 2), np.float32)
    rows = planted({"x": x, "table": table}, {"x": {0: "batch"}, "table": {}})
    assert all(each["table"] is table for each in rows.values())
    assert len(rows) == 2


def test_examples_with_nan_or_nothing_but_zeros_have_a_scale_too():
    x = np.array([[np.nan, 0.0], [0.0, 0.0]], np.float32)
    assert planted({"x": x}, {"x": {0: "batch"}})["a row of large values"]["x"][1].tolist() == [1e4, -1e4]


def test_arrays_of_the_trace_are_not_written_to():
    x = np.ones((2, 2), np.float32)
    planted({"x": x}, {"x": {0: "batch"}})
    assert (x == 1).all()
