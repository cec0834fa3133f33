"""Redaction of saved inputs: recordings, failing inputs, counterexamples and messages."""

import numpy as np
import pytest

import pytest_modelserve as ms
from pytest_modelserve import settings
from pytest_modelserve.errors import ArtifactError, InputError, UsageError
from pytest_modelserve.parity.replay import FAILED, main
from pytest_modelserve.robustness.counterexample_report import save_inputs

KEY = "a secret of sixteen letters"


@pytest.fixture
def model():
    return ms.serve(lambda feed: feed["x"].sum(axis=1) + feed["age"], name="model")


@pytest.fixture
def request_of_two():
    return {"x": np.arange(6.0).reshape(2, 3), "age": np.array([31.0, 64.0])}


@pytest.fixture
def redact(monkeypatch):
    return lambda **rules: monkeypatch.setattr(settings, "REDACT", rules)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_redacted_input_is_not_in_the_recording_and_replay_says_so(tmp_path, model, request_of_two, suffix):
    if suffix == ".parquet":
        pytest.importorskip("polars")
    path = tmp_path / f"traffic{suffix}"
    recording = ms.record_answers(model, request_of_two, path, redact=["age"])
    assert list(recording.exchanges[0].inputs) == ["x"]
    assert dict(recording.redacted) == {"age": "leave out"}
    with pytest.raises(InputError, match=r"was saved without 'age' \(left out\) \(redact\): it cannot be replayed"):
        list(recording.inputs)


def test_a_redacted_recording_is_a_reference_for_complete_inputs(tmp_path, model, request_of_two):
    recording = ms.record_answers(model, request_of_two, tmp_path / "traffic.npz", redact=["age"])
    assert ms.assert_output_parity(model, recording, request_of_two, rtol=0, atol=0).passed


def test_a_column_is_redacted_by_its_number(tmp_path, model, request_of_two):
    recording = ms.record_answers(model, request_of_two, tmp_path / "traffic.npz", redact=["x[1]"])
    np.testing.assert_array_equal(recording.exchanges[0].inputs["x"], [[0, np.nan, 2], [3, np.nan, 5]])
    assert ms.assert_output_parity(model, recording, request_of_two, rtol=0, atol=0).passed


def test_hashes_need_the_project_key_and_are_equal_for_equal_values(tmp_path, model, request_of_two, monkeypatch):
    monkeypatch.delenv("MODELSERVE_PROJECT_KEY", raising=False)
    with pytest.raises(UsageError, match="hashes need a secret in MODELSERVE_PROJECT_KEY"):
        ms.record_answers(model, request_of_two, tmp_path / "traffic.npz", redact={"age": "hash"})
    monkeypatch.setenv("MODELSERVE_PROJECT_KEY", KEY)
    monkeypatch.setattr(settings, "REDACT", {"age": "hash"})
    recording = ms.record_answers(model, [request_of_two, request_of_two], tmp_path / "traffic.npz")
    first, second = (exchange.inputs["age"].tolist() for exchange in recording.exchanges)
    assert first == second
    assert len(first[0]) == 16
    assert ms.assert_output_parity(model, recording, request_of_two, rtol=0, atol=0).passed


def test_replay_of_a_redacted_recording_ends_with_what_is_missing(tmp_path, model, request_of_two, capsys):
    import onnx

    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [value("x", onnx.TensorProto.DOUBLE, ["n", 3])],
        [value("y", onnx.TensorProto.DOUBLE, ["n", 3])],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, tmp_path / "model.onnx")
    path = ms.record_answers(model, request_of_two, tmp_path / "traffic.npz", redact=["age"])._source
    assert main([str(tmp_path / "model.onnx"), path, "--rtol", "0", "--atol", "0"]) == FAILED
    assert "was saved without 'age' (left out)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("redact", "message"),
    [
        ("age", r"redact must be a collection of names, or a mapping; got a text: pass \('age',\)"),
        ({"age": "encrypt"}, "redact: expected 'name' or 'name: hash'"),
        (["*"], "redact leaves no input: x, age"),
        (["x[7]"], "input 'x' has shape .* and no column 7"),
        (["aeg"], "unknown input of redact 'aeg': did you mean 'age'"),
        (["q*", "age"], r"unknown input of redact 'q\*': known: 'x', 'age'"),
        ([3], r"redact must hold names of inputs, got \[3\]"),
    ],
)
def test_what_cannot_be_redacted_is_named(tmp_path, model, request_of_two, redact, message):
    with pytest.raises(UsageError, match=message):
        ms.record_answers(model, request_of_two, tmp_path / "traffic.npz", redact=redact)
    assert not (tmp_path / "traffic.npz").exists()


def test_onnx_test_data_cannot_be_redacted(tmp_path, model, request_of_two):
    with pytest.raises(UsageError, match="redact needs a file"):
        ms.record_answers(model, request_of_two, tmp_path / "traffic", redact=["age"])


def test_a_failing_input_is_saved_without_redacted_inputs(tmp_path, model, request_of_two, redact, monkeypatch):
    monkeypatch.setenv("MODELSERVE_FAILURES", str(tmp_path))
    redact(age="leave out")
    other = ms.serve(lambda feed: feed["x"].sum(axis=1), name="other")
    evidence = ms.measure_output_parity(other, model, request_of_two, rtol=0, atol=0)
    found = next(line for line in evidence.findings if "smallest failing input" in line)
    assert "without age (modelserve_redact): it cannot be replayed" in found
    assert "command" not in evidence.details["failing_input"]
    (path,) = tmp_path.glob("*.npz")
    assert list(ms.open_recording(path).exchanges[0].inputs) == ["x"]


def test_a_counterexample_shows_and_saves_no_redacted_feature(tmp_path, redact):
    redact(income="leave out")
    model = ms.serve(lambda x: np.where(x[:, 1] > 1000, np.nan, x[:, 0]), name="model")
    rows = np.array([[0.5, 1234.5], [0.25, 3.0]])
    evidence = ms.measure_relation(
        model, rows, ms.relations.finite_outputs(), feature_names=["age", "income"], save_to=tmp_path, candidates=20
    )
    text = str(evidence.to_json())
    assert "1234.5" not in text
    assert "@example" not in text
    (path,) = tmp_path.glob("*.npz")
    with pytest.raises(ArtifactError, match=r"was saved without 'input\[1\]' \(left out\)"):
        ms.strategies.saved(path)


def test_all_of_a_counterexample_redacted_is_not_saved(tmp_path, redact):
    redact(**{"*": "leave out"})
    with pytest.raises(ArtifactError, match="redact leaves no input"):
        save_inputs({"x": np.zeros((1, 2))}, tmp_path, about=("model", "", "finite"))


def test_messages_of_the_data_gates_show_no_value_of_a_redacted_column(redact):
    redact(city="leave out", cost="leave out")
    rng = np.random.default_rng(0)
    rows = {"city": rng.choice(["Bern", "Graz"], 2000), "cost": rng.normal(size=2000)}
    profile = ms.reference_profile(rows)
    rows["city"] = np.where(rng.random(2000) < 0.3, "Linz", rows["city"])
    rows["cost"] = np.where(rng.random(2000) < 0.3, 123.456, rows["cost"])
    evidence = [
        ms.measure_data_quality(rows, profile, max_rate=0.01),
        ms.measure_drift(rows, profile, max_distance=0.1),
    ]
    text = " ".join(str(each.to_json()) for each in evidence)
    assert "Linz" not in text
    assert "123.456" not in text
    assert "Bern" not in text
    assert "Graz" not in text


@pytest.mark.parametrize(
    "values",
    [
        [*["12", "13"] * 40, "ask Linz"],
        [*[1, 2] * 40, "ask Linz"],
        [*[1.5] * 80, ("ask Linz",)],
        [*[[1.0, 2.0]] * 8, "ask Linz"],
    ],
    ids=["text of numbers", "two kinds", "no kind", "embedding"],
)
def test_errors_show_no_value_of_a_redacted_column(values, redact):
    column = np.empty(len(values), dtype=object)
    column[:] = values
    with pytest.raises(InputError, match="ask Linz"):
        ms.reference_profile({"city": column})
    redact(city="leave out")
    with pytest.raises(InputError, match=r"column 'city' .*a redacted value") as raised:
        ms.reference_profile({"city": column})
    assert "Linz" not in str(raised.value)
