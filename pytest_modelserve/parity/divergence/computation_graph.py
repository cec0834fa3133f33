"""An ONNX graph as tensors that nodes make out of each other, and the stretch of nodes between known tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray

# What these give is no tensor, and no onnxruntime session hands it out as an array.
_NO_TENSOR = (
    "Optional",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceMap",
    "SplitToSequence",
    "ZipMap",
)


# Weights from this size on are kept beside the graph, so that a session is opened without copying them.
_LARGE_BYTES = 1024
# What onnxruntime takes from numpy as it lies in memory.
_NATIVE = frozenset({"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool"})


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """The main graph of `model`; a Constant node counts as a stored constant, not as a node that makes a tensor.

    `producer` gives the place in `nodes` of the node that makes a tensor, `constants` the value of each stored tensor
    and `opsets` the version of each operator set. The large weights are in `constants` only: in `model` they are
    initializers that lie elsewhere.
    """

    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    producer: Mapping[str, int]
    constants: Mapping[str, NDArray[Any]]
    opsets: Mapping[str, int]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names that a caller feeds."""
        return tuple(value.name for value in self.model.graph.input if value.name not in self.constants)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what a caller gets."""
        return tuple(value.name for value in self.model.graph.output)

    def tensors(self) -> Iterator[str]:
        """The tensors that nodes make, in order."""
        return (name for name, place in self.producer.items() if self.nodes[place].op_type not in _NO_TENSOR)

    def renamed(self, names: Mapping[str, str]) -> Graph:
        """The same graph with other names for some tensors."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        _rename(model.graph, names)
        return _graph(model, {names.get(name, name): array for name, array in self.constants.items()})


def graph_of(model: onnx.ModelProto) -> Graph:
    """The graph of `model`, which has its weights loaded and loses them to the graph.

    Calls of local functions are replaced by their nodes.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    constants = {}
    initializers = model.graph.initializer
    read = {name for node in model.graph.node for name in inputs_of(node)}
    read.update(value.name for value in model.graph.output)
    for place in reversed(range(len(initializers))):
        if initializers[place].name not in read:  # onnxruntime drops it, and then does not find it by its name
            del initializers[place]
    for tensor in initializers:
        array = np.asarray(onnx.numpy_helper.to_array(tensor))
        constants[tensor.name] = array
        if array.nbytes >= _LARGE_BYTES and array.dtype.name in _NATIVE:
            tensor.CopyFrom(_elsewhere(tensor, array.nbytes))
    return _graph(model, constants)


def _graph(model: onnx.ModelProto, constants: dict[str, NDArray[Any]]) -> Graph:
    nodes = []
    for node in model.graph.node:
        value = _stored(node)
        if value is None:
            nodes.append(node)
        else:
            constants[node.output[0]] = value
    return Graph(
        model=model,
        nodes=tuple(nodes),
        producer={name: place for place, node in enumerate(nodes) for name in node.output if name},
        constants=constants,
        opsets={"" if each.domain == "ai.onnx" else each.domain: each.version for each in model.opset_import},
    )


def initializer_of(graph: Graph, name: str) -> onnx.TensorProto:
    """The stored tensor `name` as an initializer, a large one as one that lies elsewhere."""
    array = graph.constants[name]
    if array.nbytes >= _LARGE_BYTES and array.dtype.name in _NATIVE:
        bare = onnx.TensorProto(
            name=name, data_type=onnx.helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape
        )
        return _elsewhere(bare, array.nbytes)
    return onnx.numpy_helper.from_array(array, name)


def _elsewhere(tensor: onnx.TensorProto, nbytes: int) -> onnx.TensorProto:
    """`tensor` without its content; onnxruntime is handed the content by name, and the location is never looked at."""
    bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    bare.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "in memory"), ("offset", "0"), ("length", str(nbytes))):
        bare.external_data.add(key=key, value=value)
    return bare


def inputs_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """Every tensor that `node` reads, those that the graphs inside it take from outside included, each once."""
    return tuple(dict.fromkeys((*filter(None, node.input), *_captured(node))))


def stretch(graph: Graph, tensor: str, given: Collection[str]) -> tuple[int, ...]:
    """The places of the nodes that make `tensor` out of tensors that are `given`, in order; its own node comes last."""
    found: set[int] = set()
    waiting = [graph.producer[tensor]]
    while waiting:
        place = waiting.pop()
        if place not in found:
            found.add(place)
            reads = (name for name in inputs_of(graph.nodes[place]) if name not in given)
            waiting.extend(graph.producer[name] for name in reads if name in graph.producer)
    return tuple(sorted(found))


def _stored(node: onnx.NodeProto) -> NDArray[Any] | None:
    """The value of a Constant node, None for another node and for the kinds of value that are no tensor."""
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


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _rename(inner, names)


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            yield from _free_names(graph)


def _free_names(graph: onnx.GraphProto) -> Iterable[str]:
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        yield from (name for name in inputs_of(node) if name not in own)
        own.update(node.output)
    yield from (value.name for value in graph.output if value.name not in own)


# Digests by which two stretches of graph are told to be the same: equal operators, attributes and stored values.


_SAMPLE = 1024


class Contents:
    """A number for each stored value, equal for values of one dtype, shape and content.

    Large ones are compared and not digested, which takes a tenth of the time; a sample of each keeps most of them from
    being compared at all.
    """

    def __init__(self) -> None:
        self._known: dict[object, list[tuple[NDArray[Any], int]]] = {}
        self._count = 0

    def number(self, array: NDArray[Any]) -> int:
        """The number of the content of `array`."""
        if array.dtype.kind in "OU":
            key: object = (array.shape, tuple(map(str, array.flat)))
        else:
            key = (array.dtype, array.shape, array.ravel()[:: max(1, array.size // _SAMPLE)].tobytes())
        group = self._known.setdefault(key, [])
        for other, number in group:
            if array.size <= _SAMPLE or array.dtype.kind in "OU" or _bytes(array) == _bytes(other):
                return number
        self._count += 1
        group.append((array, self._count))
        return self._count


def _bytes(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class Fingerprints:
    """Digests of the tensors of `graph`; a tensor in `given` is known by the name that it has there.

    Names of nodes, of weights and of all other tensors do not count. Two tensors of one fingerprint have, run by one
    runtime on the same given tensors, the same value; both graphs have to share one `contents`.
    """

    def __init__(self, graph: Graph, given: Mapping[str, str], contents: Contents) -> None:
        self._graph = graph
        self._contents = contents
        self._given = given
        self._known: dict[str, bytes] = {}

    def of(self, tensor: str) -> bytes:
        """The fingerprint of how `tensor` is made, also where it is given itself."""
        place = self._graph.producer[tensor]
        return self._made(tensor, place)

    def of_node(self, place: int) -> bytes:
        """The fingerprint of one node and its constants alone, whatever else it reads."""
        node = self._graph.nodes[place]
        digest = self._begun(node)
        for name in node.input:
            digest.update(self._constant(name) if name in self._graph.constants else bool(name).to_bytes())
        return digest.digest()

    def _made(self, tensor: str, place: int) -> bytes:
        waiting = [place]
        while waiting:  # not by recursion: a stretch can be thousands of nodes deep
            missing = [self._graph.producer[name] for name in self._unknown(waiting[-1])]
            if missing:
                waiting.extend(missing)
            else:
                self._learn(waiting.pop())
        node = self._graph.nodes[place]
        return self._digest_of(node, list(node.output).index(tensor))

    def _unknown(self, place: int) -> list[str]:
        return [
            name
            for name in inputs_of(self._graph.nodes[place])
            if name not in self._given and name not in self._known and name in self._graph.producer
        ]

    def _learn(self, place: int) -> None:
        node = self._graph.nodes[place]
        for output, name in enumerate(node.output):
            if name and name not in self._given:
                self._known[name] = self._digest_of(node, output)

    def _digest_of(self, node: onnx.NodeProto, output: int) -> bytes:
        digest = self._begun(node)
        captured = inputs_of(node)[len(set(filter(None, node.input))) :]
        for name in (*node.input, *captured):
            digest.update(self._input(name))
        digest.update(output.to_bytes(4))
        return digest.digest()

    def _begun(self, node: onnx.NodeProto) -> hashlib.blake2b:
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
        if name in self._given:
            return b"given" + self._given[name].encode()
        if name in self._graph.constants:
            return self._constant(name)
        return self._known.get(name, name.encode())

    def _constant(self, name: str) -> bytes:
        return b"constant" + self._contents.number(self._graph.constants[name]).to_bytes(8)


# Two models made comparable: their graphs, the inputs for both, and the tensors that both have.


def as_type(array: NDArray[Any], element_type: int) -> NDArray[Any]:
    """`array` in ONNX's element type; what does not fit there becomes infinite, as in a Cast."""
    if array.dtype.kind in "OU":
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(onnx.helper.tensor_dtype_to_np_dtype(element_type), copy=False)
