"""Rounding errors of onnxruntime's smooth functions, beside the error radii of certificates.

    python benchmarks/kernel_rounding.py [--values 4000000]

Each function runs in float32 on values from -30 to 30, near 0 and from -1,000 to 1,000, and is compared with its value
in float64. Errors are in units of roundoff, 2^-24: the largest one, and the largest one over the radius that a
certificate allows at that value (`activations.py`). A ratio above 1 would make certificates of such a model invalid.
"""

from __future__ import annotations

import argparse

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from pytest_modelserve.robustness.certificates.activations import Smooth
from pytest_modelserve.robustness.certificates.base import Node
from pytest_modelserve.robustness.certificates.interval_arithmetic import Box, unit_roundoff

FUNCTIONS = [
    ("Sigmoid", {}), ("Tanh", {}), ("Erf", {}), ("Gelu", {}), ("Gelu", {"approximate": "tanh"}), ("HardSwish", {}),
    ("Softplus", {}), ("Softsign", {}), ("Elu", {}), ("Elu", {"alpha": 3.0}), ("Selu", {}), ("Celu", {"alpha": 0.5}),
]  # fmt: skip


def served(op: str, attributes: dict[str, object], values: np.ndarray) -> np.ndarray:
    """Return the outputs of onnxruntime."""
    sides = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], **attributes)], "g", sides[:1], sides[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": values})[0].astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--values", type=int, default=4_000_000)
    count = parser.parse_args().values
    rng = np.random.default_rng(0)
    parts = [np.linspace(-30, 30, count), rng.normal(size=count // 4), 1e-3 * rng.normal(size=count // 20)]
    values = np.concatenate([*parts, np.linspace(-1000, 1000, count // 20)]).astype(np.float32)
    exact = values.astype(np.float64)
    print(f"{'function':<24} {'largest error':>14} {'of the radius':>14}   ({values.size:,} values)")
    for op, attributes in FUNCTIONS:
        node = Node(op, op, ("x",), "y", 0, attributes, {}, ((),), (), ("float32",), "float32", 20, (None, 1))
        bounds = Smooth(node)
        errors = np.abs(served(op, attributes, values) - bounds.curve.value(exact))
        radius = np.asarray(bounds.error([Box(exact, exact)]))
        name = " ".join([op, *(f"{key}={value}" for key, value in attributes.items())])
        print(f"{name:<24} {errors.max() / unit_roundoff('float32'):12.2f} u {(errors / radius).max():14.3f}")


if __name__ == "__main__":
    main()
