import numpy as np
import pytest

from pytest_modelserve.artifacts import Store
from pytest_modelserve.serving import serve
from pytest_modelserve.training.export_checks import check_untraced_inputs
from pytest_modelserve.training.export_request import Tracing

ROWS = np.arange(1.0, 9.0, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all exports of a test file."""
    return Store(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def rows():
    """Two traced rows of four features, no two values alike."""
    return ROWS.copy()


@pytest.fixture
def check():
    """`check_off_trace` between two functions of named arrays, by default on `rows` with a free batch."""

    def served(function, name):
        return serve(lambda inputs: function(**inputs), name=name)

    def run(candidate, reference, tracing=None):
        tracing = tracing or Tracing({"x": ROWS}, {"x": {0: "batch"}})
        return check_untraced_inputs(served(candidate, "exported"), served(reference, "module"), tracing)

    return run


@pytest.fixture
def double():
    """A model that answers twice its input."""
    return lambda x: {"y": x * 2}


@pytest.fixture
def check_outputs():
    """That an artifact and its module take the same flat names, and answer alike under the same."""

    def check(artifact, module, inputs):
        with serve(artifact) as candidate, serve(module) as reference:
            got, expected = candidate.predict(inputs), reference.predict(inputs)
        assert list(got) == list(expected)
        for name in expected:
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-6)

    return check
