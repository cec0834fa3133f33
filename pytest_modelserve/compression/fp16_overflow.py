"""Values inside a model that overflow in fp16, found by running the float32 model.

Outputs do not show them: onnxruntime's CPU provider computes most float16 nodes in float32 without the casts between
them, so that a value that is infinite on a GPU is finite there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import name_nodes
from pytest_modelserve._onnx.serialization import copy_without_weights, large_arrays
from pytest_modelserve.compression.recipe import Inputs
from pytest_modelserve.errors import ArtifactError, InputError, RecipeError

if TYPE_CHECKING:
    import onnx

# The largest finite number of IEEE 754 binary16.
LARGEST = 65504.0


def describe_overflow(
    source: onnx.ModelProto,
    converted: onnx.ModelProto,
    batches: Iterable[Inputs],
    rows: str,
    excluded: Sequence[str] = (),
) -> str:
    """Describe the values that are float16 in `converted` and exceed 65504 in `source`, or return "".

    Args:
        source: The model in float32.
        converted: The result of the recipe "fp16" on it.
        batches: Inputs to run.
        rows: What the inputs are, for the text.
        excluded: Nodes that are in float32 already.
    """
    largest: dict[str, float] = {}
    for values in _values(source, _half_values(source, converted), batches):
        for name, value in values.items():
            size = float(np.abs(value[np.isfinite(value)]).max(initial=0.0))
            largest[name] = max(largest.get(name, 0.0), size)
    beyond = [name for name, size in largest.items() if size > LARGEST]
    if not beyond:
        return ""
    writer = next((node for node in source.graph.node if beyond[0] in node.output), None)
    nodes = [node for node in source.graph.node if not set(beyond).isdisjoint((*node.input, *node.output))]
    names = tuple(dict.fromkeys((*excluded, *name_nodes(nodes))))
    first = f"input {beyond[0]!r}" if writer is None else f"value {beyond[0]!r} of {writer.op_type} {writer.name!r}"
    others = f" ({len(beyond) - 1} more values do)" if len(beyond) > 1 else ""
    return (
        f"{first} reaches {largest[beyond[0]]:g} on {rows}, beyond the largest fp16, {LARGEST:g}{others}: hardware "
        f"that computes in fp16 gets infinity; exclude={names!r} leaves the nodes that write or read such values in "
        "fp32, or scale the inputs"
    )


def cast_inputs(graph: onnx.GraphProto, elem_type: int) -> dict[str, str]:
    """Return the input of each Cast to `elem_type` by its output."""
    return {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Cast" and any(item.name == "to" and item.i == elem_type for item in node.attribute)
    }


def _values(
    source: onnx.ModelProto, names: Sequence[str], batches: Iterable[Inputs]
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the values of `names`, inputs among them, for each of `batches`."""
    import onnx

    from pytest_modelserve._onnx.sessions import open_graph_session, run_session

    inputs = {value.name for value in source.graph.input}
    inner = [name for name in names if name not in inputs]
    shown = copy_without_weights(source)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inner)
    try:
        session = open_graph_session(shown, large_arrays(shown, source)) if inner else None
        for batch in batches:
            found = run_session(session, batch, inner) if session is not None else {}
            yield {name: np.asarray(found[name] if name in found else batch[name]) for name in names}
    except (ArtifactError, InputError) as error:
        raise RecipeError(f"onnxruntime does not show the values inside the model: {error}") from error


def _half_values(source: onnx.ModelProto, converted: onnx.ModelProto) -> list[str]:
    """Return the float32 inputs and values of `source` that `converted` writes in float16 or casts to it, in order."""
    import onnx

    declared = (*converted.graph.value_info, *converted.graph.input)
    types = {value.name: value.type.tensor_type.elem_type for value in declared}
    written = {
        name for node in converted.graph.node for name in node.output if types.get(name) == onnx.TensorProto.FLOAT16
    }
    # A cast of integers or truth values to float16 was one to float32 in the source.
    casts = cast_inputs(converted.graph, onnx.TensorProto.FLOAT16).values()
    written.update(name for name in casts if types.get(name) == onnx.TensorProto.FLOAT)
    # The converter numbers what was an output before its last cast.
    outputs = {value.name: f"graph_output_cast_{number}" for number, value in enumerate(source.graph.output)}
    names = [value.name for value in source.graph.input]
    names += [name for node in source.graph.node for name in node.output]
    return [name for name in names if name in written or outputs.get(name) in written]
