"""Runs of the candidate's subgraphs on the reference's values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from pytest_modelserve._onnx.sessions import Values, element_types, open_graph_session, run_session
from pytest_modelserve.errors import ArtifactError, InputError
from pytest_modelserve.parity.divergence.computation_graph import (
    ArrayIds,
    Fingerprints,
    Graph,
    as_type,
    initializer_of,
    inputs_of,
)
from pytest_modelserve.parity.divergence.precision import epsilon
from pytest_modelserve.parity.divergence.tensor_pairs import ModelPair, TensorPair

MAX_HELD_BYTES = 256 * 2**20
"""Memory for a graph's inner values after the first batch; twice that for two graphs."""
# The first batch is taken without a run to get sizes: a fault is most often among these.
_FIRST_BATCH = 16


class UnsupportedTensorError(Exception):
    """Tensors, by the candidate's names, that onnxruntime does not return as arrays: sequences, bfloat16."""

    def __init__(self, tensors: set[str]) -> None:
        super().__init__(f"not returned as arrays: {sorted(tensors)}")
        self.tensors = tensors


@dataclass(frozen=True, slots=True, eq=False)
class ComparedTensor:
    """One tensor pair with both values; `candidate` is onnxruntime's error if its subgraph does not run."""

    pair: TensorPair
    candidate: NDArray[Any] | str
    reference: NDArray[Any]


@dataclass(slots=True, eq=False)
class SubgraphRuns:
    """The differing subgraphs of two models, run batch by batch.

    The outputs of both whole models are filled in by the first batch; the candidate's are None if it does not run on
    these inputs.
    """

    models: ModelPair
    reference_outputs: Values = field(default_factory=dict)
    candidate_outputs: Values | None = None

    def differing(self) -> tuple[TensorPair, ...]:
        """Return the pairs computed by other operators, attributes or weights, or from other tensors, in order."""
        models, matching = self.models, self.models.matching
        array_ids = ArrayIds()
        ours = Fingerprints(models.candidate, matching.by_candidate, array_ids)
        theirs = Fingerprints(models.reference, matching.by_reference, array_ids)
        return tuple(
            pair
            for pair in matching.pairs
            if pair.reference not in models.reference.producer
            or ours.of_tensor(pair.candidate) != theirs.of_tensor(pair.reference)
        )

    def batches(self, pairs: Sequence[TensorPair]) -> Iterator[Batch]:
        """Yield `pairs` in order, in batches that bound the memory for the reference's values."""
        yield self._batch(pairs[:_FIRST_BATCH])
        for group in self._groups(pairs[_FIRST_BATCH:]):
            yield self._batch(group)

    def _groups(self, pairs: Sequence[TensorPair]) -> Iterator[list[TensorPair]]:
        if not pairs:
            return
        needed = {pair: self._needed(pair) for pair in pairs}
        every = dict.fromkeys(name for names in needed.values() for name in names)
        bytes_of = tensor_sizes(self.models.reference, list(every), self.models.feed)
        group: list[TensorPair] = []
        held: dict[str, int] = {}
        for pair in pairs:
            more = {name: bytes_of[name] for name in needed[pair] if name not in held}
            if group and sum(held.values()) + sum(more.values()) > MAX_HELD_BYTES:
                yield group
                group, held, more = [], {}, {name: bytes_of[name] for name in needed[pair]}
            group.append(pair)
            held |= more
        yield group

    def _needed(self, pair: TensorPair) -> list[str]:
        """Return the reference's computed tensors that the comparison of `pair` reads."""
        reads = (*_boundary(self.models, pair), *_boundary(self.models, pair, of_reference=True))
        return sorted(name for name in {pair.reference, *reads} if name in self.models.reference.producer)

    def _batch(self, pairs: Sequence[TensorPair]) -> Batch:
        models = self.models
        theirs = sorted({name for pair in pairs for name in self._needed(pair)})
        ours = sorted({name for pair in pairs for name in _candidate_tensors(models, pair)})
        reference = session_with_outputs(models.reference, theirs)
        candidate = session_with_outputs(models.candidate, ours)
        types, reference_types = element_types(candidate), element_types(reference)
        unsupported = {name for name in ours if name not in types}
        unsupported |= {
            name
            for name, other in models.matching.by_candidate.items()
            if other in theirs and other not in reference_types
        }
        if unsupported:
            raise UnsupportedTensorError(unsupported)
        found = run_session(reference, models.feed, [*dict.fromkeys((*models.reference.outputs, *theirs))])
        if not self.reference_outputs:
            self.reference_outputs = {name: found[name] for name in models.reference.outputs}
            try:
                self.candidate_outputs = run_session(candidate, models.candidate_feed, models.candidate.outputs)
            except InputError:
                self.candidate_outputs = None
        values = {**models.feed, **found}
        for pair in pairs:
            for name in (pair.reference, *_boundary(models, pair)):
                stored = models.reference.constants.get(name)
                if stored is not None:
                    values[name] = stored
        inputs = {value.name: value.type.tensor_type.elem_type for value in models.candidate.model.graph.input}
        return Batch(models, pairs, values, types | inputs)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some tensor pairs with the reference's values at and before them, and the candidate's element types."""

    models: ModelPair
    pairs: Sequence[TensorPair]
    values: Mapping[str, NDArray[Any]]
    types: Mapping[str, int]

    def compared(self) -> Iterator[ComparedTensor]:
        """Yield each pair as the candidate computes it from the reference's values, in one run if possible."""
        try:
            found = self._run(self.pairs)
        except (ArtifactError, InputError):
            for pair in self.pairs:
                yield self._run_alone(pair)
        else:
            for pair in self.pairs:
                yield ComparedTensor(pair, found[_recomputed(pair.candidate)], self.values[pair.reference])

    def perturbed(self, pair: TensorPair) -> NDArray[Any]:
        """Return the reference's value of `pair` after its inputs were rounded once more, randomly up or down."""
        graph, matching = self.models.reference, self.models.matching
        if pair.reference not in graph.producer:
            return self.values[pair.reference]
        reads = _boundary(self.models, pair, of_reference=True)
        rng = np.random.default_rng(0)
        moved = {name: _perturb(self.values[name], rng) for name in reads if name in self.values}
        types = dict.fromkeys(matching.by_reference, 0) | {name: _element_type(array) for name, array in moved.items()}
        session = open_graph_session(extract_subgraphs(graph, [pair.reference], types), graph.constants)
        feed = {each.name: moved[each.name] for each in session.get_inputs()}
        return run_session(session, feed, [_recomputed(pair.reference)])[_recomputed(pair.reference)]

    def _run_alone(self, pair: TensorPair) -> ComparedTensor:
        try:
            found: NDArray[Any] | str = self._run([pair])[_recomputed(pair.candidate)]
        except (ArtifactError, InputError) as error:
            found = str(error)
        return ComparedTensor(pair, found, self.values[pair.reference])

    def _run(self, pairs: Sequence[TensorPair]) -> Values:
        names = self.models.matching.by_candidate
        types = {name: self.types.get(name, 0) for name in names}
        graph = self.models.candidate
        session = open_graph_session(
            extract_subgraphs(graph, [pair.candidate for pair in pairs], types), graph.constants
        )
        feed = {each.name: as_type(self.values[names[each.name]], types[each.name]) for each in session.get_inputs()}
        return run_session(session, feed, [_recomputed(pair.candidate) for pair in pairs])


def extract_subgraphs(graph: Graph, tensors: Sequence[str], boundary: Mapping[str, int]) -> onnx.ModelProto:
    """Return a model of the subgraphs that compute `tensors`, with `boundary` (names to element types) as its inputs.

    Only tensors that a subgraph reads become inputs. Computed tensors get another name than the inputs, so that one run
    shows which subgraphs diverge by themselves.
    """
    nodes = [graph.nodes[at] for at in sorted({at for name in tensors for at in graph.subgraph(name, boundary)})]
    read = dict.fromkeys(name for node in nodes for name in inputs_of(node))
    extracted = onnx.GraphProto(name="subgraphs")
    extracted.node.extend(_with_recomputed_outputs(node, boundary) for node in nodes)
    extracted.initializer.extend(
        initializer_of(graph, name) for name in read if name in graph.constants and name not in boundary
    )
    extracted.input.extend(
        onnx.helper.make_tensor_value_info(name, boundary[name], None) for name in read if name in boundary
    )
    extracted.output.extend(onnx.ValueInfoProto(name=_recomputed(tensor)) for tensor in tensors)
    model = onnx.ModelProto(ir_version=graph.model.ir_version, graph=extracted)
    model.opset_import.extend(graph.model.opset_import)
    return model


def session_with_outputs(graph: Graph, tensors: Iterable[str]) -> onnxruntime.InferenceSession:
    """Open an unoptimized session of `graph` that also returns `tensors`."""
    outputs = graph.model.graph.output
    before = len(outputs)
    known = {value.name for value in outputs}
    outputs.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    try:
        return open_graph_session(graph.model, graph.constants)
    finally:
        del outputs[before:]


def tensor_sizes(graph: Graph, tensors: Sequence[str], feed: Mapping[str, Any]) -> dict[str, int]:
    """Return the bytes of each of `tensors`, at four an element, from a run that holds none of them.

    Only a Shape node of each is an output: onnxruntime frees a tensor after its last reader.
    """
    nodes, outputs = graph.model.graph.node, graph.model.graph.output
    before = len(nodes), len(outputs)
    shapes = [f"{name}::shape" for name in tensors]
    nodes.extend(onnx.helper.make_node("Shape", [n], [s]) for n, s in zip(tensors, shapes, strict=True))
    outputs.extend(onnx.ValueInfoProto(name=name) for name in shapes)
    try:
        session = open_graph_session(graph.model, graph.constants)
    finally:
        del nodes[before[0] :]
        del outputs[before[1] :]
    found = run_session(session, feed, shapes)
    return {name: 4 * int(np.prod(found[shape])) for name, shape in zip(tensors, shapes, strict=True)}


def _recomputed(tensor: str) -> str:
    """Return the name of `tensor` as an output of its own subgraph."""
    return f"{tensor}::recomputed"


def _with_recomputed_outputs(node: onnx.NodeProto, boundary: Mapping[str, int]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [_recomputed(name) if name in boundary else name for name in node.output]
    return copy


def _candidate_tensors(models: ModelPair, pair: TensorPair) -> set[str]:
    """Return the candidate's computed tensors that the subgraph of `pair` reads, and its result."""
    graph, boundary = models.candidate, models.matching.by_candidate
    reads = {name for at in graph.subgraph(pair.candidate, boundary) for name in inputs_of(graph.nodes[at])}
    return {pair.candidate, *(reads & boundary.keys())} & graph.producer.keys()


def _boundary(models: ModelPair, pair: TensorPair, *, of_reference: bool = False) -> list[str]:
    """Return the reference's names of the matched tensors that the subgraph of `pair` reads, in either graph."""
    if of_reference:
        graph, names, root = models.reference, models.matching.by_reference, pair.reference
    else:
        graph, names, root = models.candidate, models.matching.by_candidate, pair.candidate
    if root not in graph.producer:
        return []
    reads = (name for at in graph.subgraph(root, names) for name in inputs_of(graph.nodes[at]))
    return list(dict.fromkeys(names[name] for name in reads if name in names))


def _perturb(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    if array.dtype.kind != "f":
        return array
    return (array * (1 + epsilon(array) * rng.choice((-1, 1), array.shape))).astype(array.dtype)


def _element_type(array: NDArray[Any]) -> int:
    if array.dtype.kind == "O":
        return int(onnx.TensorProto.STRING)
    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
