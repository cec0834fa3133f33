import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from pytest_modelserve.errors import ArtifactError, InputError, UsageError
from pytest_modelserve.serving import serve
from pytest_modelserve.serving.serve import open_models

SCORES = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
ROWS = np.array([2, 0])


@pytest.mark.parametrize("outputs", [SCORES, SCORES.tolist(), torch.from_numpy(SCORES), {"output": SCORES}])
def test_outputs_in_memory_are_returned_row_by_row(outputs):
    predictor = serve(outputs, name="v2")
    np.testing.assert_array_equal(predictor.predict(ROWS)["output"], SCORES[ROWS])
    assert predictor.describe() == "v2, ready outputs of 3 rows"


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "parquet"])
def test_outputs_of_a_file_are_its_arrays_or_columns(tmp_path, suffix):
    path = tmp_path / f"outputs.{suffix}"
    frame = pl.DataFrame({"score_0": SCORES[:, 0], "score_1": SCORES[:, 1], "label": ["a", "b", "b"]})
    match suffix:
        case "npy":
            np.save(path, SCORES)
        case "npz":
            np.savez(path, score=SCORES, label=np.array(["a", "b", "b"]))
        case "csv":
            frame.write_csv(path)
        case "parquet":
            frame.write_parquet(path)
    outputs = serve(path).predict(ROWS)
    np.testing.assert_array_equal(outputs["output" if suffix == "npy" else "score"], SCORES[ROWS])
    if suffix != "npy":
        assert outputs["label"].tolist() == ["b", "a"]


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "parquet"])
def test_a_file_that_holds_no_outputs_is_named(tmp_path, suffix):
    path = tmp_path / f"outputs.{suffix}"
    with pytest.raises(ArtifactError, match="does not exist"):
        serve(path)
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match=f"the file of outputs .*outputs.{suffix} cannot be read"):
        serve(path)


def test_columns_that_would_be_one_output_twice_are_refused():
    with pytest.raises(UsageError, match="columns 'p' and 'p_0' cannot both be output 'p': rename one"):
        serve(pd.DataFrame({"p": [1.0], "p_0": [1.0], "p_1": [0.0]}))


@pytest.mark.parametrize("rows", [np.array([0.0]), np.zeros((2, 2), np.int64), {"x": ROWS}])
def test_anything_but_row_numbers_is_refused(rows):
    with pytest.raises(InputError, match="its input is an array of row numbers"):
        serve(SCORES).predict(rows)


@pytest.mark.parametrize(
    "inputs", [np.arange(6.0).reshape(3, 2), {"x": np.arange(3.0)}, pd.DataFrame({"x": [1, 2, 3]})]
)
def test_a_model_beside_ready_outputs_predicts_the_same_rows(inputs):
    def model(x):
        return np.asarray(x["x"] if isinstance(x, (dict, pd.DataFrame)) else x[:, 0]) * 2

    with open_models(model, SCORES, inputs=inputs, ready=True) as (rows, (served, ready)):
        np.testing.assert_array_equal(rows, [0, 1, 2])
        whole = served.predict(rows)["output"]
        np.testing.assert_array_equal(served.predict(ROWS)["output"], whole[ROWS])
        np.testing.assert_array_equal(ready.predict(ROWS)["output"], SCORES[ROWS])


def test_what_a_gate_opened_is_closed_and_what_it_was_given_stays_open():
    given = serve(np.abs)
    with open_models(given, np.sign, inputs=[[1.0]]) as (inputs, (first, second)):
        assert inputs.tolist() == [[1.0]]
    assert (first.closed, second.closed) == (False, True)


@pytest.mark.parametrize(
    ("models", "inputs", "ready", "message"),
    [
        (
            [SCORES],
            np.zeros(3),
            False,
            "this gate calls the model, and ready outputs holds ready outputs: pass the model",
        ),
        ([np.abs], None, True, "inputs is missing: it can be left out only where all models are ready outputs"),
        ([SCORES], np.zeros(2), True, "ready outputs and inputs have different numbers of rows: "),
        ([SCORES, np.abs], iter([np.zeros(3)]), True, "inputs must be one batch where ready outputs are compared"),
    ],
)
def test_models_and_inputs_that_do_not_fit_are_refused(models, inputs, ready, message):
    with pytest.raises(UsageError) as caught, open_models(*models, inputs=inputs, ready=ready):
        pass
    assert str(caught.value).startswith(message)
