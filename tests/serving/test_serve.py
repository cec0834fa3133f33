"""serve: the right predictor for each kind of target, and one sentence for everything else."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from pytest_modelserve.artifacts import open_artifact
from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving import CallablePredictor, OnnxPredictor, TorchPredictor, serve

X = np.arange(6, dtype=np.float32).reshape(2, 3)
CUDA = ("CUDAExecutionProvider",)


def double(x):
    return 2 * x


class Trained:
    subject = Subject("digits", "torch", "ab" * 32)

    def module(self):
        import torch

        return torch.nn.Linear(3, 1).eval()


def test_paths_and_artifacts_are_served_by_onnxruntime(linear):
    with serve(open_artifact(linear), threads=2, name="n", variant="v") as predictor:
        assert isinstance(predictor, OnnxPredictor)
        assert (str(predictor.subject), predictor.describe()[-9:]) == ("n / v", "2 threads")
    assert isinstance(serve(str(linear)), OnnxPredictor)


def test_a_torch_module_is_served_by_torch():
    torch = pytest.importorskip("torch")
    predictor = serve(torch.nn.Linear(3, 1).eval())
    assert isinstance(predictor, TorchPredictor)
    assert predictor.subject == Subject("Linear", "torch")
    assert serve(torch.nn.Linear(3, 1).eval(), name="head").subject == Subject("head", "torch")


def test_a_trained_model_keeps_its_subject():
    pytest.importorskip("torch")
    predictor = serve(Trained(), variant="reference", threads=2)
    assert isinstance(predictor, TorchPredictor)
    assert predictor.subject == Subject("digits", "reference", "ab" * 32)
    assert predictor.describe().endswith("2 threads")


def test_a_callable_is_served_as_it_is():
    predictor = serve(double)
    assert isinstance(predictor, CallablePredictor)
    assert predictor.subject == Subject("double")
    assert serve(double, name="twice", variant="numpy").subject == Subject("twice", "numpy")


def test_a_session_of_the_caller_is_served_with_its_signature(linear):
    session = onnxruntime.InferenceSession(str(linear), providers=["CPUExecutionProvider"])
    with serve(session, variant="mine") as predictor, serve(linear) as file:
        assert predictor.signature == file.signature
        assert str(predictor.subject) == "graph / mine"
        assert "CPUExecutionProvider, the caller's session" in predictor.describe()
        np.testing.assert_array_equal(predictor.predict(X.tolist())["y"], file.predict(X)["y"])
    with pytest.raises(UsageError, match="threads=2 does not apply to"):
        serve(session, threads=2)


def test_a_missing_file_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match="there is no such file"):
        serve(tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        (
            "HTTP://host/m",
            {},
            "url 'HTTP://host/m' names no model, or has a query: give http://host:8080/v2/models/NAME",
        ),
        (Trained, {}, "target Trained is a class: serve an instance of it"),
        (7, {}, "an object of type int cannot be served"),
        (b"model", {}, "an object of type bytes cannot be served"),
        (onnx.ModelProto(), {}, "a model in memory cannot be served: save it, onnx.save(model, path), and pass the"),
        (double, {"threads": 2}, "threads=2 does not apply to double, which sets its own: remove it"),
        (double, {"providers": CUDA}, "providers=('CUDAExecutionProvider',) apply to ONNX files only"),
        (Trained(), {"threads": 0}, "threads must be an integer of at least 1; got 0"),
    ],
    ids=["url", "class", "int", "bytes", "proto", "threads", "providers", "no-threads"],
)
def test_what_cannot_be_served_is_refused(target, settings, message):
    with pytest.raises(UsageError) as caught:
        serve(target, **settings)
    assert str(caught.value).startswith(message)


def test_serving_an_onnx_model_does_not_load_torch(linear):
    code = (
        "import sys, numpy as np, pytest_modelserve.serving as s\n"
        "s.serve(sys.argv[1]).predict(np.zeros((1, 3), np.float32))\n"
        "print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(linear)], capture_output=True, text=True, check=True)
    assert (ran.stdout.strip(), ran.stderr) == ("False", "")
