"""The recipe `fp16`: weights and values in float16, except where a constant does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import (
    all_nodes,
    format_node_counts,
    name_nodes,
    node_counts,
    subgraph_nodes,
    weight_dtypes,
)
from pytest_modelserve._onnx.serialization import copy_without_weights, large_arrays, restore_weights
from pytest_modelserve.compression.recipe import Inputs, Recipe, RecipeContext, RecipeResult
from pytest_modelserve.errors import ArtifactError, InputError, RecipeError

if TYPE_CHECKING:
    import onnx

# IEEE 754 binary16: the largest finite number, and the smallest positive one (2**-24) as onnxruntime's converter
# writes it.
LARGEST, SMALLEST = 65504.0, 5.96e-08
# float16 rounds a number by up to 2**-11 of itself.
_ROUNDING = 2.0**-11
# Operators that sum products with their weights: the error of a tiny weight is far below that of the large ones.
_SUMMING = ("Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN")
# Operators whose output has the magnitude of the constant: the nodes that read it must stay in float32, too.
_CARRYING = (
    "Add", "Cast", "Concat", "ConstantOfShape", "Expand", "Gather", "Identity", "Max", "Min", "Mul", "Reshape",
    "Slice", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip


class Fp16(Recipe):
    """Conversion to float16 by onnxruntime; inputs and outputs keep their dtype."""

    name = "fp16"
    can_exclude = True
    may_crash = True

    def apply(self, model: onnx.ModelProto, context: RecipeContext) -> RecipeResult:
        """Return the converted model."""
        half = [name for name, dtype in weight_dtypes(model).items() if dtype == "float16"]
        if half:
            raise RecipeError(f"the model is in fp16 already ({len(half)} initializers, {half[0]!r} the first)")
        _constants_to_initializers(model.graph)
        constants = unrepresentable_constants(model)
        fp32_constants = [constant for constant in constants if constant.needs_fp32]
        _check_subgraph_readers(model, fp32_constants)
        fp32_nodes = _fp32_nodes(model, {constant.name for constant in fp32_constants})
        transposes = [node for node in _transposed_inputs(model.graph) if node not in fp32_nodes]
        names = name_nodes([*fp32_nodes, *transposes])
        excluded = [node for node in model.graph.node if node.name in context.exclude]
        notes = tuple(_notes(model, constants, fp32_nodes, transposes, excluded))
        converted = _convert(model, [*names, *context.exclude])
        _remove_cast_detours(converted.graph)
        _check_result(converted, fp32_constants, excluded)
        _check_overflow(model, converted, context.inputs)
        return RecipeResult(converted, notes)

    def excludable(self, model: onnx.ModelProto) -> Sequence[onnx.NodeProto]:
        """Return all nodes of the main graph."""
        return list(model.graph.node)


@dataclass(frozen=True, slots=True)
class UnrepresentableConstant:
    """A constant that float16 changes beyond rounding; `needs_fp32` says whether its readers stay in float32."""

    name: str
    reason: str
    needs_fp32: bool


def unrepresentable_constants(model: onnx.ModelProto) -> tuple[UnrepresentableConstant, ...]:
    """Return the float32 initializers and ConstantOfShape values of the main graph that float16 cannot represent.

    Finite numbers above 65504 would become 65504, and nonzero numbers below 6e-8 would become 6e-8. Infinities and NaN
    stay what they are.
    """
    summed = _only_summed(model.graph)
    found = (_unrepresentable(name, array, is_summed=name in summed) for name, array in _constants(model.graph))
    return tuple(constant for constant in found if constant)


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, NDArray[Any]]]:
    import onnx

    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            yield tensor.name, np.asarray(onnx.numpy_helper.to_array(tensor))
    for node in graph.node:
        if node.op_type == "ConstantOfShape":
            for attribute in node.attribute:
                if attribute.t.data_type == onnx.TensorProto.FLOAT:
                    yield node.output[0], np.asarray(onnx.numpy_helper.to_array(attribute.t))


def _unrepresentable(name: str, array: NDArray[Any], *, is_summed: bool) -> UnrepresentableConstant | None:
    magnitudes = np.abs(array[np.isfinite(array)])
    largest = float(magnitudes.max(initial=0.0))
    if largest > LARGEST:
        return UnrepresentableConstant(name, f"{name!r} holds {largest:g}, beyond the largest fp16, {LARGEST:g}", True)
    tiny = magnitudes[(magnitudes > 0) & (magnitudes < SMALLEST)]
    if not tiny.size:
        return None
    if is_summed and largest * _ROUNDING > SMALLEST:
        reason = f"{tiny.size} of the {array.size} values of {name!r} became ±{SMALLEST:g}"
        return UnrepresentableConstant(name, reason, False)
    reason = f"{name!r} holds {float(tiny.min()):g}, below the smallest fp16, {SMALLEST:g}"
    return UnrepresentableConstant(name, reason, True)


def _only_summed(graph: onnx.GraphProto) -> set[str]:
    """Return the values that only summing operators read."""
    summed, elsewhere = set[str](), set[str]()
    for node in all_nodes(graph):
        (summed if node.op_type in _SUMMING else elsewhere).update(node.input)
    return summed - elsewhere


def _fp32_nodes(model: onnx.ModelProto, constants: set[str]) -> list[onnx.NodeProto]:
    """Return the nodes of the main graph that write or read `constants`, or a value of the same magnitude, in order."""
    beyond = set(constants)
    found: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if beyond.intersection(node.input) or beyond.intersection(node.output):
            found.append(node)
            if node.op_type in _CARRYING:
                beyond.update(node.output)
    return found


def _transposed_inputs(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    inputs = {value.name for value in graph.input}
    return [node for node in graph.node if node.op_type == "Transpose" and inputs.intersection(node.input)]


def _check_subgraph_readers(model: onnx.ModelProto, constants: Sequence[UnrepresentableConstant]) -> None:
    """Raise RecipeError where a subgraph reads one of `constants`: the converter casts in the main graph only."""
    inner = [node for outer in model.graph.node for node in subgraph_nodes(outer)]
    for constant in constants:
        for node in inner:
            if constant.name in node.input:
                raise RecipeError(
                    f"{constant.reason}, and {node.op_type} {node.name!r} reads it inside a branch or loop, where no "
                    "node can stay in fp32: scale the constant, or leave this model in fp32"
                )


# Preparation and cleanup of what onnxruntime's float16 converter adds.


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Turn the Constant nodes of `graph` that hold float32 into initializers.

    The converter ignores `value_float`, so that the result does not load, and casts a constant that is to stay in
    float32 to float16 and back.
    """
    import onnx

    for node in [node for node in graph.node if node.op_type == "Constant"]:
        attribute = node.attribute[0]
        if attribute.name in ("value_float", "value_floats"):
            value = np.array(onnx.helper.get_attribute_value(attribute), np.float32)
            tensor = onnx.numpy_helper.from_array(value, node.output[0])
        elif attribute.name == "value" and attribute.t.data_type == onnx.TensorProto.FLOAT:
            tensor = attribute.t
            tensor.name = node.output[0]
        else:
            continue
        graph.initializer.append(tensor)
        graph.node.remove(node)


def _convert(model: onnx.ModelProto, fp32_names: list[str]) -> onnx.ModelProto:
    """Return the output of the converter; types are inferred without the weights, which takes half the time."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        inferred = onnx.shape_inference.infer_shapes(copy_without_weights(model))
        restore_weights(inferred, model)
        converted: onnx.ModelProto = convert_float_to_float16(
            inferred, keep_io_types=True, node_block_list=fp32_names, disable_shape_infer=True
        )
    except Exception as error:  # assertions, and whatever onnx's shape inference raises
        raise RecipeError(f"onnxruntime's float16 converter failed: {error}") from error
    return converted


def _remove_cast_detours(graph: onnx.GraphProto) -> None:
    """Connect float32 nodes directly, remove unread casts and sort the nodes.

    The converter routes values between neighboring float32 nodes through float16, where 1e9 becomes infinite. It also
    appends its casts to the end of the graph, which ONNX does not allow.
    """
    import onnx

    half = _casts(graph, onnx.TensorProto.FLOAT16)
    detours = {output: half[input] for output, input in _casts(graph, onnx.TensorProto.FLOAT).items() if input in half}
    for node in all_nodes(graph):
        for place, name in enumerate(node.input):
            node.input[place] = detours.get(name, name)
    for node in graph.node:
        if node.output[0] in detours and node.op_type == "Cast":
            # The cast may write an output of the graph.
            node.op_type = "Identity"
            node.input[0] = detours[node.output[0]]
            del node.attribute[:]
    _remove_unread_casts(graph)
    _sort_nodes(graph)


def _casts(graph: onnx.GraphProto, elem_type: int) -> dict[str, str]:
    """Return the input of each Cast to `elem_type` by its output."""
    return {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Cast" and any(item.name == "to" and item.i == elem_type for item in node.attribute)
    }


def _remove_unread_casts(graph: onnx.GraphProto) -> None:
    outputs = {value.name for value in graph.output}
    unread: list[onnx.NodeProto] | None = None
    while unread is None or unread:
        read = outputs.union(*(node.input for node in all_nodes(graph)))
        unread = [
            node for node in graph.node if node.op_type in ("Cast", "Identity") and not read.intersection(node.output)
        ]
        for node in unread:
            graph.node.remove(node)


def _sort_nodes(graph: onnx.GraphProto) -> None:
    nodes = list(graph.node)
    writers = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    needed = {
        number: {writers[name] for reader in (node, *subgraph_nodes(node)) for name in reader.input if name in writers}
        - {number}
        for number, node in enumerate(nodes)
    }
    order = list(TopologicalSorter(needed).static_order())
    del graph.node[:]
    graph.node.extend(nodes[number] for number in order)


# Checks and notes on the result.


def _check_result(
    converted: onnx.ModelProto, constants: Sequence[UnrepresentableConstant], excluded: Sequence[onnx.NodeProto]
) -> None:
    dtypes = weight_dtypes(converted)
    for constant in constants:
        if dtypes.get(constant.name) == "float16":
            raise RecipeError(f"{constant.reason}, and the node that reads it cannot stay in fp32")
    for node in excluded:
        for name in node.input:
            if dtypes.get(name) == "float16":
                raise RecipeError(
                    f"{node.op_type} {node.name!r} shares {name!r} with a node in fp16, so its weights are rounded "
                    "anyway: name every node that reads them in exclude="
                )
    if "float16" not in dtypes.values() and excluded:
        names = ", ".join(repr(node.name) for node in excluded)
        raise RecipeError(f"there is nothing left to convert: exclude= leaves {names} in fp32")
    if "float16" not in dtypes.values():
        raise RecipeError(f"no float32 initializer became fp16 among {format_node_counts(converted)}")


def _check_overflow(source: onnx.ModelProto, converted: onnx.ModelProto, inputs: Inputs) -> None:
    """Raise RecipeError for the first value that is float16 in `converted` and exceeds 65504 in `source` on `inputs`.

    Outputs do not show it: onnxruntime's CPU provider computes most float16 nodes in float32 without the casts between
    them, so that a value that is infinite on a GPU is finite here.
    """
    import onnx

    from pytest_modelserve._onnx.sessions import open_graph_session, run_session

    names = _half_values(source, converted)
    shown = copy_without_weights(source)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    try:
        values = run_session(open_graph_session(shown, large_arrays(shown, source)), inputs, names)
    except (ArtifactError, InputError) as error:
        raise RecipeError(f"onnxruntime does not show the values inside the model: {error}") from error
    for name, value in values.items():
        largest = float(np.abs(value[np.isfinite(value)]).max(initial=0.0))
        if largest > LARGEST:
            raise RecipeError(
                f"value {name!r} reaches {largest:g} on random inputs, beyond the largest fp16, {LARGEST:g}: hardware "
                "that computes in fp16 gets infinity; scale the inputs, or leave this model in fp32"
            )


def _half_values(source: onnx.ModelProto, converted: onnx.ModelProto) -> list[str]:
    """Return the values of `source`, in its order, that nodes of `converted` write in float16."""
    import onnx

    half = {
        value.name
        for value in converted.graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    written = {name for node in converted.graph.node for name in node.output if name in half}
    # The converter numbers what was an output before its last cast.
    outputs = {value.name: f"graph_output_cast_{number}" for number, value in enumerate(source.graph.output)}
    return [
        name for node in source.graph.node for name in node.output if name in written or outputs.get(name) in written
    ]


def _notes(
    model: onnx.ModelProto,
    constants: Sequence[UnrepresentableConstant],
    fp32_nodes: Sequence[onnx.NodeProto],
    transposes: Sequence[onnx.NodeProto],
    excluded: Sequence[onnx.NodeProto],
) -> Iterator[str]:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    reasons = [constant.reason for constant in constants if constant.needs_fp32]
    if reasons:
        yield f"left in fp32: {_format_nodes(fp32_nodes)}, because {'; '.join(reasons)}"
    for constant in constants:
        if not constant.needs_fp32:
            yield f"{constant.reason}, the smallest fp16: negligible against the other weights"
    if transposes:
        # onnxruntime 1.32 can crash on them in fp16; they only move values.
        yield (
            f"left in fp32: {_format_nodes(transposes)}, because onnxruntime can crash on inputs that are transposed "
            "in fp16"
        )
    if excluded:
        pronoun = "it" if len(excluded) == 1 else "them"
        yield f"left in fp32: {_format_nodes(excluded)}, because exclude= names {pronoun}"
    blocked = [f"{op} ×{n}" for op, n in node_counts(model).items() if op in DEFAULT_OP_BLOCK_LIST]
    if blocked:
        yield f"left in fp32, as onnxruntime's converter always does: {', '.join(blocked)}"


def _format_nodes(nodes: Sequence[onnx.NodeProto]) -> str:
    return ", ".join(f"{node.op_type} {node.name!r}" for node in nodes)
