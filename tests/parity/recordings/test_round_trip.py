"""Recordings replay in every format and for every type of value, against their own model and against others."""

import hashlib
import zipfile
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import pytest_modelserve as ms

FORMATS = ["a.npz", "a.parquet", "a"]
X = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)


def batches():
    return (X[start : start + 4] for start in range(0, 10, 4))


def replayed(candidate, recording):
    return ms.measure_output_parity(candidate, recording, recording.inputs, rtol=0, atol=0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("named", [False, True], ids=["array", "mapping"])
def test_recorded_outputs_are_the_models_own(tmp_path, linear, name, named):
    requests = ({"x": batch} for batch in batches()) if named else batches()
    with ms.serve(linear) as model:
        recording = ms.record_answers(model, requests, tmp_path / name)
        assert [exchange.outputs["y"].shape for exchange in recording.exchanges] == [(4, 2), (4, 2), (2, 2)]
        first = recording.exchanges[0].inputs
        np.testing.assert_array_equal(first["x"] if isinstance(first, Mapping) else first, X[:4], strict=True)
        evidence = replayed(model, recording)
    assert (evidence.verdict, evidence.n, evidence.n_unit) == (ms.Verdict.PASS, 10, "rows")
    assert evidence.reference == recording.subject


@pytest.mark.parametrize("name", FORMATS)
def test_another_model_fails_with_the_row(tmp_path, linear, name):
    with ms.serve(linear) as model:
        recording = ms.record_answers(model, batches(), tmp_path / name)
    changed = onnx.load(linear)
    weight = numpy_helper.to_array(changed.graph.initializer[0]).copy()
    weight[0, 0] += 100
    changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(changed, tmp_path / "changed.onnx")
    with ms.serve(tmp_path / "changed.onnx") as candidate, pytest.raises(ms.GateFailure) as caught:
        ms.assert_output_parity(candidate, recording, recording.inputs, rtol=1e-3, atol=1e-3)
    assert "output 'y' channel 0 of axis 1: 10 of 20 elements are beyond rtol 0.001" in str(caught.value)
    assert recording.subject.sha256 is not None
    assert f"recorded  sha256 {recording.subject.sha256[:12]}" in str(caught.value)


@pytest.mark.parametrize("name", ["a.npz", "a"])
def test_every_type_of_value_replays(tmp_path, everything, narrow, name):
    x = X[:, :2]
    inputs = {
        "x": x,
        "s.length": np.array(2),
        "s[0]": x[:1],
        "s[1]": x[0],
        "t": np.array(["a", "bé", ""], dtype=object),
    }
    with ms.serve(everything) as model:
        recording = ms.record_answers(model, inputs, tmp_path / name)
        assert sorted(recording.exchanges[0].outputs) == [
            "h", "longer.length", "longer[0]", "longer[1]", "longer[2]", "none.present", "p", "p.keys", "some",
            "some.present", "u",
        ]  # fmt: skip
        assert replayed(model, recording).verdict is ms.Verdict.PASS
    with ms.serve(narrow) as model:
        recording = ms.record_answers(model, X, tmp_path / f"narrow-{name}")
        assert [array.dtype.name for array in recording.exchanges[0].outputs.values()] == ["bfloat16", "int4"]
        assert replayed(model, recording).verdict is ms.Verdict.PASS


@pytest.mark.parametrize("name", FORMATS)
def test_function_with_an_unnamed_array_is_recorded(tmp_path, name):
    with ms.serve(lambda x: {"a": x + 1, "b": (x > 0)}, name="plus") as model:
        recording = ms.record_answers(model, X, tmp_path / name)
        assert isinstance(recording.exchanges[0].inputs, np.ndarray)
        assert replayed(model, recording).verdict is ms.Verdict.PASS


@pytest.mark.parametrize("name", FORMATS)
def test_opening_again_returns_the_same_recording(tmp_path, linear, name):
    with ms.serve(linear) as model:
        written = ms.record_answers(model, batches(), tmp_path / name)
        again = ms.open_recording(tmp_path / name, signature=model.signature)
    assert again.subject.sha256 == written.subject.sha256
    for one, other in zip(written.exchanges, again.exchanges, strict=True):
        for key in one.outputs:
            np.testing.assert_array_equal(one.outputs[key], other.outputs[key], strict=True)


def test_equal_outputs_give_equal_npz_files(tmp_path, linear):
    with ms.serve(linear) as model:
        shas = {ms.record_answers(model, batches(), tmp_path / f"{i}.npz").subject.sha256 for i in range(2)}
    assert shas == {hashlib.sha256((tmp_path / "0.npz").read_bytes()).hexdigest()}
    with zipfile.ZipFile(tmp_path / "0.npz") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # no clock in it


def test_recording_has_outputs_only_for_its_requests(tmp_path, linear):
    with ms.serve(linear) as model:
        recording = ms.record_answers(model, batches(), tmp_path / "a.npz")
    np.testing.assert_array_equal(recording.predict(X[4:8])["y"], recording.exchanges[1].outputs["y"])
    np.testing.assert_array_equal(recording.predict({"any": X[4:8]})["y"], recording.exchanges[1].outputs["y"])
    with pytest.raises(ms.InputError) as caught:
        recording.predict(X[:5])
    assert str(caught.value) == (
        f"inputs: not among the 3 requests of {tmp_path / 'a.npz'}; a recording has outputs only for recording.inputs"
    )
    recording.close()
    with pytest.raises(ms.UsageError, match="is closed"):
        recording.predict(X[4:8])


def test_request_with_two_outputs_is_an_artifact_error():
    def exchange(value):
        return ms.Exchange(X, {"y": np.array([value])})

    subject = ms.serve(lambda x: x, name="log").subject
    twice = ms.Recording(subject, [exchange(1), exchange(1)])
    assert twice.predict(X)["y"].tolist() == [1]
    with pytest.raises(ms.ArtifactError, match="requests 0 and 1 of memory are equal but have different outputs"):
        ms.Recording(subject, [exchange(1), exchange(2)]).predict(X)
    with pytest.raises(ms.ArtifactError, match="the recording memory has no requests"):
        ms.Recording(subject, [])


def test_returned_outputs_are_copies():
    recording = ms.Recording(ms.serve(lambda x: x, name="log").subject, [ms.Exchange(X, {"y": np.zeros(3)})])
    recording.predict(X)["y"][:] = 99
    assert recording.predict(X)["y"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", FORMATS)
def test_text_is_the_same_request_in_every_dtype(tmp_path, name):
    words = np.array(["a", "bé", ""])
    with ms.serve(lambda t: np.char.add(t.astype(str), "!").astype(object), name="shout") as model:
        recording = ms.record_answers(model, words, tmp_path / name)
        assert replayed(model, recording).verdict is ms.Verdict.PASS
    for form in (words, words.astype("U9"), words.astype(object)):
        assert recording.predict(form)["output"].tolist() == ["a!", "bé!", "!"]


def test_a_file_is_recorded_without_serving_it(tmp_path, linear):
    recording = ms.record_answers(linear, X, tmp_path / "answers.npz")
    assert replayed(linear, recording).verdict is ms.Verdict.PASS
