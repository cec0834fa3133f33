"""The page of endpoints: its code runs against a server, and its settings are those that the tests start servers with."""

import json
from pathlib import Path

import numpy as np
import pytest

import pytest_modelserve as ms
from tests.onnx_models import make_model
from tests.serving.v2_server import V2Server

PAGE = (Path(__file__).parents[2] / "docs" / "endpoints.md").read_text(encoding="utf-8")
RNG = np.random.default_rng(4)


def blocks(language):
    return [part.partition("\n")[2] for part in PAGE.split("```")[1::2] if part.partition("\n")[0].strip() == language]


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """A folder with digits.onnx and digits_v1.onnx, a server of the first, and what the page calls images and labels."""
    import onnx
    from onnx import helper

    monkeypatch.chdir(tmp_path)
    weights = RNG.normal(size=(4, 3)).astype(np.float32)
    for name, scale in (("digits", 1), ("digits_v1", 2)):
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        shapes = {"x": ("float32", ["batch", 4])}, {"y": ("float32", ["batch", 3])}
        onnx.save(make_model(nodes, *shapes, {"w": scale * weights}), f"{name}.onnx")
    images = RNG.normal(size=(300, 4)).astype(np.float32)
    inputs, outputs = {"x": ("FP32", [-1, 4])}, {"y": ("FP32", [-1, 3])}
    with V2Server(lambda feed: {"y": feed["x"] @ weights}, inputs, outputs) as server:
        yield server, {"ms": ms, "pytest": pytest, "images": images, "labels": (images @ weights).argmax(axis=1)}


@pytest.mark.parametrize("call", ["ms.assert_latency(", "ms.assert_serves(\n"])
def test_code_of_the_page_runs_against_a_server(digits, call):
    server, names = digits
    (code,) = [each for each in blocks("python") if call in each]
    code = code.replace("ms.assert_latency", "ms.measure_latency")  # on a host that may be busy
    exec(code.replace("http://127.0.0.1:8080/v2/models/digits", server.url), names)


def test_settings_of_the_page_can_be_made(monkeypatch):
    monkeypatch.setenv("MODEL_TOKEN", "t")
    (code,) = [each for each in blocks("python") if "models.example.org" in each]
    names = {"ms": ms}
    exec(code.replace("ms.serve(", "endpoint = (").replace("served = ", ""), names)
    assert names["endpoint"].expanded_headers() == {"Authorization": "Bearer t"}


def test_servers_of_the_page_listen_on_this_host_only():
    settings, model = map(json.loads, blocks("json"))
    assert (settings["host"], settings["parallel_workers"]) == ("127.0.0.1", 0)
    assert model["implementation"] == "mlserver_runtime.OnnxModel"
