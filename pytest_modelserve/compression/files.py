"""Whole models between memory and files: read with all their weights, and written for a tool to read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts import Artifact, heavy_weights, light_copy, load_model, tensor_bytes, wire_form

if TYPE_CHECKING:
    import onnx

# Larger weights go to a file of their own: tools that infer shapes read and write the whole model file for it, which
# takes longer than to quantise. (A protobuf message ends at 2 GiB in any case.)
_INLINE_LIMIT_BYTES = 32 << 20


def loaded(artifact: Artifact) -> onnx.ModelProto:
    """The model with all its weights."""
    import onnx

    model = load_model(artifact)
    onnx.load_external_data_for_model(model, str(artifact.path.parent))
    return model


def is_large(model: onnx.ModelProto) -> bool:
    """Whether the weights of `model` go to a file of their own."""
    inline = (tensor for tensor in model.graph.initializer if tensor.HasField("raw_data"))
    return sum(map(tensor_bytes, inline)) > _INLINE_LIMIT_BYTES


def write_large(model: onnx.ModelProto, path: Path) -> bool:
    """Write `model` to `path`; whether its weights went to a file of their own."""
    with_data = is_large(model)
    light = light_copy(model)
    if with_data:
        _write_beside(light, model, path.with_name(f"{path.name}.data"))
    with open(path, "wb") as file:
        file.writelines(wire_form(light, None if with_data else model))
    return with_data


def _write_beside(light: onnx.ModelProto, model: onnx.ModelProto, path: Path) -> None:
    """Write the heavy weights of `model` to `path` and references to them into its `light` copy."""
    import onnx

    with open(path, "wb") as file:
        for place, content in heavy_weights(model):
            tensor = light.graph.initializer[place]
            tensor.raw_data = b""  # onnx refers to nothing but raw data
            onnx.external_data_helper.set_external_data(tensor, path.name, file.tell(), len(content))
            tensor.ClearField("raw_data")
            file.write(content)
