"""assert_serves: an endpoint serves the file; each known way of not serving it has a finding of its own."""

import numpy as np
import onnx
import pytest
from onnx import helper

import pytest_modelserve as ms
from tests.onnx_models import make_model
from tests.serving.v2_server import V2Server

RNG = np.random.default_rng(5)
W = RNG.normal(size=(4, 3)).astype(np.float32)
X = RNG.uniform(0, 255, size=(20, 4)).astype(np.float32)
INPUTS, OUTPUTS = {"x": ("FP32", [-1, 4])}, {"p": ("FP32", [-1, 3]), "label": ("INT64", [-1])}


def softmax(x, w=W):
    z = x / np.float32(255) @ w
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def answers(p):
    return {"p": p.astype(np.float32), "label": p.argmax(axis=1)}


@pytest.fixture
def onnx_file(tmp_path):
    """Saves a model as "classifier.onnx"."""

    def save(*args):
        onnx.save(make_model(*args), tmp_path / "classifier.onnx")
        return tmp_path / "classifier.onnx"

    return save


@pytest.fixture
def file(onnx_file):
    return onnx_file(
        [
            helper.make_node("Div", ["x", "scale"], ["s"]),
            helper.make_node("MatMul", ["s", "w"], ["z"]),
            helper.make_node("Softmax", ["z"], ["p"], axis=1),
            helper.make_node("ArgMax", ["p"], ["label"], axis=1, keepdims=0),
        ],
        {"x": ("float32", ["batch", 4])},
        {"p": ("float32", ["batch", 3]), "label": ("int64", ["batch"])},
        {"w": W, "scale": np.array(255, np.float32)},
    )


def findings(file, model, *, inputs=INPUTS, outputs=OUTPUTS, rows=X, others=None, **settings):
    with V2Server(model, inputs, outputs, **settings) as server:
        evidence = ms.measure_served_model(server.url, file, rows, others=others)
    assert not evidence.passed
    assert evidence.reference.name == "classifier"
    return "\n".join(evidence.findings)


def test_the_same_file_passes_with_and_without_a_digest(file):
    sha256 = ms.open_artifact(file).sha256
    for settings in ({}, {"sha256": sha256}, {"extensions": ("binary_tensor_data",)}):
        with V2Server(lambda feed: answers(softmax(feed["x"])), INPUTS, OUTPUTS, **settings) as server:
            evidence = ms.assert_serves(server.url, file, X)
        assert (evidence.gate, evidence.n, evidence.summary) == ("served model", 20, "the endpoint serves the file")


def test_swapped_weights_are_named_as_no_known_cause(file):
    assert "for no known cause: other weights" in findings(file, lambda feed: answers(softmax(feed["x"], W[::-1])))


def test_another_digest_is_a_mismatch_though_the_answers_agree(file):
    found = findings(file, lambda feed: answers(softmax(feed["x"])), sha256="ab" * 32)
    assert "the server tells sha256 abababababab…, and the file has" in found


def test_half_precision_is_recognized(file):
    def half(feed):
        return answers(softmax(feed["x"], W.astype(np.float16)).astype(np.float16))

    assert "the answers are float16 numbers," in findings(file, half)


def test_half_precision_inside_the_model_is_recognized_by_its_size(file):
    found = findings(file, lambda feed: answers(softmax(feed["x"], W.astype(np.float16).astype(np.float32))))
    assert "as much as half precision or a quantized model does" in found


def test_an_older_version_is_recognized_among_others(file, tmp_path):
    old = onnx.load(file)
    weights = next(each for each in old.graph.initializer if each.name == "w")
    weights.CopyFrom(onnx.numpy_helper.from_array(2 * W, "w"))
    onnx.save(old, tmp_path / "v1.onnx")
    found = findings(
        file,
        lambda feed: answers(softmax(feed["x"], 2 * W)),
        others={"version 1": tmp_path / "v1.onnx", "version 0": lambda x: answers(softmax(x, 3 * W))},
    )
    assert "the answers are those of version 1 (v1)" in found
    assert "version 0" not in found


@pytest.mark.parametrize(
    ("preprocess", "how"),
    [
        (lambda x: x / 255, "divided by 255"),
        (lambda x: x * 255, "multiplied by 255"),
        (lambda x: x / X.max(), "divided by their largest value"),
        (lambda x: x / 127.5 - 1, r"mapped from [0, 255] to [-1, 1]"),
        (lambda x: 255 - x, "inverted (255 - x)"),
    ],
)
def test_another_preprocessing_is_recognized(file, preprocess, how):
    found = findings(file, lambda feed: answers(softmax(preprocess(feed["x"]).astype(np.float32))))
    assert f"the answers are those of the file for inputs that are {how}: preprocessing differs" in found


def test_reversed_channels_of_images_are_recognized(onnx_file):
    w = RNG.normal(size=(1, 3, 1, 1)).astype(np.float32)
    path = onnx_file(
        [
            helper.make_node("Mul", ["image", "w"], ["m"]),
            helper.make_node("ReduceSum", ["m", "axes"], ["y"], keepdims=0),
        ],
        {"image": ("float32", ["batch", 3, 5, 5])},
        {"y": ("float32", ["batch"])},
        {"w": w, "axes": np.array([1, 2, 3])},
    )
    images = RNG.uniform(size=(6, 3, 5, 5)).astype(np.float32)
    inputs, outputs = {"image": ("FP32", [-1, 3, 5, 5])}, {"y": ("FP32", [-1])}
    found = findings(
        path,
        lambda feed: {"y": (feed["image"][:, ::-1] * w).sum(axis=(1, 2, 3))},
        inputs=inputs,
        outputs=outputs,
        rows=images,
    )
    assert "in the reverse order of channels (RGB, BGR)" in found


def test_a_renamed_output_is_named(file):
    def renamed(feed):
        found = answers(softmax(feed["x"]))
        return {"probabilities": found["p"], "label": found["label"]}

    outputs = {"probabilities": OUTPUTS["p"], "label": OUTPUTS["label"]}
    found = findings(file, renamed, outputs=outputs)
    assert "the server tells no output 'p', but 'probabilities', 'label'" in found
    assert "output 'p' is renamed: its values are served as 'probabilities'" in found


def test_reordered_outputs_are_named_though_the_answers_agree(file):
    def reordered(feed):
        found = answers(softmax(feed["x"]))
        return {"label": found["label"], "p": found["p"]}

    found = findings(file, reordered, outputs=dict(reversed(OUTPUTS.items())))
    assert "in the metadata, outputs have the order label, p, in the file p, label" in found


def test_exchanged_outputs_are_named(onnx_file):
    path = onnx_file(
        [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Exp", ["x"], ["b"])],
        {"x": ("float32", ["batch", 2])},
        {"a": ("float32", ["batch", 2]), "b": ("float32", ["batch", 2])},
    )
    inputs, outputs = {"x": ("FP32", [-1, 2])}, {"a": ("FP32", [-1, 2]), "b": ("FP32", [-1, 2])}
    rows = RNG.normal(size=(5, 2)).astype(np.float32)
    found = findings(
        path, lambda feed: {"a": np.exp(feed["x"]), "b": -feed["x"]}, inputs=inputs, outputs=outputs, rows=rows
    )
    assert "outputs are exchanged: the values of 'a' are served as 'b'" in found


def test_an_endpoint_that_takes_other_inputs_fails_without_answers(file):
    found = findings(file, lambda feed: answers(softmax(feed["y"])), inputs={"y": ("FP64", [-1, 4])})
    assert "the server tells no input 'x', but 'y'" in found


def test_inputs_that_do_not_fit_the_file_are_an_error(file):
    with V2Server(lambda feed: answers(softmax(feed["x"])), INPUTS, OUTPUTS) as server:
        with pytest.raises(ms.InputError, match="axis 1 is 3 instead of 4"):
            ms.measure_served_model(server.url, file, X[:, :3])


def test_nan_in_an_answer_is_named(file):
    def with_nan(feed):
        found = answers(softmax(feed["x"]))
        found["p"][3] = np.nan
        return found

    found = findings(file, with_nan, extensions=("binary_tensor_data",))
    assert "the answers have NaN, infinities or shapes that the file's outputs do not have" in found


def test_a_difference_beyond_the_explained_rows_is_said_to_be_there(file):
    rows = np.tile(X, (5, 1))

    def late(feed):
        found = answers(softmax(feed["x"]))
        found["p"][90:] = found["p"][90:, ::-1]
        return found

    assert "the first rows have the answers of the file, and others have not" in findings(file, late, rows=rows)


def test_another_model_that_cannot_be_opened_is_named_beside_the_verdict(file):
    found = findings(file, lambda feed: answers(softmax(feed["x"], W[::-1])), others={"version 0": "missing.onnx"})
    assert "version 0 cannot be compared: cannot open the model" in found
    assert "for no known cause: other weights" in found
