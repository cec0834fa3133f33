"""Columns of a data file as inputs of a model."""

import numpy as np
import polars
import pytest

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Signature, TensorSpec
from pytest_modelserve.contracts.rows import Rows

ONE = Signature((TensorSpec("x", "float32", ("n", 2)),), ())
TWO = Signature((TensorSpec("ids", "int64", ("n", 3)), TensorSpec("age", "float32", ("n",))), ())


def rows(**columns):
    return Rows({name: np.asarray(values) for name, values in columns.items()}, "rows.csv")


def test_columns_that_are_left_are_the_one_input_in_order():
    found = rows(a=[1.5, 2.5], name=["x", "y"], b=[3, 4], y=[0, 1]).inputs(ONE, None, {"y"})
    assert found.dtype == np.float32
    assert found.tolist() == [[1.5, 3.0], [2.5, 4.0]]


def test_columns_called_like_the_inputs_are_found():
    found = rows(age=[1.0], ids=[[1, 2, 3]], y=[0]).inputs(TWO, None)
    assert {name: array.tolist() for name, array in found.items()} == {"ids": [[1, 2, 3]], "age": [1.0]}


def test_columns_can_be_given_by_input():
    found = rows(a=[1], b=[2], c=[3], years=[4.5]).inputs(TWO, {"ids": ["a", "b", "c"], "age": "years"})
    assert {name: array.tolist() for name, array in found.items()} == {"ids": [[1, 2, 3]], "age": [4.5]}


def test_function_without_a_signature_gets_one_array():
    assert rows(a=[1.0], b=[2.0]).inputs(None, ["b", "a"]).tolist() == [[2.0, 1.0]]


@pytest.mark.parametrize(
    ("columns", "signature", "chosen", "message"),
    [
        ({"a": [1.0]}, ONE, None, r"input 'x' takes 2 columns, and 1 are left \(a\): give columns"),
        ({"a": [1.0], "b": [2.0]}, ONE, ["a", "bb"], "unknown column 'bb': did you mean 'b'"),
        ({"a": [1.0]}, ONE, {"z": ["a"]}, "unknown input 'z'"),
        ({"a": [1], "age": [1.0]}, TWO, {"ids": "a"}, "input 'age' has none; the model takes ids: int64"),
        ({"a": [1]}, TWO, None, r"the model has 2 inputs \(ids, age\), and its columns are a"),
        ({"a": [1e300], "b": [1.0]}, ONE, None, "column 'a' holds values beyond float32"),
        ({"a": [0.5], "b": [1], "c": [1], "age": [1.0]}, TWO, {"ids": ["a", "b", "c"], "age": "age"}, "value 0, 0.5, changes"),
    ],
)  # fmt: skip
def test_columns_that_do_not_fit_are_an_error(columns, signature, chosen, message):
    with pytest.raises(ms.InputError, match=message):
        rows(**columns).inputs(signature, chosen)


def test_rows_are_chosen_by_values_and_number():
    found = rows(site=["a", "b", "a"], x=[1, 2, 3]).where({"site": "a"})
    assert found.column("x").tolist() == [1, 3]
    assert found.take(slice(0, 1)).n == 1
    with pytest.raises(ms.InputError, match="no row has site = 'c'"):
        found.where({"site": "c"})


def test_lists_in_parquet_become_one_array(tmp_path):
    polars.DataFrame({"ids": [[1, 2, 3], [4, 5, 6]], "age": [1.0, 2.0]}).write_parquet(tmp_path / "rows.parquet")
    found = Rows.read(tmp_path / "rows.parquet")
    assert found.column("ids").shape == (2, 3)


@pytest.mark.parametrize(("content", "message"), [("a,b\n", "has no rows"), (None, "does not exist")])
def test_file_without_rows_is_an_error(tmp_path, content, message):
    path = tmp_path / "rows.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises((ms.InputError, ms.ArtifactError), match=message):
        Rows.read(path)


def test_archive_of_arrays_with_different_rows_is_an_error(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.zeros((3, 2)), y=np.zeros(2))
    with pytest.raises(ms.InputError, match="different numbers of rows"):
        Rows.read(tmp_path / "rows.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "rows.npz").read_bytes()[:50])
    with pytest.raises(ms.ArtifactError, match=r"the data .*cut.npz cannot be read"):
        Rows.read(tmp_path / "cut.npz")
