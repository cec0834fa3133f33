"""Small ONNX models, made where a test needs them."""

import numpy as np
import onnx
from onnx import helper, numpy_helper


def tensors(specs):
    """`{"x": ("float32", ["n", 3])}` as value infos; a shape of None leaves the rank open."""
    return [
        helper.make_tensor_value_info(
            name, onnx.TensorProto.STRING if dtype == "str" else helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape
        )
        for name, (dtype, shape) in specs.items()
    ]


def make_model(nodes, inputs, outputs, constants=None, *, functions=(), opset=20, domains=()):
    """A model; `outputs` as `inputs`, or a list of value infos for what is no tensor of a numpy dtype."""
    graph = helper.make_graph(
        nodes,
        "graph",
        tensors(inputs),
        tensors(outputs) if isinstance(outputs, dict) else outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, functions=list(functions))
    model.ir_version = 10  # what onnxruntime reads may lag behind what onnx writes
    return model
