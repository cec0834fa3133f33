"""Files of recordings: standard ones are read, damaged ones are refused, partial ones are never written."""

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import numpy_helper

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Signature, TensorSpec

X = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


@pytest.fixture
def model(linear):
    with ms.serve(linear) as predictor:
        yield predictor


def tensors(folder, **values):
    """`input_0=array` as a file; a tuple of array and name names the tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in values.items():
        array, name = value if isinstance(value, tuple) else (value, "")
        (folder / f"{file}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())


def answers(x):
    y = x @ np.arange(6, dtype=np.float32).reshape(3, 2) + np.array([1, -1], np.float32)
    return {"y": y, "top": y.argmax(axis=1)}


def test_onnx_test_data_gets_its_names_from_the_model_in_the_folder(tmp_path, linear, model):
    for index in (0, 3, 10):  # test_data_set_10 comes after 3
        expected = answers(X + index)
        tensors(
            tmp_path / "case" / f"test_data_set_{index}",
            input_0=X + index,
            output_0=expected["y"],
            output_1=expected["top"],
        )
    (tmp_path / "case" / "model.onnx").write_bytes(linear.read_bytes())
    recording = ms.open_recording(tmp_path / "case")
    assert len(recording.exchanges) == 3
    np.testing.assert_array_equal(recording.exchanges[2].inputs["x"], X + 10)
    assert ms.assert_output_parity(model, recording, recording.inputs, rtol=1e-6, atol=1e-6).n == 18
    assert len(ms.open_recording(tmp_path / "case" / "test_data_set_3").exchanges) == 1


def test_names_come_from_the_tensors_without_a_model(tmp_path):
    tensors(tmp_path / "case" / "test_data_set_0", input_0=(X, "a"), input_1=X, output_0=(X, "y"))
    (exchange,) = ms.open_recording(tmp_path / "case").exchanges
    assert (sorted(exchange.inputs), list(exchange.outputs)) == (["a", "input_1"], ["y"])


def test_written_folder_can_be_read_by_onnx(tmp_path, model):
    ms.record_answers(model, X, tmp_path / "case")
    folder = tmp_path / "case" / "test_data_set_0"
    assert sorted(path.name for path in folder.iterdir()) == ["input_0.pb", "output_0.pb", "output_1.pb"]
    proto = onnx.TensorProto.FromString((folder / "output_1.pb").read_bytes())
    assert proto.name == "top"
    np.testing.assert_array_equal(numpy_helper.to_array(proto), answers(X)["top"])


def test_npz_written_by_hand_is_one_request(tmp_path, model):
    expected = answers(X)
    np.savez_compressed(
        tmp_path / "log.npz", **{"inputs/x": X, "outputs/y": expected["y"], "outputs/top": expected["top"]}
    )
    recording = ms.open_recording(tmp_path / "log.npz")
    assert ms.assert_output_parity(model, recording, recording.inputs, rtol=1e-6, atol=1e-6).n == 6
    assert str(recording.subject) == "log / recorded"


def test_columns_of_a_log_become_arrays(tmp_path, model):
    expected = answers(X)
    frame = pl.DataFrame(
        {
            **{f"feature {i}": X[:, i].astype(np.float64) for i in range(3)},
            "top": expected["top"],
            "s0": expected["y"][:, 0],
            "s1": expected["y"][:, 1],
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    recording = ms.open_recording(
        tmp_path / "log.parquet",
        inputs={"x": ["feature 0", "feature 1", "feature 2"]},
        outputs={"top": "top", "y": ["s0", "s1"]},
        rows=4,
        signature=model.signature,
    )
    first, last = recording.exchanges
    assert (first.inputs["x"].shape, last.inputs["x"].shape, first.inputs["x"].dtype) == ((4, 3), (2, 3), np.float32)
    assert ms.assert_output_parity(model, recording, recording.inputs, rtol=1e-6, atol=1e-6).n == 6


@pytest.mark.parametrize("name", ["a.npz", "a.parquet", "a"])
def test_failed_recording_leaves_nothing(tmp_path, model, name):
    folder = tmp_path / "recordings"
    folder.mkdir()

    def requests():
        yield X
        raise RuntimeError("the log ends here")

    with pytest.raises(RuntimeError, match="the log ends here"):
        ms.record_answers(model, requests(), folder / name)
    assert list(folder.iterdir()) == []
    with pytest.raises(ms.InputError, match="there is no request to record"):
        ms.record_answers(model, [], folder / name)
    assert list(folder.iterdir()) == []


def test_file_is_replaced_only_by_a_complete_one_and_a_folder_never(tmp_path, model):
    def broken():
        yield X
        raise RuntimeError

    first = ms.record_answers(model, X, tmp_path / "a.npz").subject.sha256
    with pytest.raises(RuntimeError):
        ms.record_answers(model, broken(), tmp_path / "a.npz")
    assert ms.open_recording(tmp_path / "a.npz").subject.sha256 == first
    assert ms.record_answers(model, X + 1, tmp_path / "a.npz").subject.sha256 != first
    ms.record_answers(model, X, tmp_path / "a")
    with pytest.raises(ms.UsageError, match="exists already: choose another folder, or remove it first"):
        ms.record_answers(model, X, tmp_path / "a")


@pytest.mark.parametrize("name", ["a.npz", "a.parquet", "b/a.npz", "b/a"])
def test_missing_folder_is_made_and_a_file_in_its_place_is_an_artifact_error(tmp_path, model, name):
    ms.record_answers(model, X, tmp_path / "missing" / name)
    assert ms.open_recording(tmp_path / "missing" / name).inputs
    (tmp_path / "file").touch()
    with pytest.raises(ms.ArtifactError, match="cannot write the recording"):
        ms.record_answers(model, X, tmp_path / "file" / name)


@pytest.mark.parametrize("name", ["a.npz", "a.parquet"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_file_is_an_artifact_error(tmp_path, model, name, keep):
    path = tmp_path / name
    ms.record_answers(model, X, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ms.ArtifactError, match=f"cannot read the recording {path}: it is truncated, damaged or no "):
        ms.open_recording(path)


def test_damaged_member_is_an_error_when_it_is_read(tmp_path, model):
    path = tmp_path / "a.npz"
    ms.record_answers(model, X, path)
    content = bytearray(path.read_bytes())
    content[content.find(X.tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ms.ArtifactError, match="Bad CRC-32"):
        ms.open_recording(path).exchanges[0]


@pytest.mark.parametrize("damage", [b"", b"\x08\x05\x10\x01", b"not a tensor"])
def test_damaged_tensor_is_an_error_when_it_is_read(tmp_path, model, damage):
    ms.record_answers(model, X, tmp_path / "a")
    path = tmp_path / "a" / "test_data_set_0" / "output_0.pb"
    path.write_bytes(damage)
    for signature, expected in ((model.signature, "float32"), (None, "a tensor")):
        recording = ms.open_recording(tmp_path / "a", signature=signature)
        with pytest.raises(ms.ArtifactError, match=f"cannot read {path} as {expected}: it is truncated, damaged or"):
            recording.exchanges[0]


def test_sequence_without_its_model_needs_a_signature(tmp_path):
    proto = numpy_helper.from_list([X, X[:2]], "s")
    folder = tmp_path / "case" / "test_data_set_0"
    tensors(folder, output_0=X)
    (folder / "input_0.pb").write_bytes(proto.SerializeToString())
    signature = Signature((TensorSpec("s", "sequence(float32)", ()),), (TensorSpec("y", "float32", (None, 3)),))
    (exchange,) = ms.open_recording(tmp_path / "case", signature=signature).exchanges
    assert list(exchange.inputs) == ["s.length", "s[0]", "s[1]"]
    with pytest.raises(ms.ArtifactError, match=r"other types need model.onnx in the same folder, or signature="):
        ms.open_recording(tmp_path / "case").exchanges[0]


def npz(path, **members):
    np.savez(path, **members)
    return path


def frame(path, **columns):
    pl.DataFrame(columns).write_parquet(path)
    return path


def incomplete(path, missing):
    tensors(path / "test_data_set_0", input_0=X, input_1=X, output_0=X, output_1=X)
    (path / "test_data_set_0" / f"{missing}.pb").unlink()
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: f / "a.npz", "there is no such file or folder"),
        (lambda f: f, "there is no test_data_set_0 in it"),
        (lambda f: incomplete(f, "input_0"), "input_0.pb is missing"),
        (lambda f: incomplete(f, "output_0"), "output_0.pb is missing"),
        (lambda f: npz(f / "a.npz", **{"inputs/x": X}), "request 0 has no outputs"),
        (
            lambda f: npz(f / "a.npz", **{"0/inputs/x": X, "0/outputs/y": X, "2/inputs/x": X}),
            "request 1 has no inputs and outputs",
        ),
        (lambda f: npz(f / "a.npz", x=X), "unknown member 'x'; members are called 'inputs/...' and 'outputs/...'"),
        (
            lambda f: npz(
                f / "a.npz",
                recording=np.array('{"schema": 3, "name": "a", "variant": "", "sha256": null, "dtypes": {}}'),
                **{"inputs/x": X, "outputs/y": X},
            ),
            "it has schema 3; this release reads 1 and 2",
        ),
        (lambda f: frame(f / "a.parquet", x=[1.0]), "no column is named inputs/...; give the columns by inputs="),
    ],
    ids=["missing", "no-data-set", "no-input", "no-output", "no-outputs", "gap", "member", "schema", "no-columns"],
)
def test_path_without_a_recording_is_an_artifact_error(tmp_path, make, message):
    path = make(tmp_path)
    with pytest.raises(ms.ArtifactError) as caught:
        ms.open_recording(path)
    assert str(caught.value).startswith(f"cannot read the recording {path}")
    assert message in str(caught.value)


def test_nulls_and_misspelled_columns_are_artifact_errors(tmp_path):
    path = frame(tmp_path / "a.parquet", **{"inputs/x": [1.0, None], "outputs/y": [1.0, 2.0]})
    with pytest.raises(ms.ArtifactError, match="column 'inputs/x' has 1 nulls"):
        ms.open_recording(path).exchanges[0]
    with pytest.raises(ms.ArtifactError, match="unknown column 'inputs/z': did you mean 'inputs/x'"):
        ms.open_recording(path, inputs={"x": "inputs/z"})


def test_values_that_a_format_cannot_store_are_refused(tmp_path, narrow, model):
    with ms.serve(narrow) as predictor, pytest.raises(ms.UsageError) as caught:
        ms.record_answers(predictor, X, tmp_path / "a.parquet")
    assert str(caught.value) == "outputs/b has dtype bfloat16, which Parquet cannot store; record it as .npz"
    with ms.serve(lambda x: x.sum(axis=0)) as predictor, pytest.raises(ms.UsageError) as caught:
        ms.record_answers(predictor, X, tmp_path / "a.parquet")
    assert str(caught.value) == (
        "outputs/output has shape [3] in a request of 6 rows: Parquet stores one value for each row; record it as .npz"
    )
    with pytest.raises(ms.UsageError, match=r"unknown kind of recording '.csv'"):
        ms.record_answers(model, X, tmp_path / "a.csv")
    with pytest.raises(ms.UsageError, match="apply to Parquet files only"):
        ms.record_answers(model, X, tmp_path / "a.npz") and ms.open_recording(tmp_path / "a.npz", rows=3)
    assert not (tmp_path / "a.parquet").exists()
