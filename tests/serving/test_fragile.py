"""Float16 graphs that onnxruntime's last level of optimisation does not survive are opened below it."""

import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper

from pytest_modelserve.artifacts import open_artifact, read_graph
from pytest_modelserve.serving.crash_guards import crashes_when_optimized

NODE = helper.make_node
TURN = {"perm": [1, 0, 2]}
WEIGHTS = {"w": np.ones((8, 8), np.float16), "shape": np.array([0, 3, 8])}

_SERVE = """
import sys
import numpy as np
from pytest_modelserve.serving import serve
x = np.arange(48, dtype=np.float16).reshape(2, 3, 8)
with serve(sys.argv[1]) as predictor:
    y = predictor.predict(x)["y"]
np.testing.assert_array_equal(y, x.transpose(1, 0, 2).astype(np.float32) @ np.ones((8, 8), np.float32))
"""


def between(*nodes):
    """Nodes one after another from x to y."""
    names = ["x", *(f"v{place}" for place in range(len(nodes) - 1)), "y"]
    return [
        NODE(operator, [names[place], *more], [names[place + 1]], **attributes)
        for place, (operator, more, attributes) in enumerate(nodes)
    ]


TRANSPOSE, PRODUCT = ("Transpose", [], TURN), ("MatMul", ["w"], {})
FATAL = {
    "at once": [TRANSPOSE, PRODUCT],
    "after a cast": [("Cast", [], {"to": TensorProto.FLOAT16}), TRANSPOSE, PRODUCT],
    "after a reshape": [("Reshape", ["shape"], {}), TRANSPOSE, PRODUCT],
    "before an identity": [TRANSPOSE, ("Identity", [], {}), PRODUCT],
}


@pytest.fixture
def half(onnx_file):
    def write(nodes, dtype="float16"):
        weights = {name: a.astype(dtype) if name == "w" else a for name, a in WEIGHTS.items()}
        return onnx_file(between(*nodes), {"x": (dtype, ["n", 3, 8])}, {"y": (dtype, [3, "n", 8])}, weights)

    return write


@pytest.mark.parametrize("nodes", FATAL.values(), ids=FATAL)
def test_transposed_inputs_in_float16_are_served(half, nodes):
    """onnxruntime 1.32 with all its optimisations ends the process (SIGSEGV) on each."""
    ran = subprocess.run([sys.executable, "-c", _SERVE, half(nodes)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("nodes", "dtype"),
    [
        ([TRANSPOSE, PRODUCT], "float32"),
        ([TRANSPOSE, ("Relu", [], {}), PRODUCT], "float16"),
        ([PRODUCT, TRANSPOSE, PRODUCT], "float16"),
        ([PRODUCT, TRANSPOSE], "float16"),
    ],
    ids=["float32", "through a Relu", "of a product", "last"],
)
def test_other_models_keep_every_optimisation(half, nodes, dtype):
    assert not crashes_when_optimized(read_graph(open_artifact(half(nodes, dtype)).path))
