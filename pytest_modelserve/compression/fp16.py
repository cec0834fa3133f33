"""The recipe `fp16`: weights and values in float16, except where a constant does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import (
    all_nodes,
    format_node_counts,
    name_nodes,
    node_counts,
    sort_nodes,
    subgraph_nodes,
    weight_dtypes,
)
from pytest_modelserve._onnx.serialization import copy_without_weights, restore_weights
from pytest_modelserve.compression.fp16_overflow import LARGEST, cast_inputs, describe_overflow
from pytest_modelserve.compression.recipe import Recipe, RecipeContext, RecipeResult
from pytest_modelserve.errors import RecipeError

if TYPE_CHECKING:
    import onnx

# The smallest positive number of IEEE 754 binary16 (2**-24), as onnxruntime's converter writes it.
SMALLEST = 5.96e-08
# float16 rounds a number by up to 2**-11 of itself.
_ROUNDING = 2.0**-11
# Operators and places of inputs whose output follows the relative size of each value: x / 1e-9 is not x / 6e-8.
# Elsewhere a tiny value beside large ones is added, looked up or multiplied, and its error is below their rounding.
_RELATIVE = {("BatchNormalization", 4), ("Div", 1), ("Log", 0), ("Mod", 1), ("Pow", 0), ("Reciprocal", 0), ("Sqrt", 0)}
# Operators whose output holds values of their first input as they are.
_MOVING = ("Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze")
_ADDING = ("Add", "Sub")
# Operators whose output has the magnitude of the constant: the nodes that read it must stay in float32, too.
_CARRYING = (
    "Add", "Cast", "Concat", "ConstantOfShape", "Expand", "Gather", "Identity", "Max", "Min", "Mul", "Reshape",
    "Slice", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip


class Fp16(Recipe):
    """Conversion to float16 by onnxruntime; inputs and outputs keep their dtype."""

    name = "fp16"
    calibrates = True
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
        _check_result(converted, model, fp32_constants, excluded)
        _check_overflow(model, converted, context)
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

    Finite numbers above 65504 would become 65504, and nonzero numbers below 6e-8 would become 6e-8. The latter matters
    where no other value of the constant is so large that its rounding hides the difference, and where a node divides by
    the constant or takes its root. Infinities and NaN stay what they are.
    """
    readers = _Readers(model.graph)
    found = (_unrepresentable(name, array, readers) for name, array in _constants(model.graph))
    return tuple(constant for constant in found if constant)


class _Readers:
    """The nodes of a graph and its subgraphs that read a value as it is stored, or moved."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in all_nodes(graph):
            for place, name in enumerate(node.input):
                self._readers.setdefault(name, []).append((node, place))
        self._inner = {id(node) for outer in graph.node for node in subgraph_nodes(outer)}
        self._graph = graph  # keeps the nodes, and so their ids

    def of(self, name: str) -> Iterator[tuple[onnx.NodeProto, int]]:
        """Yield each reader with the place of the value among its inputs."""
        for node, place in self._readers.get(name, ()):
            if node.op_type in _MOVING and place == 0:
                yield from self.of(node.output[0])
            else:
                yield node, place

    def is_relative(self, name: str) -> bool:
        """Return True if the relative size of each single value decides an output."""
        return any((node.op_type, place) in _RELATIVE for node, place in self.of(name))

    def is_added_in_subgraphs(self, name: str) -> bool:
        """Return True if nodes of subgraphs alone read the value, and add it to others."""
        return all(id(node) in self._inner and node.op_type in _ADDING for node, _ in self.of(name))


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


def _unrepresentable(name: str, array: NDArray[Any], readers: _Readers) -> UnrepresentableConstant | None:
    magnitudes = np.abs(array[np.isfinite(array)])
    largest = float(magnitudes.max(initial=0.0))
    if largest > LARGEST:
        return UnrepresentableConstant(name, f"{name!r} holds {largest:g}, beyond the largest fp16, {LARGEST:g}", True)
    tiny = magnitudes[(magnitudes > 0) & (magnitudes < SMALLEST)]
    if not tiny.size:
        return None
    changed = f"{tiny.size} of the {array.size} values of {name!r} became ±{SMALLEST:g}, the smallest fp16"
    if largest * _ROUNDING > SMALLEST and not readers.is_relative(name):
        return UnrepresentableConstant(name, f"{changed}: negligible against the other values", False)
    if readers.is_added_in_subgraphs(name):  # where no node can stay in fp32
        return UnrepresentableConstant(name, f"{changed}: a branch or loop adds it to values in fp16", False)
    reason = f"{name!r} holds {float(tiny.min()):g}, below the smallest fp16, {SMALLEST:g}"
    return UnrepresentableConstant(name, reason, True)


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

    half = cast_inputs(graph, onnx.TensorProto.FLOAT16)
    single = cast_inputs(graph, onnx.TensorProto.FLOAT)
    detours = {output: half[name] for output, name in single.items() if name in half}
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
    sort_nodes(graph)


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


# Checks and notes on the result.


def _check_result(
    converted: onnx.ModelProto,
    source: onnx.ModelProto,
    constants: Sequence[UnrepresentableConstant],
    excluded: Sequence[onnx.NodeProto],
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
        reasons = "".join(f"; {constant.reason}" for constant in constants)
        if "float64" in dtypes.values():
            reasons += "; its weights are float64: export the model in float32"
        raise RecipeError(f"no float32 initializer became fp16 among {format_node_counts(source)}{reasons}")


def _check_overflow(source: onnx.ModelProto, converted: onnx.ModelProto, context: RecipeContext) -> None:
    """Raise RecipeError if values overflow on the calibration data, or on random inputs without."""
    if next(context.batches(), None) is not None:
        found = describe_overflow(source, converted, context.batches(), "the calibration data", context.exclude)
    else:
        found = describe_overflow(source, converted, [context.inputs], "random inputs", context.exclude)
    if found:
        raise RecipeError(found)


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
            yield constant.reason
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
    outer = [node for node in model.graph.node if any(subgraph_nodes(node))]
    if outer:
        yield f"not searched for overflow: values inside branches and loops ({_format_nodes(outer)})"


def _format_nodes(nodes: Sequence[onnx.NodeProto]) -> str:
    return ", ".join(f"{node.op_type} {node.name!r}" for node in nodes)
