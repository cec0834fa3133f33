"""What a graph is made of: how many nodes of which operator, and which stored tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ArtifactError

if TYPE_CHECKING:
    import onnx

if TYPE_CHECKING:
    import onnx

# The domains of operators that onnx itself knows.
STANDARD = ("", "ai.onnx", "ai.onnx.ml")


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of `graph`, those in the branches and bodies inside it included."""
    for node in graph.node:
        yield node
        yield from subgraph_nodes(node)


def subgraph_nodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Every node in the branches and bodies of `node`."""
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from all_nodes(graph)


def node_counts(model: onnx.ModelProto) -> dict[str, int]:
    """The number of nodes by operator, the commonest first; nodes of local functions count too."""
    names = [node.op_type for node in all_nodes(model.graph)]
    names += [node.op_type for function in model.functions for node in function.node]
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def format_node_counts(model: onnx.ModelProto) -> str:
    """The operators of `model` with their numbers, as words."""
    return ", ".join(f"{op} ×{n}" for op, n in node_counts(model).items()) or "no nodes"


def graph_summary(model: onnx.ModelProto) -> tuple[dict[str, int], Counter[tuple[int, tuple[int, ...]]]]:
    """Node counts, and how many initializers there are of each dtype and shape: equal for models of the same make."""
    return node_counts(model), Counter((tensor.data_type, tuple(tensor.dims)) for tensor in model.graph.initializer)


def weight_arrays(model: onnx.ModelProto, names: Container[str] | None = None) -> Iterator[tuple[str, NDArray[Any]]]:
    """The name and value of every initializer of a floating dtype that numpy itself has, or of those in `names`."""
    import onnx

    known = _numpy_floats()
    for tensor in model.graph.initializer:
        if tensor.data_type in known and (names is None or tensor.name in names):
            yield tensor.name, np.asarray(onnx.numpy_helper.to_array(tensor))


def weight_dtypes(model: onnx.ModelProto) -> dict[str, str]:
    """The name and dtype of every initializer that `float_arrays` gives; no weights are touched."""
    known = _numpy_floats()
    return {tensor.name: known[tensor.data_type] for tensor in model.graph.initializer if tensor.data_type in known}


def _numpy_floats() -> dict[int, str]:
    import onnx

    return {
        onnx.TensorProto.FLOAT: "float32",
        onnx.TensorProto.DOUBLE: "float64",
        onnx.TensorProto.FLOAT16: "float16",
    }


def copy_node_metadata(model: onnx.ModelProto, source: onnx.ModelProto) -> None:
    """Give nodes that lost their metadata those of the node of the same name and operator in `source`.

    The exporter notes there which line of the torch module a node comes from; onnxsim drops it.
    """
    known = {(node.name, node.op_type): node for node in source.graph.node if node.name}
    for node in model.graph.node:
        origin = known.get((node.name, node.op_type))
        if origin is not None and not node.metadata_props:
            node.metadata_props.extend(origin.metadata_props)


# Names for nodes that have none.


def name_nodes(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """The names of `nodes`, given to those that have none: onnxruntime's tools know nodes by name.

    Names are unique where there are any, or onnxruntime would not have taken the model.
    """
    names = []
    for node in nodes:
        if not node.name:
            node.name = f"{node.op_type}_{node.output[0]}"
        names.append(node.name)
    return names


# The names in a graph: which there are, and giving one value another.


def names_in(graph: onnx.GraphProto) -> set[str]:
    """Every name of a value or node in `graph` and its subgraphs."""
    names = {value.name for value in chain(graph.input, graph.output, graph.value_info, graph.initializer)}
    names |= {sparse.values.name for sparse in graph.sparse_initializer}
    for node in graph.node:
        names.update((node.name, *node.input, *node.output))
        for subgraph in _subgraphs(node):
            names |= names_in(subgraph)
    return names


def unused_prefix(graph: onnx.GraphProto, word: str) -> str:
    """`word/`, or `word_2/` and so on where the graph has names that begin so already."""
    taken = {name.partition("/")[0] for name in names_in(graph)}
    return next(f"{word}{suffix}/" for suffix in _suffixes() if f"{word}{suffix}" not in taken)


def rename_value(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Give the value `old` the name `new`, in place, wherever the graph and its subgraphs use it.

    onnx.compose.add_prefix_graph is no help here: its walk into subgraphs comes before it has collected the names of
    the outer initializers, so that a subgraph that reads one is left with the old name (seen with onnx 1.23).
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
        for subgraph in _subgraphs(node):
            rename_value(subgraph, old, new)


def _subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _suffixes() -> Iterator[str]:
    yield ""
    for number in count(2):
        yield f"_{number}"


# Every node of a model, subgraphs and local functions included, with what is known of the values around it.


# Tensors that a model keeps in files beside it: which files, and whether they hold what the model says.


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


@dataclass(frozen=True, slots=True)
class ExternalFile:
    """A file with tensors of a model: `location` as the model writes it, `path` where it is."""

    location: str
    path: Path


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers and attributes, those in subgraphs, functions and training graphs included."""
    yield from _in_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _in_node(node)
        for attribute in function.attribute_proto:
            yield from _in_attribute(attribute)
    for training in model.training_info:
        yield from _in_graph(training.initialization)
        yield from _in_graph(training.algorithm)


def stored_bytes(model: onnx.ModelProto) -> int:
    """The bytes of all tensors that the model stores, whether inside the file or in files beside it.

    Tensors in attributes count: a weight that sits in a Constant node is no smaller for that.
    """
    return sum(map(tensor_bytes, tensors_of(model)))


def external_files(model: onnx.ModelProto, path: Path) -> tuple[ExternalFile, ...]:
    """The files beside `path` that hold tensors of the model there, by location; each is there and long enough.

    A location outside the folder of `path`, also by way of a link, the model file itself, a missing file and one too
    short are an ArtifactError.
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


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the content of `tensor` lies in another file."""
    # 1 is TensorProto.EXTERNAL.
    return tensor.HasField("data_location") and tensor.data_location == 1


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """The bytes that the content of `tensor` takes, wherever it lies; told by its dims, as asking for it copies it."""
    dtype = dtype_name(tensor.data_type)
    if dtype == "str":
        return sum(map(len, tensor.string_data))
    count: int = math.prod(tensor.dims)
    return (count * _bits(tensor.data_type, dtype) + 7) // 8


def _resolve(location: str, tensor: str, model: Path) -> Path:
    # Both kinds of separator are read on every system: a model is made on one and opened on another.
    for parts in (PurePosixPath(location), PureWindowsPath(location)):
        if not location or parts.is_absolute() or parts.drive or parts.root or ".." in parts.parts:
            raise ArtifactError(
                f"tensor {tensor!r} is kept in {location!r}, which is not a file name inside the model's folder"
            )
    folder = model.parent
    path = folder / location
    if not path.is_file():
        raise ArtifactError(
            f"tensor {tensor!r} is kept in {location!r}, which does not exist: copy that file together with the model"
        )
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(
            f"tensor {tensor!r} is kept in {location!r}, a link that leads out of the model's folder: "
            "put a copy of the file in its place (cp --dereference)"
        )
    if path.samefile(model):
        raise ArtifactError(f"tensor {tensor!r} is kept in {location!r}, which is the model file itself")
    return path


def _check_length(tensor: onnx.TensorProto, entries: dict[str, str], file: ExternalFile) -> None:
    offset, length = (_number(entries, key, tensor.name) for key in ("offset", "length"))
    expected = tensor_bytes(tensor)
    if length and length != expected:
        raise ArtifactError(
            f"tensor {tensor.name!r} takes {expected} bytes, but its entry says that {file.location!r} holds {length}"
        )
    size = file.path.stat().st_size
    if offset + expected > size:
        raise ArtifactError(
            f"tensor {tensor.name!r} takes bytes {offset} to {offset + expected} of {file.location!r}, "
            f"which has only {size}: the file was cut short, or belongs to another model"
        )


def _number(entries: dict[str, str], key: str, tensor: str) -> int:
    text = entries.get(key, "0")
    if not (text.isascii() and text.isdecimal()):
        raise ArtifactError(f"tensor {tensor!r} has the external {key} {text!r}, which is not a number of bytes")
    return int(text)


def _bits(elem_type: int, dtype: str) -> int:
    import onnx

    if dtype in _PACKED_BITS:
        return _PACKED_BITS[dtype]
    try:
        return int(onnx.helper.tensor_dtype_to_np_dtype(elem_type).itemsize) * 8
    except KeyError:
        return 0  # a tensor of no known type takes no bytes that anybody could read


def _in_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _in_node(node)


def _in_node(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from _in_attribute(attribute)


def _in_attribute(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for each in (*sparse, *attribute.sparse_tensors):
        yield from (each.values, each.indices)
    graphs = [attribute.g] if attribute.HasField("g") else []
    for graph in (*graphs, *attribute.graphs):
        yield from _in_graph(graph)


def has_omitted_data(tensor: onnx.TensorProto) -> bool:
    """Whether `tensor` is one whose weights were taken, or not read: heavy by its dims, and without any content."""
    held = (tensor.raw_data, tensor.float_data, tensor.double_data, tensor.int32_data, tensor.uint64_data)
    return (
        tensor.data_type not in (*_KEPT_TYPES, 8)  # TensorProto.STRING
        and not any(map(len, held))
        and math.prod(tensor.dims) > 0
    )


# Integers that a graph computes with, sizes and indices, stay: what a division may meet is read off them.
_KEPT_TYPES = (6, 7)  # TensorProto.INT32 and INT64


# numpy has no dtype for text of any length that onnxruntime would accept: it takes object arrays of str.
_TEXT = "str"


def dtype_name(elem_type: int) -> str:
    """The numpy name of an ONNX element type; "undefined" for 0, "unknown(99)" for a number newer than this onnx."""
    import onnx

    if elem_type == onnx.TensorProto.STRING:
        return _TEXT
    if elem_type == onnx.TensorProto.UNDEFINED:
        return "undefined"
    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(elem_type).name)
    except KeyError:
        return f"unknown({elem_type})"
