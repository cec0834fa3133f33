"""Nodes, names and stored tensors of ONNX graphs, subgraphs included."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import chain, count
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ArtifactError

if TYPE_CHECKING:
    import onnx

# The domains of operators that onnx itself knows.
STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")

# numpy has no dtype for text of any length that onnxruntime would accept: it takes object arrays of str.
_TEXT = "str"
# Bits of an element where that is no whole number of bytes; ONNX packs them without gaps.
_PACKED_BITS = {
    "uint4": 4,
    "int4": 4,
    "float4_e2m1fn": 4,
    "uint2": 2,
    "int2": 2,
    "float6_e2m3fn": 6,
    "float6_e3m2fn": 6,
}
# Integers that a graph computes with, sizes and indices, are never left out: TensorProto.INT32 and INT64.
KEPT_TYPES = (6, 7)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the branches and bodies of `node`."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of `graph` and of its subgraphs."""
    for node in graph.node:
        yield node
        yield from subgraph_nodes(node)


def subgraph_nodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Yield every node in the subgraphs of `node`."""
    for graph in subgraphs(node):
        yield from all_nodes(graph)


def node_counts(model: onnx.ModelProto) -> dict[str, int]:
    """Count nodes by operator, the most frequent first; nodes of local functions count too."""
    names = [node.op_type for node in all_nodes(model.graph)]
    names += [node.op_type for function in model.functions for node in function.node]
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def format_node_counts(model: onnx.ModelProto) -> str:
    """Return the node counts of a model as one line of text."""
    return ", ".join(f"{op} ×{n}" for op, n in node_counts(model).items()) or "no nodes"


def graph_summary(model: onnx.ModelProto) -> tuple[dict[str, int], Counter[tuple[int, tuple[int, ...]]]]:
    """Return node counts, and counts of initializers by dtype and shape."""
    return node_counts(model), Counter((tensor.data_type, tuple(tensor.dims)) for tensor in model.graph.initializer)


def all_initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield every initializer of `graph` and of its subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for subgraph in subgraphs(node):
            yield from all_initializers(subgraph)


def weight_arrays(model: onnx.ModelProto, names: Container[str] | None = None) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield name and value of every initializer in float16, float32 or float64, or of those in `names`."""
    import onnx

    dtypes = _float_dtypes()
    for tensor in all_initializers(model.graph):
        if tensor.data_type in dtypes and (names is None or tensor.name in names):
            yield tensor.name, np.asarray(onnx.numpy_helper.to_array(tensor))


def weight_dtypes(model: onnx.ModelProto) -> dict[str, str]:
    """Return the dtype by name of every initializer that `weight_arrays` yields, without reading weights."""
    dtypes = _float_dtypes()
    stored = all_initializers(model.graph)
    return {tensor.name: dtypes[tensor.data_type] for tensor in stored if tensor.data_type in dtypes}


def _float_dtypes() -> dict[int, str]:
    import onnx

    return {
        onnx.TensorProto.FLOAT: "float32",
        onnx.TensorProto.DOUBLE: "float64",
        onnx.TensorProto.FLOAT16: "float16",
    }


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put the nodes of `graph` in an order in which each value is written before it is read."""
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


def copy_node_metadata(model: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Copy metadata to nodes without any from the nodes of the same name and operator in `source`.

    The exporter records there which line of the torch module a node comes from; onnxsim drops it.
    """
    known = {(node.name, node.op_type): node for node in source.graph.node if node.name}
    for node in model.graph.node:
        origin = known.get((node.name, node.op_type))
        if origin is not None and not node.metadata_props:
            node.metadata_props.extend(origin.metadata_props)


# Names of nodes and values.


def name_nodes(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """Return the names of `nodes`; nodes without one get one, because onnxruntime's tools know nodes by name."""
    names = []
    for node in nodes:
        if not node.name:
            node.name = f"{node.op_type}_{node.output[0]}"
        names.append(node.name)
    return names


def names_in(graph: onnx.GraphProto) -> set[str]:
    """Return every name of a value or node in `graph` and its subgraphs."""
    names = {value.name for value in chain(graph.input, graph.output, graph.value_info, graph.initializer)}
    names |= {sparse.values.name for sparse in graph.sparse_initializer}
    for node in graph.node:
        names.update((node.name, *node.input, *node.output))
        for subgraph in subgraphs(node):
            names |= names_in(subgraph)
    return names


def unused_prefix(graph: onnx.GraphProto, word: str) -> str:
    """Return `word/`, or `word_2/` and so on where names in the graph begin with that."""
    taken = {name.partition("/")[0] for name in names_in(graph)}
    words = chain([word], (f"{word}_{number}" for number in count(2)))
    return next(f"{each}/" for each in words if each not in taken)


def rename_value(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Rename the value `old` to `new`, in place, in the graph and its subgraphs.

    onnx.compose.add_prefix_graph walks into subgraphs before it has collected the names of the outer initializers, so
    that a subgraph that reads one keeps the old name (seen with onnx 1.23).
    """
    for value in chain(graph.input, graph.output, graph.value_info, graph.initializer):
        if value.name == old:
            value.name = new
    for sparse in graph.sparse_initializer:
        if sparse.values.name == old:
            sparse.values.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
        for subgraph in subgraphs(node):
            rename_value(subgraph, old, new)


# Stored tensors, inside the model or in external files.


@dataclass(frozen=True, slots=True)
class ExternalFile:
    """A file with tensors of a model: `location` as the model writes it, `path` where it is."""

    location: str
    path: Path


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every stored tensor: initializers and attributes, also in subgraphs, functions and training graphs."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _attribute_tensors(attribute for node in function.node for attribute in node.attribute)
        yield from _attribute_tensors(function.attribute_proto)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _attribute_tensors(attribute for node in graph.node for attribute in node.attribute)


def _attribute_tensors(attributes: Iterable[onnx.AttributeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for each in (*sparse, *attribute.sparse_tensors):
            yield from (each.values, each.indices)
        graphs = [attribute.g] if attribute.HasField("g") else []
        for graph in (*graphs, *attribute.graphs):
            yield from _graph_tensors(graph)


def stored_bytes(model: onnx.ModelProto) -> int:
    """Return the bytes of all tensors of the model, inside the file or in external files, attributes included."""
    return sum(map(tensor_bytes, tensors_of(model)))


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Return the bytes of the content of `tensor`, wherever it lies, from its dims: reading raw_data copies it."""
    dtype = dtype_name(tensor.data_type)
    if dtype == "str":
        return sum(map(len, tensor.string_data))
    size: int = math.prod(tensor.dims)
    return (size * element_bits(tensor.data_type) + 7) // 8


def is_external(tensor: onnx.TensorProto) -> bool:
    """Return True if the content of `tensor` lies in another file."""
    # 1 is TensorProto.EXTERNAL.
    return tensor.HasField("data_location") and tensor.data_location == 1


def has_omitted_data(tensor: onnx.TensorProto) -> bool:
    """Return True if the content of `tensor` was not read: it has elements by its dims, and no data."""
    data = (tensor.raw_data, tensor.float_data, tensor.double_data, tensor.int32_data, tensor.uint64_data)
    return (
        tensor.data_type not in (*KEPT_TYPES, 8)  # TensorProto.STRING
        and not any(map(len, data))
        and math.prod(tensor.dims) > 0
    )


def external_files(model: onnx.ModelProto, path: Path) -> tuple[ExternalFile, ...]:
    """Return the external files of the model at `path`, sorted by location.

    Raises:
        ArtifactError: A location outside the folder of `path`, also through a link; the model file itself; a missing
            file, or one that is too short.
    """
    files: dict[str, ExternalFile] = {}
    for tensor in tensors_of(model):
        if is_external(tensor):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            location = entries.get("location", "")
            if location not in files:
                files[location] = ExternalFile(location, _resolve(location, tensor.name, path))
            _check_length(tensor, entries, files[location])
    return tuple(files[location] for location in sorted(files))


def _resolve(location: str, tensor: str, model: Path) -> Path:
    # Both kinds of separator are parsed on every system: a model is made on one and opened on another.
    for parts in (PurePosixPath(location), PureWindowsPath(location)):
        if not location or parts.is_absolute() or parts.drive or parts.root or ".." in parts.parts:
            raise ArtifactError(
                f"tensor {tensor!r} is stored in {location!r}, which is not a file name inside the model's folder"
            )
    folder = model.parent
    path = folder / location
    if not path.is_file():
        raise ArtifactError(
            f"tensor {tensor!r} is stored in {location!r}, which does not exist: copy that file together with the model"
        )
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(
            f"tensor {tensor!r} is stored in {location!r}, a link to a file outside the model's folder: "
            "replace it by a copy of the file (cp --dereference)"
        )
    if path.samefile(model):
        raise ArtifactError(f"tensor {tensor!r} is stored in {location!r}, which is the model file itself")
    return path


def _check_length(tensor: onnx.TensorProto, entries: dict[str, str], file: ExternalFile) -> None:
    offset, length = (_byte_count(entries, key, tensor.name) for key in ("offset", "length"))
    expected = tensor_bytes(tensor)
    if length and length != expected:
        raise ArtifactError(
            f"tensor {tensor.name!r} has {expected} bytes, but its entry says that {file.location!r} holds {length}"
        )
    size = file.path.stat().st_size
    if offset + expected > size:
        raise ArtifactError(
            f"tensor {tensor.name!r} has bytes {offset} to {offset + expected} of {file.location!r}, "
            f"which has only {size}: the file was truncated, or belongs to another model"
        )


def _byte_count(entries: dict[str, str], key: str, tensor: str) -> int:
    text = entries.get(key, "0")
    if not (text.isascii() and text.isdecimal()):
        raise ArtifactError(f"tensor {tensor!r} has the external {key} {text!r}, which is not a number of bytes")
    return int(text)


def element_bits(elem_type: int) -> int:
    """Return the bits of an element of an ONNX type other than text; 0 for a type that this onnx does not know."""
    import onnx

    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(elem_type)
    except KeyError:
        return 0
    return _PACKED_BITS.get(dtype.name, int(dtype.itemsize) * 8)


def dtype_name(elem_type: int) -> str:
    """Return the numpy name of an ONNX element type; "undefined" for 0, "unknown(99)" for one newer than this onnx."""
    import onnx

    if elem_type == onnx.TensorProto.STRING:
        return _TEXT
    if elem_type == onnx.TensorProto.UNDEFINED:
        return "undefined"
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)
    except KeyError:
        return f"unknown({elem_type})"
