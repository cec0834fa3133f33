"""Constant folding that does not enlarge models: constants that are larger when folded are not folded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_modelserve._onnx.graph import (
    STANDARD_DOMAINS,
    all_nodes,
    sort_nodes,
    stored_bytes,
    subgraphs,
    tensor_bytes,
)
from pytest_modelserve._onnx.serialization import copy_without_weights

if TYPE_CHECKING:
    import onnx

# Growth that is neither avoided nor reported: masks and indices of a few bytes, or 2 % of the model.
_NEGLIGIBLE_BYTES, _NEGLIGIBLE = 256, 0.02
_LISTED = 3
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")

Rewrite = Callable[["onnx.ModelProto"], "onnx.ModelProto"]


def rewrite_without_growth(model: onnx.ModelProto, rewrite: Rewrite) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Return the result of `rewrite` with notes on its size; `model` stays as it is.

    If the result stores more than `model`, `rewrite` runs again without the constants that grow when folded: a mask
    that is expanded from one number, or the transpose of an embedding table that is read elsewhere as it is. Such
    constants are computed by the same nodes as before; onnxruntime folds them in memory at each start.
    """
    before = stored_bytes(model)
    rewritten = rewrite(model)
    if not _grows(before, stored_bytes(rewritten)):
        return rewritten, ()
    notes: tuple[str, ...] = ()
    growing = _growing_constants(model, before)
    if growing:
        rewritten = _restore(rewrite(_without(model, growing)), model, growing)
        notes = (_unfolded_note(growing),)
    after = stored_bytes(rewritten)
    if _grows(before, after):
        notes = (*notes, f"stored tensors grew from {before:,} to {after:,} bytes")
    return rewritten, notes


@dataclass(frozen=True, slots=True, eq=False)
class _Constant:
    """A value that `nodes`, in order, compute from constants; `freed` bytes are stored for it alone."""

    value: onnx.ValueInfoProto
    nodes: tuple[onnx.NodeProto, ...]
    size: int
    freed: int


def _grows(before: int, after: int) -> bool:
    return after - before > max(_NEGLIGIBLE_BYTES, _NEGLIGIBLE * before)


def _unfolded_note(growing: list[_Constant]) -> str:
    listed = ", ".join(
        f"{each.value.name!r} ({each.freed:,} bytes stored for it, {each.size:,} folded)" for each in growing[:_LISTED]
    )
    more = f" and {len(growing) - _LISTED} more" if len(growing) > _LISTED else ""
    return f"left unfolded, because the file would grow: {listed}{more}"


def _growing_constants(model: onnx.ModelProto, total: int) -> list[_Constant]:
    """Return the constants of the main graph, read by other nodes, that are larger when folded."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(copy_without_weights(model), data_prop=True)
    except Exception:  # onnx raises RuntimeError and more; without shapes nothing is known to grow
        return []
    types = {value.name: value for value in inferred.graph.value_info}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    writers = _constant_nodes(model.graph)
    inner = {id(node) for node in writers.values()}
    read_outside = {name for node in all_nodes(model.graph) if id(node) not in inner for name in node.input}
    outputs = {value.name for value in model.graph.output}
    found = []
    for name, writer in writers.items():
        value = types.get(name)
        if name not in read_outside or name in outputs or value is None or len(writer.output) > 1:
            continue
        size = _size(value)
        if size is None or not _grows(total, total + size):
            continue
        nodes = _ancestors(writer, writers)
        freed = sum(tensor_bytes(stored[each]) for each in _exclusive(nodes, model.graph) if each in stored)
        if _grows(total, total + size - freed):
            found.append(_Constant(value, nodes, size, freed))
    return sorted(found, key=lambda each: each.freed - each.size)


def _constant_nodes(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Return the node of each value that depends on stored tensors only."""
    known = {tensor.name for tensor in graph.initializer} - {value.name for value in graph.input}
    writers: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        is_pure = node.domain in STANDARD_DOMAINS and node.op_type not in _RANDOM and not any(subgraphs(node))
        if is_pure and known.issuperset(filter(None, node.input)):
            known.update(node.output)
            writers.update(dict.fromkeys(node.output, node))
    return writers


def _ancestors(node: onnx.NodeProto, writers: dict[str, onnx.NodeProto]) -> tuple[onnx.NodeProto, ...]:
    """Return `node` and the nodes before it in the order of `writers`, which is that of the graph."""
    needed, found = set(node.input), [node]
    for name, writer in reversed(writers.items()):
        if name in needed and writer is not found[-1]:
            found.append(writer)
            needed.update(writer.input)
    return tuple(reversed(found))


def _exclusive(nodes: tuple[onnx.NodeProto, ...], graph: onnx.GraphProto) -> set[str]:
    """Return the values that only `nodes` read."""
    inner = {id(node) for node in nodes}
    elsewhere = {name for node in all_nodes(graph) if id(node) not in inner for name in node.input}
    return {name for node in nodes for name in node.input} - elsewhere


def _size(value: onnx.ValueInfoProto) -> int | None:
    import onnx

    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in dims):
        return None
    return tensor_bytes(onnx.TensorProto(data_type=tensor.elem_type, dims=[dim.dim_value for dim in dims]))


def _without(model: onnx.ModelProto, constants: list[_Constant]) -> onnx.ModelProto:
    """Return a copy of `model` that reads `constants` as inputs of the graph."""
    copy = type(model)()
    copy.CopyFrom(model)
    names = {each.value.name for each in constants}
    for node in [node for node in copy.graph.node if names.intersection(node.output)]:
        copy.graph.node.remove(node)
    copy.graph.input.extend(each.value for each in constants)
    return copy


def _restore(rewritten: onnx.ModelProto, model: onnx.ModelProto, constants: list[_Constant]) -> onnx.ModelProto:
    """Let the nodes of `model` compute `constants` again."""
    graph = rewritten.graph
    names = {each.value.name for each in constants}
    for value in [value for value in graph.input if value.name in names]:
        graph.input.remove(value)
    present = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    read = {name for node in all_nodes(graph) for name in node.input}
    needed = {id(node): node for each in constants if each.value.name in read for node in each.nodes}
    added = [node for node in needed.values() if present.isdisjoint(node.output)]
    graph.node.extend(added)
    wanted = {name for node in added for name in node.input} - present
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in wanted)
    sort_nodes(graph)
    return rewritten
