"""Tensors that a model keeps in files beside it: which files, and whether they hold what the model says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

from pytest_modelserve.artifacts.signature import dtype_name
from pytest_modelserve.errors import ArtifactError

if TYPE_CHECKING:
    import onnx

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
