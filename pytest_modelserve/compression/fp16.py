"""`fp16`: weights and values in 16 bits by onnxruntime's converter, save where a constant does not fit into them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts import fill, light_copy
from pytest_modelserve.compression.census import float_dtypes, node_counts, nodes_inside, told_counts
from pytest_modelserve.compression.clamping import Clamped, clamped_constants, kept_nodes
from pytest_modelserve.compression.fp16_casts import constants_to_initializers, straighten
from pytest_modelserve.compression.naming import name_nodes
from pytest_modelserve.compression.overflow import refuse_overflow
from pytest_modelserve.compression.recipe import Applied, Material, Recipe
from pytest_modelserve.errors import RecipeError

if TYPE_CHECKING:
    import onnx


def _apply(model: onnx.ModelProto, material: Material) -> Applied:
    half = [name for name, dtype in float_dtypes(model).items() if dtype == "float16"]
    if half:
        raise RecipeError(f"the model is in fp16 already ({len(half)} initializers, {half[0]!r} the first)")
    constants_to_initializers(model.graph)
    clamped = clamped_constants(model)
    kept = [constant for constant in clamped if constant.is_kept]
    _refuse_inner_readers(model, kept)
    nodes = kept_nodes(model, {constant.name for constant in kept})
    turned = [node for node in _transposed_inputs(model.graph) if node not in nodes]
    names = name_nodes([*nodes, *turned])
    excluded = [node for node in model.graph.node if node.name in material.exclude]
    notes = (*_notes(clamped, nodes), *_turned_note(turned), *_excluded_note(excluded), *_without_half(model))
    converted = _converted(model, [*names, *material.exclude])
    straighten(converted.graph)
    _check(converted, kept, excluded)
    refuse_overflow(model, converted, material.inputs)
    return Applied(converted, notes)


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


def _refuse_inner_readers(model: onnx.ModelProto, kept: Sequence[Clamped]) -> None:
    """The converter puts every cast into the main graph, where no branch or body can do with it."""
    inner = [node for outer in model.graph.node for node in nodes_inside(outer)]
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
        inferred = onnx.shape_inference.infer_shapes(light_copy(model))
        fill(inferred, model)
        converted: onnx.ModelProto = convert_float_to_float16(
            inferred, keep_io_types=True, node_block_list=names, disable_shape_infer=True
        )
    except Exception as error:  # assertions, and whatever onnx's shape inference raises
        raise RecipeError(f"onnxruntime's float16 converter failed: {error}") from error
    return converted


def _check(converted: onnx.ModelProto, kept: Sequence[Clamped], excluded: Sequence[onnx.NodeProto]) -> None:
    dtypes = float_dtypes(converted)
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
        raise RecipeError(f"no float32 initializer became fp16 among {told_counts(converted)}")


def _notes(clamped: Sequence[Clamped], nodes: Sequence[onnx.NodeProto]) -> Iterator[str]:
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
