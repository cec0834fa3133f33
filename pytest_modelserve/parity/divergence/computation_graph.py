"""ONNX graphs as nodes and tensors: subgraph extraction and content fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import rename_value, subgraphs

# Operators whose outputs are not tensors: an onnxruntime session does not return them as arrays.
_NON_TENSOR_OPERATORS = (
    "Optional",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceMap",
    "SplitToSequence",
    "ZipMap",
)
# Weights from this size on are stored outside the model, so that opening a session does not copy them.
_LARGE_BYTES = 1024
# The dtypes that onnxruntime reads from numpy's memory without a conversion.
_NATIVE = frozenset({"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool"})


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """The main graph of `model`. A Constant node counts as a stored constant, not as a node.

    `producer` maps a tensor to the index of its node in `nodes`, `constants` to its stored value; `opsets` holds the
    version of each operator set. Large weights are in `constants` only: in `model` they are external initializers.
    """

    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    producer: Mapping[str, int]
    constants: Mapping[str, NDArray[Any]]
    opsets: Mapping[str, int]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs that a caller feeds."""
        return tuple(value.name for value in self.model.graph.input if value.name not in self.constants)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs."""
        return tuple(value.name for value in self.model.graph.output)

    def tensors(self) -> Iterator[str]:
        """Yield the tensors that nodes compute, in order."""
        return (name for name, at in self.producer.items() if self.nodes[at].op_type not in _NON_TENSOR_OPERATORS)

    def subgraph(self, tensor: str, boundary: Collection[str]) -> tuple[int, ...]:
        """Return the indices of the nodes that compute `tensor` from `boundary` tensors; its own node comes last."""
        found: set[int] = set()
        pending = [self.producer[tensor]]
        while pending:
            at = pending.pop()
            if at not in found:
                found.add(at)
                reads = (name for name in inputs_of(self.nodes[at]) if name not in boundary)
                pending.extend(self.producer[name] for name in reads if name in self.producer)
        return tuple(sorted(found))

    def renamed(self, names: Mapping[str, str]) -> Graph:
        """Return a copy in which some tensors have other names."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for old, new in names.items():
            rename_value(model.graph, old, new)
        return _graph(model, {names.get(name, name): array for name, array in self.constants.items()})


def load_graph(model: onnx.ModelProto) -> Graph:
    """Return the graph of `model` with local functions inlined; large weights move from `model` to the graph."""
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    constants = {}
    initializers = model.graph.initializer
    read = {name for node in model.graph.node for name in inputs_of(node)}
    read.update(value.name for value in model.graph.output)
    for at in reversed(range(len(initializers))):
        if initializers[at].name not in read:  # onnxruntime drops it, and then fails to find it by its name
            del initializers[at]
    for tensor in initializers:
        array = np.asarray(onnx.numpy_helper.to_array(tensor))
        constants[tensor.name] = array
        if _is_external(array):
            tensor.CopyFrom(_external_tensor(tensor, array.nbytes))
    return _graph(model, constants)


def initializer_of(graph: Graph, name: str) -> onnx.TensorProto:
    """Return the stored tensor `name` as an initializer, an external one if it is large."""
    array = graph.constants[name]
    if _is_external(array):
        data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        return _external_tensor(onnx.TensorProto(name=name, data_type=data_type, dims=array.shape), array.nbytes)
    return onnx.numpy_helper.from_array(array, name)


def inputs_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """Return each tensor that `node` reads once, including those that its inner graphs capture."""
    return tuple(dict.fromkeys((*filter(None, node.input), *_captured(node))))


def as_type(array: NDArray[Any], element_type: int) -> NDArray[Any]:
    """Return `array` in ONNX's element type; values out of range become infinite, as in Cast."""
    if array.dtype.kind in "OU":
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(onnx.helper.tensor_dtype_to_np_dtype(element_type), copy=False)


def _graph(model: onnx.ModelProto, constants: dict[str, NDArray[Any]]) -> Graph:
    nodes = []
    for node in model.graph.node:
        value = _constant_value(node)
        if value is None:
            nodes.append(node)
        else:
            constants[node.output[0]] = value
    return Graph(
        model=model,
        nodes=tuple(nodes),
        producer={name: at for at, node in enumerate(nodes) for name in node.output if name},
        constants=constants,
        opsets={"" if each.domain == "ai.onnx" else each.domain: each.version for each in model.opset_import},
    )


def _is_external(array: NDArray[Any]) -> bool:
    return array.nbytes >= _LARGE_BYTES and array.dtype.name in _NATIVE


def _external_tensor(tensor: onnx.TensorProto, nbytes: int) -> onnx.TensorProto:
    """Return `tensor` without its content. onnxruntime gets the content by name and never reads the location."""
    bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    bare.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "in memory"), ("offset", "0"), ("length", str(nbytes))):
        bare.external_data.add(key=key, value=value)
    return bare


def _constant_value(node: onnx.NodeProto) -> NDArray[Any] | None:
    """Return the tensor of a Constant node, None for another node or another kind of value."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    (attribute,) = node.attribute
    value = onnx.helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return np.asarray(onnx.numpy_helper.to_array(value))
    if attribute.name.startswith("value_float"):
        return np.asarray(value, np.float32)
    if attribute.name.startswith("value_int"):
        return np.asarray(value, np.int64)
    return None


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    for graph in subgraphs(node):
        yield from _free_names(graph)


def _free_names(graph: onnx.GraphProto) -> Iterable[str]:
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        yield from (name for name in inputs_of(node) if name not in own)
        own.update(node.output)
    yield from (value.name for value in graph.output if value.name not in own)


_SAMPLE_SIZE = 1024


class ArrayIds:
    """One number for all arrays of equal dtype, shape and content.

    Large arrays are compared instead of hashed, which takes a tenth of the time. A sample of each avoids most
    comparisons.
    """

    def __init__(self) -> None:
        self._known: dict[object, list[tuple[NDArray[Any], int]]] = {}
        self._count = 0

    def id_of(self, array: NDArray[Any]) -> int:
        """Return the number of `array`."""
        if array.dtype.kind in "OU":
            key: object = (array.shape, tuple(map(str, array.flat)))
        else:
            key = (array.dtype, array.shape, array.ravel()[:: max(1, array.size // _SAMPLE_SIZE)].tobytes())
        group = self._known.setdefault(key, [])
        for other, number in group:
            if array.size <= _SAMPLE_SIZE or array.dtype.kind in "OU" or _bytes(array) == _bytes(other):
                return number
        self._count += 1
        group.append((array, self._count))
        return self._count


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class Fingerprints:
    """Hashes of how the tensors of `graph` are computed from `boundary`, which maps them to shared names.

    Names of nodes, weights and all other tensors do not count. Tensors with equal fingerprints have equal values if one
    runtime computes them from the same boundary values. Both graphs must share one `array_ids`.
    """

    def __init__(self, graph: Graph, boundary: Mapping[str, str], array_ids: ArrayIds) -> None:
        self._graph = graph
        self._array_ids = array_ids
        self._boundary = boundary
        self._known: dict[str, bytes] = {}

    def of_tensor(self, tensor: str) -> bytes:
        """Return the fingerprint of `tensor`, which may be in the boundary itself."""
        at = self._graph.producer[tensor]
        pending = [at]
        while pending:  # not by recursion: a subgraph can be thousands of nodes deep
            missing = [self._graph.producer[name] for name in self._missing(pending[-1])]
            if missing:
                pending.extend(missing)
            else:
                self._add(pending.pop())
        node = self._graph.nodes[at]
        return self._digest(node, list(node.output).index(tensor))

    def of_node(self, at: int) -> bytes:
        """Return the fingerprint of one node and its constants, whatever else it reads."""
        node = self._graph.nodes[at]
        digest = self._node_digest(node)
        for name in node.input:
            digest.update(self._constant(name) if name in self._graph.constants else bool(name).to_bytes())
        return digest.digest()

    def _missing(self, at: int) -> list[str]:
        return [
            name
            for name in inputs_of(self._graph.nodes[at])
            if name not in self._boundary and name not in self._known and name in self._graph.producer
        ]

    def _add(self, at: int) -> None:
        node = self._graph.nodes[at]
        for output, name in enumerate(node.output):
            if name and name not in self._boundary:
                self._known[name] = self._digest(node, output)

    def _digest(self, node: onnx.NodeProto, output: int) -> bytes:
        digest = self._node_digest(node)
        captured = inputs_of(node)[len(set(filter(None, node.input))) :]
        for name in (*node.input, *captured):
            digest.update(self._input(name))
        digest.update(output.to_bytes(4))
        return digest.digest()

    def _node_digest(self, node: onnx.NodeProto) -> hashlib.blake2b:
        domain = "" if node.domain == "ai.onnx" else node.domain
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{domain}\0{node.op_type}\0{self._graph.opsets.get(domain)}\0".encode())
        for attribute in sorted(node.attribute, key=lambda each: each.name):
            bare = onnx.AttributeProto()
            bare.CopyFrom(attribute)
            bare.doc_string = ""
            digest.update(bare.SerializeToString(deterministic=True))
        return digest

    def _input(self, name: str) -> bytes:
        if name in self._boundary:
            return b"given" + self._boundary[name].encode()
        if name in self._graph.constants:
            return self._constant(name)
        return self._known.get(name, name.encode())

    def _constant(self, name: str) -> bytes:
        return b"constant" + self._array_ids.id_of(self._graph.constants[name]).to_bytes(8)
