"""`fp16`: weights and values in 16 bits by onnxruntime's converter, save where a constant does not fit into them."""

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
from pytest_modelserve.artifacts import copy_without_weights, large_weights, restore_weights
from pytest_modelserve.compression.recipe import Inputs, Recipe, RecipeContext, RecipeResult
from pytest_modelserve.errors import RecipeError

if TYPE_CHECKING:
    import onnx
    import onnxruntime


# Constants that float16 cannot hold, and the nodes that have to stay in float32 because of them.


# IEEE 754 binary16: the largest finite number, and the smallest positive one (2**-24), which onnxruntime's converter
# writes as 5.96e-08.
LARGEST, SMALLEST = 65504.0, 5.96e-08
# float16 rounds a number by up to 2**-11 of itself.
_ROUNDING = 2.0**-11
# Operators that add up products with their weights: what a sum loses by a tiny weight is nothing beside what the
# rounding of its large ones costs.
_SUMMING = ("Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN")
# Operators whose output is as large or as small as the constant: whoever reads it has to read it in float32, too.
_CARRYING = (
    "Add", "Cast", "Concat", "ConstantOfShape", "Expand", "Gather", "Identity", "Max", "Min", "Mul", "Reshape",
    "Slice", "Squeeze", "Sub", "Tile", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class UnrepresentableConstant:
    """A constant, why float16 cannot hold it, and whether it has to be kept for that reason."""

    name: str
    reason: str
    is_kept: bool


def unrepresentable_constants(model: onnx.ModelProto) -> tuple[UnrepresentableConstant, ...]:
    """The float32 initializers of the main graph, and the values of ConstantOfShape there, that float16 would change.

    Beyond rounding, that is: finite numbers past 65504, which would become 65504, and numbers other than 0 below 6e-8,
    which would become 6e-8. Infinities and NaN stay what they are.
    """
    summed = _only_summed(model.graph)
    found = (_clamped(name, array, is_summed=name in summed) for name, array in _constants(model.graph))
    return tuple(clamped for clamped in found if clamped)


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


def _clamped(name: str, array: NDArray[Any], *, is_summed: bool) -> UnrepresentableConstant | None:
    sizes = np.abs(array[np.isfinite(array)])
    largest = float(sizes.max(initial=0.0))
    if largest > LARGEST:
        return UnrepresentableConstant(name, f"{name!r} holds {largest:g}, beyond the largest fp16, {LARGEST:g}", True)
    tiny = sizes[(sizes > 0) & (sizes < SMALLEST)]
    if not tiny.size:
        return None
    if is_summed and largest * _ROUNDING > SMALLEST:
        return UnrepresentableConstant(
            name, f"{tiny.size} of the {array.size} values of {name!r} became ±{SMALLEST:g}", False
        )
    return UnrepresentableConstant(
        name, f"{name!r} holds {float(tiny.min()):g}, below the smallest fp16, {SMALLEST:g}", True
    )


def _only_summed(graph: onnx.GraphProto) -> set[str]:
    """The values that summing operators alone read."""
    summed, elsewhere = set[str](), set[str]()
    for node in all_nodes(graph):
        (summed if node.op_type in _SUMMING else elsewhere).update(node.input)
    return summed - elsewhere


def fp32_nodes(model: onnx.ModelProto, constants: set[str]) -> list[onnx.NodeProto]:
    """The nodes of the main graph that read `constants`, make them, or read what carries their size on, in order."""
    beyond = set(constants)
    kept: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if beyond.intersection(node.input) or beyond.intersection(node.output):
            kept.append(node)
            if node.op_type in _CARRYING:
                beyond.update(node.output)
    return kept


# The graph around the casts that onnxruntime's float16 converter adds: constants before, order and detours after.


def constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Turn the Constant nodes of `graph` that hold float32 into initializers.

    The converter overlooks `value_float`, so that the result does not load, and casts a constant that is to stay in
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


def remove_cast_detours(graph: onnx.GraphProto) -> None:
    """Let nodes in float32 read each other directly, drop the casts that nobody reads then, and put nodes in order.

    Between two neighbors that stay in float32 the converter goes by way of float16, where 1e9 becomes infinite. And
    it appends its casts at the end of the graph, which ONNX does not allow.
    """
    import onnx

    half = _casts(graph, onnx.TensorProto.FLOAT16)
    detours = {given: half[taken] for given, taken in _casts(graph, onnx.TensorProto.FLOAT).items() if taken in half}
    for node in all_nodes(graph):
        for place, name in enumerate(node.input):
            node.input[place] = detours.get(name, name)
    for node in graph.node:
        if node.output[0] in detours and node.op_type == "Cast":
            _pass_on(node, detours[node.output[0]])
    _drop_unread_casts(graph)
    _put_in_order(graph)


def _casts(graph: onnx.GraphProto, kind: int) -> dict[str, str]:
    """What each Cast to `kind` gives, with what it takes."""
    return {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Cast" and any(item.name == "to" and item.i == kind for item in node.attribute)
    }


def _pass_on(cast: onnx.NodeProto, value: str) -> None:
    """Make a cast there and back an Identity: it may be what gives an output of the graph."""
    cast.op_type = "Identity"
    cast.input[0] = value
    del cast.attribute[:]


def _drop_unread_casts(graph: onnx.GraphProto) -> None:
    outputs = {value.name for value in graph.output}
    unread: list[onnx.NodeProto] | None = None
    while unread is None or unread:
        read = outputs.union(*(node.input for node in all_nodes(graph)))
        unread = [
            node for node in graph.node if node.op_type in ("Cast", "Identity") and not read.intersection(node.output)
        ]
        for node in unread:
            graph.node.remove(node)


def _put_in_order(graph: onnx.GraphProto) -> None:
    nodes = list(graph.node)
    makers = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    needed = {number: _needs(node, makers) - {number} for number, node in enumerate(nodes)}
    order = list(TopologicalSorter(needed).static_order())
    del graph.node[:]
    graph.node.extend(nodes[number] for number in order)


def _needs(node: onnx.NodeProto, makers: dict[str, int]) -> set[int]:
    """The numbers of the nodes that make what `node` reads, also inside its branches and bodies."""
    return {makers[name] for reader in (node, *subgraph_nodes(node)) for name in reader.input if name in makers}


# Values on the way through a model that float16 cannot hold, found by running the model that it was made from.


def check_overflow(source: onnx.ModelProto, converted: onnx.ModelProto, inputs: Inputs) -> None:
    """RecipeError naming the first value that is float16 in `converted` and passes 65504 in `source`, on `inputs`.

    The answers do not tell: onnxruntime's CPU provider computes most float16 nodes in float32 and leaves out the casts
    between them, so that a value which is infinite on a GPU is finite here.
    """
    import onnx

    names = _made_in_half(source, converted)
    shown = copy_without_weights(source)
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
    for place, content in large_weights(model):
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


def _apply(model: onnx.ModelProto, context: RecipeContext) -> RecipeResult:
    half = [name for name, dtype in weight_dtypes(model).items() if dtype == "float16"]
    if half:
        raise RecipeError(f"the model is in fp16 already ({len(half)} initializers, {half[0]!r} the first)")
    constants_to_initializers(model.graph)
    clamped = unrepresentable_constants(model)
    kept = [constant for constant in clamped if constant.is_kept]
    _refuse_inner_readers(model, kept)
    nodes = fp32_nodes(model, {constant.name for constant in kept})
    turned = [node for node in _transposed_inputs(model.graph) if node not in nodes]
    names = name_nodes([*nodes, *turned])
    excluded = [node for node in model.graph.node if node.name in context.exclude]
    notes = (*_notes(clamped, nodes), *_turned_note(turned), *_excluded_note(excluded), *_without_half(model))
    converted = _converted(model, [*names, *context.exclude])
    remove_cast_detours(converted.graph)
    _check(converted, kept, excluded)
    check_overflow(model, converted, context.inputs)
    return RecipeResult(converted, notes)


def _transposed_inputs(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    inputs = {value.name for value in graph.input}
    return [node for node in graph.node if node.op_type == "Transpose" and inputs.intersection(node.input)]


def _turned_note(turned: Sequence[onnx.NodeProto]) -> Iterator[str]:
    """In fp16 onnxruntime 1.32 ends the process over them; they move numbers and lose nothing by going first."""
    if turned:
        told = ", ".join(f"{node.op_type} {node.name!r}" for node in turned)
        yield f"left in fp32: {told}, because onnxruntime can crash on inputs that are transposed in fp16"


def _excluded_note(excluded: Sequence[onnx.NodeProto]) -> Iterator[str]:
    if excluded:
        told = ", ".join(f"{node.op_type} {node.name!r}" for node in excluded)
        yield f"left in fp32: {told}, because exclude= names {'it' if len(excluded) == 1 else 'them'}"


def _refuse_inner_readers(model: onnx.ModelProto, kept: Sequence[UnrepresentableConstant]) -> None:
    """The converter puts every cast into the main graph, where no branch or body can do with it."""
    inner = [node for outer in model.graph.node for node in subgraph_nodes(outer)]
    for constant in kept:
        for node in inner:
            if constant.name in node.input:
                raise RecipeError(
                    f"{constant.reason}, and {node.op_type} {node.name!r} reads it inside a branch or loop, where no "
                    "node can be kept in fp32: scale the constant, or leave this model in fp32"
                )


def _converted(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """What the converter makes of `model`, its types inferred without the weights: with them that is half the time."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        inferred = onnx.shape_inference.infer_shapes(copy_without_weights(model))
        restore_weights(inferred, model)
        converted: onnx.ModelProto = convert_float_to_float16(
            inferred, keep_io_types=True, node_block_list=names, disable_shape_infer=True
        )
    except Exception as error:  # assertions, and whatever onnx's shape inference raises
        raise RecipeError(f"onnxruntime's float16 converter failed: {error}") from error
    return converted


def _check(
    converted: onnx.ModelProto, kept: Sequence[UnrepresentableConstant], excluded: Sequence[onnx.NodeProto]
) -> None:
    dtypes = weight_dtypes(converted)
    for constant in kept:
        if dtypes.get(constant.name) == "float16":
            raise RecipeError(f"{constant.reason}, and the node that reads it cannot be kept in fp32")
    for node in excluded:
        for name in node.input:
            if dtypes.get(name) == "float16":
                raise RecipeError(
                    f"{node.op_type} {node.name!r} shares {name!r} with a node in fp16, so its weights are rounded all "
                    "the same: name every node that reads them in exclude="
                )
    if "float16" not in dtypes.values() and excluded:
        told = ", ".join(repr(node.name) for node in excluded)
        raise RecipeError(f"there is nothing left to convert: exclude= keeps {told} in fp32")
    if "float16" not in dtypes.values():
        raise RecipeError(f"no float32 initializer became fp16 among {format_node_counts(converted)}")


def _notes(clamped: Sequence[UnrepresentableConstant], nodes: Sequence[onnx.NodeProto]) -> Iterator[str]:
    kept = [constant.reason for constant in clamped if constant.is_kept]
    if kept:
        told = ", ".join(f"{node.op_type} {node.name!r}" for node in nodes)
        yield f"left in fp32: {told}, because {'; '.join(kept)}"
    for constant in clamped:
        if not constant.is_kept:
            yield f"{constant.reason}, the smallest fp16: too small to matter beside the others"


def _without_half(model: onnx.ModelProto) -> Iterator[str]:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

    found = [f"{op} ×{n}" for op, n in node_counts(model).items() if op in DEFAULT_OP_BLOCK_LIST]
    if found:
        yield f"left in fp32, as onnxruntime's converter always does: {', '.join(found)}"


def _excludable(model: onnx.ModelProto) -> Sequence[onnx.NodeProto]:
    return list(model.graph.node)


FP16 = Recipe("fp16", _apply, packages=("onnxruntime", "onnx"), is_exact=False, excludable=_excludable, may_crash=True)
