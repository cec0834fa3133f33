import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from pytest_modelserve import measure_accuracy, measure_accuracy_parity
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
        (
            [SCORES, SCORES[:2]],
            None,
            True,
            "ready outputs and inputs have different numbers of rows: candidate ready outputs 3, reference ready outputs 2",
        ),
        ([SCORES], np.zeros(2), True, "ready outputs and inputs have different numbers of rows: "),
        ([SCORES, np.abs], iter([np.zeros(3)]), True, "inputs must be one batch where ready outputs are compared"),
    ],
)
def test_models_and_inputs_that_do_not_fit_are_refused(models, inputs, ready, message):
    with pytest.raises(UsageError) as caught, open_models(*models, inputs=inputs, ready=ready):
        pass
    assert str(caught.value).startswith(message)


def test_row_numbers_that_pandas_wrote_are_no_output(tmp_path):
    pd.DataFrame({"pred": ["a", "b", "a"]}).to_csv(tmp_path / "p.csv")
    assert list(serve(tmp_path / "p.csv").outputs) == ["pred"]
    pd.DataFrame({"pred": ["a", "b", "a"]}, index=[5, 6, 9]).to_csv(tmp_path / "ids.csv")
    assert list(serve(tmp_path / "ids.csv").outputs) == ["", "pred"]


def test_the_same_ids_in_another_order_are_refused():
    champion = pd.DataFrame({"id": ["a", "b", "c"], "pred": [0, 1, 1]})
    candidate = champion.iloc[[0, 2, 1]]
    with pytest.raises(InputError, match="column 'id' is 'c' and 'b' in row 1; sort both by 'id', and the labels"):
        measure_accuracy_parity(candidate, champion, labels=[0, 1, 0], max_drop=0.5, output="pred")


def test_ranks_beside_ids_in_one_order_are_no_ids():
    champion = pd.DataFrame({"id": [7, 8, 9], "rank": [0, 1, 2]})
    candidate = champion.assign(rank=[2, 0, 1])
    assert measure_accuracy_parity(candidate, champion, labels=[0, 1, 0], max_drop=0.9, output="rank").n == 3


@pytest.mark.parametrize("form", ["csv", "frame"])
def test_labels_are_the_one_column_of_a_file_or_frame(tmp_path, form):
    frame = pd.DataFrame({"label": ["a", "b", "b"]})
    frame.to_csv(tmp_path / "labels.csv", index=False)
    labels = tmp_path / "labels.csv" if form == "csv" else frame
    assert measure_accuracy(["a", "b", "a"], labels=labels, min_value=0.1).value == pytest.approx(2 / 3)


def test_labels_that_are_no_column_are_refused_with_what_to_pass(tmp_path):
    frame = pd.DataFrame({"id": [1, 2], "label": ["a", "b"]})
    with pytest.raises(InputError, match=r"labels has 2 columns \('id', 'label'\): pass the one that holds the labels"):
        measure_accuracy(["a", "b"], labels=frame, min_value=0.1)
    with pytest.raises(
        InputError,
        match=r"labels is 'label', which is no column of the inputs: pass an array, .* or the path of a file",
    ):
        measure_accuracy(["a", "b"], labels="label", min_value=0.1)
    with pytest.raises(
        UsageError, match=r'beside ready outputs, too: assert_accuracy\("predictions.csv", labels=labels'
    ):
        measure_accuracy(["a", "b"], np.array(["a", "b"]), min_value=0.1)


def test_a_column_of_labels_beside_probabilities_is_not_taken_for_the_predicted_one():
    rows = pd.DataFrame({"label": [0, 1], "probabilities_0": [0.1, 0.2], "probabilities_1": [0.9, 0.8]})
    with pytest.raises(UsageError, match=r"output= is required: ready outputs has several outputs \('label', 'prob"):
        measure_accuracy(rows, labels=[0, 1], min_value=0.1)


def test_unnumbered_scores_of_classes_are_told_how_to_be_one_output():
    scores = pd.DataFrame({"cat": [0.9, 0.2], "dog": [0.1, 0.8]})
    with pytest.raises(UsageError, match="call their columns score_0, score_1, and so on: they are one output"):
        measure_accuracy(scores, labels=[0, 1], min_value=0.1)
