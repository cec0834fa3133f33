"""Values on the way through a model that float16 cannot hold, found by running the model that it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_modelserve.artifacts import heavy_weights, light_copy
from pytest_modelserve.compression.clamping import LARGEST
from pytest_modelserve.compression.recipe import Inputs
from pytest_modelserve.errors import RecipeError

if TYPE_CHECKING:
    import onnx
    import onnxruntime


def refuse_overflow(source: onnx.ModelProto, converted: onnx.ModelProto, inputs: Inputs) -> None:
    """RecipeError naming the first value that is float16 in `converted` and passes 65504 in `source`, on `inputs`.

    The answers do not tell: onnxruntime's CPU provider computes most float16 nodes in float32 and leaves out the casts
    between them, so that a value which is infinite on a GPU is finite here.
    """
    import onnx

    names = _made_in_half(source, converted)
    shown = light_copy(source)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    try:
        values = _session(shown, source).run(names, dict(inputs))
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise RecipeError(f"onnxruntime does not show the values inside the model: {error}") from error
    for name, value in zip(names, values, strict=True):
        largest = float(np.abs(value[np.isfinite(value)]).max(initial=0.0))
        if largest > LARGEST:
            raise RecipeError(
                f"value {name!r} reaches {largest:g} on random inputs, beyond the largest fp16, {LARGEST:g}: on "
                "hardware that computes in fp16 it is infinite; scale what goes in, or leave this model in fp32"
            )


def _session(light: onnx.ModelProto, model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session on `light`, a copy of `model`, that is handed the weights as they lie in memory, not through a file."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # fatal: what goes wrong is raised, and said once
    options.add_session_config_entry("session.disable_prepacking", "1")  # which pays from the second run on
    names, values = [], []
    for place, content in heavy_weights(model):
        tensor = light.graph.initializer[place]
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        tensor.raw_data = b"" if dtype.isbuiltin else content  # numpy has no bfloat16 of its own
        if dtype.isbuiltin:
            onnx.external_data_helper.set_external_data(tensor, "in memory")
            tensor.ClearField("raw_data")
            names.append(tensor.name)
            array = np.frombuffer(content, dtype).reshape(tuple(tensor.dims))
            values.append(onnxruntime.OrtValue.ortvalue_from_numpy(array))
    options.add_external_initializers(names, values)
    return onnxruntime.InferenceSession(light.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _made_in_half(source: onnx.ModelProto, converted: onnx.ModelProto) -> list[str]:
    """The values by their names in `source`, in its order, that nodes of `converted` give in float16."""
    import onnx

    half = {
        value.name
        for value in converted.graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    made = {name for node in converted.graph.node for name in node.output if name in half}
    # The converter calls what was an output before its last cast by number.
    outputs = {value.name: f"graph_output_cast_{number}" for number, value in enumerate(source.graph.output)}
    return [name for node in source.graph.node for name in node.output if name in made or outputs.get(name) in made]
