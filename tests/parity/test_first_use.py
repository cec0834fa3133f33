"""What a user holds in the output gates: two paths, an estimator and its converted file, ready outputs."""

import numpy as np
import onnx
import pandas as pd
import polars as pl
import pytest
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import pytest_modelserve as ms

RNG = np.random.default_rng(0)
FRAME = pd.DataFrame({"age": RNG.integers(18, 80, 300).astype(float), "city": RNG.choice(["Bonn", "Rom"], 300)})
LABELS = np.where(FRAME["age"] + RNG.normal(0, 10, 300) > 45, "yes", "no")
TYPES = [("age", FloatTensorType([None, 1])), ("city", StringTensorType([None, 1]))]


@pytest.fixture(scope="module")
def pipeline():
    columns = make_column_transformer((StandardScaler(), ["age"]), (OneHotEncoder(), ["city"]))
    return make_pipeline(columns, LogisticRegression()).fit(FRAME, LABELS)


@pytest.fixture(scope="module", params=[True, False], ids=["zipmap", "arrays"])
def converted(request, pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "pipeline.onnx"
    onnx.save(to_onnx(pipeline, initial_types=TYPES, options={"zipmap": request.param}), path)
    return path


def test_a_converted_pipeline_is_compared_with_its_estimator_on_the_frame(pipeline, converted):
    evidence = ms.measure_output_parity(converted, pipeline, FRAME, rtol=1e-4, atol=1e-5)
    assert evidence.verdict is ms.Verdict.PASS, str(evidence)
    assert "dtypes and axes of length 1 by value" in evidence.method.name
    exact = ms.measure_output_parity(converted, pipeline, FRAME, rtol=1e-4, atol=1e-5, dtype="exact")
    assert exact.verdict is ms.Verdict.FAIL
    assert ms.measure_output_fidelity(converted, pipeline, FRAME, min_sqnr_db=80).verdict is ms.Verdict.PASS


def test_a_pipeline_that_lost_a_step_is_found_and_the_failing_row_can_be_replayed(
    pipeline, converted, tmp_path, monkeypatch
):
    monkeypatch.setenv("MODELSERVE_FAILURES", str(tmp_path / "failures"))
    moved = FRAME.assign(age=FRAME["age"] + 1)
    evidence = ms.measure_output_parity(converted, lambda x: pipeline.predict_proba(moved), FRAME, rtol=1e-4, atol=1e-5)
    assert evidence.verdict is ms.Verdict.FAIL
    later = ms.serve(make_pipeline(*[step for _, step in pipeline.steps]))
    later._estimator = type("Moved", (), {"predict": lambda s, x: pipeline.predict(x), "predict_proba": lambda s, x: pipeline.predict_proba(x.assign(age=x["age"] + 1))})()  # fmt: skip
    evidence = ms.measure_output_parity(converted, later, FRAME, rtol=1e-4, atol=1e-5)
    assert evidence.verdict is ms.Verdict.FAIL
    saved = ms.open_recording(next((tmp_path / "failures").glob("*.npz")))
    assert {name: array.shape for name, array in saved.exchanges[0].inputs.items()} == {"age": (1, 1), "city": (1, 1)}
    assert "convert and compare its steps one by one" in str(evidence)


def test_accuracy_of_both_has_one_name_for_the_output(pipeline, converted):
    name = next(iter(ms.serve(converted).predict(FRAME)))
    evidence = ms.measure_accuracy_parity(converted, pipeline, FRAME, LABELS, max_drop=0.05, output=name)
    assert evidence.verdict is ms.Verdict.PASS


def test_a_converted_regressor_has_one_column_where_the_estimator_has_none(tmp_path):
    rows = RNG.normal(size=(50, 3)).astype(np.float32)
    model = LinearRegression().fit(rows, rows @ [1.0, 2.0, 3.0])
    onnx.save(to_onnx(model, rows[:1]), tmp_path / "model.onnx")
    assert (
        ms.measure_output_parity(tmp_path / "model.onnx", model, rows, rtol=1e-4, atol=1e-5).verdict is ms.Verdict.PASS
    )


def test_ready_outputs_are_compared_without_a_model(tmp_path):
    old = RNG.normal(size=(100, 2))
    pd.DataFrame(old, columns=["y_0", "y_1"]).to_csv(tmp_path / "old.csv", index=False)
    new = {"y": old.astype(np.float32)}
    assert ms.measure_output_parity(new, tmp_path / "old.csv", rtol=1e-5, atol=1e-6).verdict is ms.Verdict.PASS
    new["y"][7, 1] += 0.5
    evidence = ms.measure_output_parity(new, tmp_path / "old.csv", rtol=1e-5, atol=1e-6)
    assert evidence.verdict is ms.Verdict.FAIL
    assert "[7, 1]" in str(evidence)
    assert ms.measure_output_fidelity(new, tmp_path / "old.csv", min_sqnr_db=20).verdict is ms.Verdict.PASS


def test_an_unknown_way_to_compare_dtypes_is_refused():
    with pytest.raises(ms.UsageError, match="unknown dtype 'values': did you mean 'value'"):
        ms.measure_output_parity(np.abs, np.abs, np.ones((2, 2)), dtype="values")


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_metrics_of_labels_read_the_labels_of_a_classifier_without_output(pipeline, converted, metric):
    evidence = ms.measure_accuracy_parity(converted, pipeline, FRAME, LABELS, max_drop=0.05, metric=metric)
    assert evidence.verdict is ms.Verdict.PASS
    assert evidence.value == 0
    assert ms.measure_accuracy(converted, FRAME, LABELS, min_value=0.5).value == np.mean(
        pipeline.predict(FRAME) == LABELS
    )


def test_metrics_of_scores_read_the_probabilities_of_a_classifier_without_output(pipeline, converted):
    column = (LABELS == "yes").astype(int)
    output = ms.Output(scores="probabilities")
    evidence = ms.measure_accuracy(converted, FRAME, column, max_value=1.0, metric="log_loss", output=output)
    expected = -np.log(pipeline.predict_proba(FRAME)[np.arange(300), column]).mean()
    assert evidence.value == pytest.approx(expected, rel=1e-5)
    assert ms.measure_accuracy(converted, FRAME, column, min_value=0.5, metric="roc_auc").passed


def test_a_custom_metric_still_needs_the_name_of_the_output(converted):
    with pytest.raises(ms.UsageError, match=r"output= is required: .* \('output_label'|\('label'"):
        ms.measure_accuracy(converted, FRAME, LABELS, min_value=0.5, metric=lambda labels, outputs: 1.0)


def test_a_frame_whose_values_would_change_names_one_call_that_casts_all_columns(tmp_path):
    types = [(name, FloatTensorType([None, 1])) for name in ("age", "income")]
    data = pd.DataFrame({"age": FRAME["age"] + 0.1, "income": FRAME["age"] * 1.7})
    columns = make_column_transformer((StandardScaler(), ["age", "income"]))
    onnx.save(
        to_onnx(make_pipeline(columns, LinearRegression()).fit(data, data["age"]), initial_types=types),
        tmp_path / "m.onnx",
    )
    cast = r"cast with frame.astype\({'age': 'float32', 'income': 'float32'}\) if that is intended"
    with ms.serve(tmp_path / "m.onnx") as predictor:
        with pytest.raises(ms.InputError, match=f"column 'age' has dtype float64 .* changes: {cast}"):
            predictor.predict(data)
        with pytest.raises(ms.InputError, match=r"frame.cast\({'age': pl.Float32, 'income': pl.Float32}\)"):
            predictor.predict(pl.from_pandas(data))
        predictor.predict(data.astype({"age": "float32", "income": "float32"}))


@pytest.mark.parametrize("batches", [list, iter, lambda parts: [(part, np.arange(len(part))) for part in parts]])
def test_gates_over_all_rows_take_batches_and_pairs_of_a_loader(batches):
    x = RNG.standard_normal((30, 4)).astype(np.float32)
    model = ms.serve(lambda rows: rows * np.float32(1.5))
    parts = np.array_split(x, 3)
    assert ms.measure_output_fidelity(model, model, batches(parts), min_sqnr_db=20).n == 30
    assert ms.measure_label_stability(model, batches(parts), lambda rows: rows, min_agreement=0.5).n == 30
    assert ms.measure_relation(model, batches(parts), ms.relations.batch_invariance(), candidates=50).passed


def test_batches_that_are_no_one_batch_are_one_clear_error():
    model = ms.serve(lambda rows: rows)
    with pytest.raises(ms.InputError, match="the batches of the inputs do not fit together"):
        ms.measure_output_fidelity(model, model, [np.ones((2, 3)), np.ones((2, 4))], min_sqnr_db=20)
    with pytest.raises(ms.InputError, match="inputs are empty"):
        ms.measure_output_fidelity(model, model, iter([]), min_sqnr_db=20)
