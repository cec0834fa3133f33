"""Providers and threads: a session runs where it was asked to or not at all."""

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.serving import OnnxPredictor

AVAILABLE = onnxruntime.get_available_providers()
TOLD = ", ".join(map(repr, AVAILABLE))
needs_no_cuda = pytest.mark.skipif("CUDAExecutionProvider" in AVAILABLE, reason="this build has the CUDA provider")


def refusal(path, error=UsageError, **settings):
    with pytest.raises(error) as caught:
        OnnxPredictor(path, **settings)
    return str(caught.value)


def test_an_unknown_provider_names_the_nearest(linear):
    assert refusal(linear, providers=["CPUExecutionProvder"]) == (
        f"unknown provider 'CPUExecutionProvder': did you mean 'CPUExecutionProvider'? Known: {TOLD}"
    )


@needs_no_cuda
def test_a_provider_that_this_build_lacks_is_refused(linear):
    assert refusal(linear, providers=["CUDAExecutionProvider", "CPUExecutionProvider"]) == (
        f"provider 'CUDAExecutionProvider' is not in the installed build of onnxruntime, which has {TOLD}: install "
        "the onnxruntime package for that hardware"
    )


@needs_no_cuda
def test_a_provider_that_silently_falls_back_is_an_error(linear, monkeypatch, capfd):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", *AVAILABLE])
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert refusal(linear, ArtifactError, providers=providers) == (
        f"provider 'CUDAExecutionProvider' did not start for the model {linear}, and onnxruntime would have run it on "
        "'CPUExecutionProvider': check the driver and the libraries that the provider needs"
    )
    assert capfd.readouterr() == ("", "")


def test_a_provider_that_fails_to_start_is_not_replaced(linear, monkeypatch, capfd):
    def fail(*_):
        raise RuntimeError("no driver")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    assert refusal(linear, ArtifactError) == f"onnxruntime refuses the model {linear}: no driver"
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif("AzureExecutionProvider" not in AVAILABLE, reason="needs a second provider that always starts")
def test_nodes_do_not_fall_back_to_a_cpu_that_was_not_named(linear):
    told = refusal(linear, ArtifactError, providers=["AzureExecutionProvider"])
    assert told.startswith(f"onnxruntime refuses the model {linear}: ")
    assert "assigned to the default CPU EP" in told
    with_cpu = OnnxPredictor(linear, providers=["AzureExecutionProvider", "CPUExecutionProvider"])
    assert with_cpu.predict(np.zeros((1, 3), np.float32))["y"].tolist() == [[10.0, 20.0]]


def test_no_provider_and_a_bare_string_are_refused(linear):
    assert refusal(linear, providers=()) == (
        "providers is empty: pass at least one execution provider, for example ('CPUExecutionProvider',)"
    )
    assert refusal(linear, providers="CPUExecutionProvider") == (
        "providers must be a sequence of names: pass ('CPUExecutionProvider',)"
    )


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_are_a_whole_number(linear, threads):
    assert refusal(linear, threads=threads) == f"threads must be an integer of at least 1; got {threads!r}"


def test_a_refused_model_names_the_operator(onnx_file):
    path = onnx_file([helper.make_node("Nonsense", ["x"], ["y"])], {"x": ("float32", [1])}, {"y": ("float32", [1])})
    assert "Nonsense" in refusal(path, ArtifactError)
