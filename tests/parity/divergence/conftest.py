"""A small network with one operator of each kind, and ways to break it."""

import functools

import numpy as np
import onnx
import pytest

import pytest_modelserve as ms


@pytest.fixture(scope="session")
def rows():
    return np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)


@pytest.fixture(scope="session")
def build(build):
    """A model of `nodes` on inputs of eight columns."""
    return functools.partial(build, inputs={"x": ["batch", 8]})


@pytest.fixture(scope="session")
def sound_net(build):
    """Gemm, LayerNormalization, Relu, MatMul, Add and Softmax in a row: "a" to "d", "e" and "y"."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((8, 16)),
        "b1": rng.standard_normal(16),
        "gain": 1 + rng.random(16),
        "shift": rng.standard_normal(16),
        "w2": rng.standard_normal((16, 16)) / 4,
        "b2": rng.standard_normal(16),
    }
    nodes = [
        ("Gemm", ["x", "w1", "b1"], "a", {}),
        ("LayerNormalization", ["a", "gain", "shift"], "b", {"epsilon": 1e-5}),
        ("Relu", ["b"], "c", {}),
        ("MatMul", ["c", "w2"], "d", {}),
        ("Add", ["d", "b2"], "e", {}),
        ("Softmax", ["e"], "y", {"axis": 1}),
    ]
    return build(nodes, {name: array.astype(np.float32) for name, array in weights.items()})


@pytest.fixture
def net(sound_net):
    """A copy of `sound_net` that a test may change."""
    copy = onnx.ModelProto()
    copy.CopyFrom(sound_net)
    return copy


@pytest.fixture
def locate(net, rows, save):
    """Break a copy of `net`, or of another model, and locate the divergence."""

    def broken(change, model=None, inputs=None):
        reference = net if model is None else model
        candidate = onnx.ModelProto()
        candidate.CopyFrom(reference)
        change(candidate)
        paths = save(candidate, "candidate"), save(reference, "reference")
        return ms.locate_divergence(*paths, rows if inputs is None else inputs)

    return broken
