"""What each stretch of the candidate's graph makes of the reference's values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from pytest_modelserve._onnx.sessions import Values, answers, element_types, session_of
from pytest_modelserve.errors import ArtifactError, InputError
from pytest_modelserve.parity.divergence.computation_graph import (
    Contents,
    Fingerprints,
    Graph,
    as_type,
    initializer_of,
    inputs_of,
    stretch,
)
from pytest_modelserve.parity.divergence.precision import epsilon
from pytest_modelserve.parity.divergence.tensor_pairs import Pair

if TYPE_CHECKING:
    from pytest_modelserve.parity.divergence.computation_graph import Graph

if TYPE_CHECKING:
    from pytest_modelserve.parity.divergence.tensor_pairs import Point

# A graph cut at known tensors: every stretch of it runs on values that it is given, and not on its own.


_MADE = "::made"


def made(tensor: str) -> str:
    """The output of a cut model that holds `tensor` as its own stretch makes it."""
    return f"{tensor}{_MADE}"


def cut_model(graph: Graph, tensors: Sequence[str], given: Mapping[str, int]) -> onnx.ModelProto:
    """A model with the stretches of `graph` that make `tensors`, and what is `given` (by element type) as its inputs.

    Only tensors that some stretch reads become inputs. What a stretch makes itself is read under the name of `made`, so
    that one run tells of every stretch whether it errs by itself.
    """
    places = sorted({place for tensor in tensors for place in stretch(graph, tensor, given)})
    nodes = [_renamed(graph.nodes[place], given) for place in places]
    read = dict.fromkeys(name for place in places for name in inputs_of(graph.nodes[place]))
    inner = onnx.GraphProto(name="cut")
    inner.node.extend(nodes)
    inner.initializer.extend(
        initializer_of(graph, name) for name in read if name in graph.constants and name not in given
    )
    inner.input.extend(onnx.helper.make_tensor_value_info(name, given[name], None) for name in read if name in given)
    inner.output.extend(onnx.ValueInfoProto(name=made(tensor)) for tensor in tensors)
    model = onnx.ModelProto(ir_version=graph.model.ir_version, graph=inner)
    model.opset_import.extend(graph.model.opset_import)
    return model


def _renamed(node: onnx.NodeProto, given: Mapping[str, int]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [made(name) if name in given else name for name in node.output]
    return copy


# How far two values of one tensor may lie apart: rounding, or the noise that a lower precision is known for.


MARKED_BYTES = 256 * 2**20
"""How much of a graph's inside is held at a time, beyond the first points; for two graphs, twice that."""
# So many points are taken without asking for their sizes first: a fault that is there is most often among them.
_FIRST_POINTS = 16


class NoArrayError(Exception):
    """Tensors, by the candidate's names, that onnxruntime does not hand out as arrays: sequences, bfloat16."""

    def __init__(self, tensors: set[str]) -> None:
        super().__init__(f"no arrays: {sorted(tensors)}")
        self.tensors = tensors


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """One point: what the candidate's stretch makes, or why onnxruntime could not run it, and the reference's value."""

    point: Point
    candidate: NDArray[Any] | str
    reference: NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some points, with the reference's values at them and before them, and the candidate's element types."""

    pair: Pair
    points: Sequence[Point]
    values: Mapping[str, NDArray[Any]]
    types: Mapping[str, int]

    def made(self) -> Iterator[Made]:
        """Every point as the candidate makes it of the reference's values, all in one run where that is possible."""
        try:
            found = self._run(self.points)
        except (ArtifactError, InputError):
            for point in self.points:
                yield self._alone(point)
        else:
            for point in self.points:
                yield Made(point, found[made(point.candidate)], self.values[point.reference])

    def rounded(self, point: Point) -> NDArray[Any]:
        """The reference's value of `point` if the values before it are rounded once more, up or down at random."""
        graph = self.pair.reference
        if point.reference not in graph.producer:
            return self.values[point.reference]
        reads = _before(self.pair, point, of_reference=True)
        rng = np.random.default_rng(0)
        moved = {name: _rounded(self.values[name], rng) for name in reads if name in self.values}
        types = dict.fromkeys(self.pair.points.of_reference, 0) | {
            name: _element_type(array) for name, array in moved.items()
        }
        session = session_of(cut_model(graph, [point.reference], types), graph.constants)
        feed = {each.name: moved[each.name] for each in session.get_inputs()}
        return answers(session, feed, [made(point.reference)])[made(point.reference)]

    def _alone(self, point: Point) -> Made:
        try:
            found: NDArray[Any] | str = self._run([point])[made(point.candidate)]
        except (ArtifactError, InputError) as error:
            found = str(error)
        return Made(point, found, self.values[point.reference])

    def _run(self, points: Sequence[Point]) -> Values:
        same = self.pair.points.of_candidate
        given = {name: self.types.get(name, 0) for name in same}
        graph = self.pair.candidate
        session = session_of(cut_model(graph, [point.candidate for point in points], given), graph.constants)
        feed = {each.name: as_type(self.values[same[each.name]], given[each.name]) for each in session.get_inputs()}
        return answers(session, feed, [made(point.candidate) for point in points])


@dataclass(slots=True, eq=False)
class Stretches:
    """The points of `pair` whose stretches differ, batch by batch; `ends` are both models' own answers.

    The candidate's are None where it does not run on these inputs.
    """

    pair: Pair
    reference_ends: Values = field(default_factory=dict)
    candidate_ends: Values | None = None

    def differing(self) -> tuple[Point, ...]:
        """The points that are made by other operators, attributes, weights or out of other tensors, in order."""
        of_candidate, of_reference = self.pair.points.of_candidate, self.pair.points.of_reference
        contents = Contents()
        ours = Fingerprints(self.pair.candidate, of_candidate, contents)
        theirs = Fingerprints(self.pair.reference, of_reference, contents)
        return tuple(
            point
            for point in self.pair.points.points
            if point.reference not in self.pair.reference.producer
            or ours.of(point.candidate) != theirs.of(point.reference)
        )

    def batches(self, points: Sequence[Point]) -> Iterator[Batch]:
        """`points` in order, so many at a time that what is held of the reference's inside stays bounded."""
        yield self._batch(points[:_FIRST_POINTS])
        for some in self._bounded(points[_FIRST_POINTS:]):
            yield self._batch(some)

    def _bounded(self, points: Sequence[Point]) -> Iterator[list[Point]]:
        if not points:
            return
        needed = {point: self._needed(point) for point in points}
        every = dict.fromkeys(name for names in needed.values() for name in names)
        bytes_of = sizes(self.pair.reference, list(every), self.pair.feed)
        some: list[Point] = []
        held: set[str] = set()
        room = MARKED_BYTES
        for point in points:
            if some and sum(bytes_of[name] for name in needed[point] if name not in held) > room:
                yield some
                some, held, room = [], set(), MARKED_BYTES
            room -= sum(bytes_of[name] for name in needed[point] if name not in held)
            some.append(point)
            held.update(needed[point])
        yield some

    def _needed(self, point: Point) -> list[str]:
        """The reference's tensors that `point` is judged by, inputs and constants left out."""
        names = {point.reference, *_before(self.pair, point), *_before(self.pair, point, of_reference=True)}
        return sorted(name for name in names if name in self.pair.reference.producer)

    def _batch(self, points: Sequence[Point]) -> Batch:
        pair = self.pair
        same = pair.points.of_candidate
        theirs = sorted({name for point in points for name in self._needed(point)})
        ours = sorted({name for point in points for name in _read_by(pair, point)} & pair.candidate.producer.keys())
        reference = marked_session(pair.reference, theirs)
        candidate = marked_session(pair.candidate, ours)
        types = element_types(candidate)
        told = element_types(reference)
        unfit = {name for name in ours if name not in types}
        unfit |= {name for name, other in same.items() if other in theirs and other not in told}
        if unfit:
            raise NoArrayError(unfit)
        found = answers(reference, pair.feed, [*dict.fromkeys((*pair.reference.outputs, *theirs))])
        if not self.reference_ends:
            self.reference_ends = {name: found[name] for name in pair.reference.outputs}
            self.candidate_ends = _ends(candidate, pair)
        values = {**pair.feed, **found}
        for point in points:
            for name in (point.reference, *_before(pair, point)):
                stored = pair.reference.constants.get(name)
                if stored is not None:
                    values[name] = stored
        inputs = {v.name: v.type.tensor_type.elem_type for v in pair.candidate.model.graph.input}
        return Batch(pair, points, values, types | inputs)


def _read_by(pair: Pair, point: Point) -> set[str]:
    """The candidate's tensors that the stretch of `point` reads or makes at its end."""
    given = pair.points.of_candidate
    places = stretch(pair.candidate, point.candidate, given)
    return {point.candidate, *(name for at in places for name in inputs_of(pair.candidate.nodes[at]) if name in given)}


def _before(pair: Pair, point: Point, *, of_reference: bool = False) -> list[str]:
    """The reference's names of the given tensors that the stretch of `point` reads, in either graph."""
    graph, same = (
        (pair.reference, pair.points.of_reference) if of_reference else (pair.candidate, pair.points.of_candidate)
    )
    root = point.reference if of_reference else point.candidate
    if root not in graph.producer:
        return []
    reads = (name for place in stretch(graph, root, same) for name in inputs_of(graph.nodes[place]))
    return list(dict.fromkeys(same[name] for name in reads if name in same))


def _ends(session: Any, pair: Pair) -> Values | None:
    try:
        return answers(session, pair.candidate_feed, pair.candidate.outputs)
    except InputError:
        return None


def _rounded(array: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    if array.dtype.kind != "f":
        return array
    return (array * (1 + epsilon(array) * rng.choice((-1, 1), array.shape))).astype(array.dtype)


def _element_type(array: NDArray[Any]) -> int:
    if array.dtype.kind == "O":
        return int(onnx.TensorProto.STRING)
    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))


def marked_session(graph: Graph, tensors: Iterable[str]) -> onnxruntime.InferenceSession:
    """A session of `graph`, unoptimised, that can also be asked for `tensors`."""
    outputs = graph.model.graph.output
    before = len(outputs)
    known = {value.name for value in outputs}
    outputs.extend(onnx.ValueInfoProto(name=name) for name in tensors if name not in known)
    try:
        return session_of(graph.model, graph.constants)
    finally:
        del outputs[before:]


def sizes(graph: Graph, tensors: Sequence[str], feed: Mapping[str, Any]) -> dict[str, int]:
    """The bytes of each of `tensors`, four an element, found in a run that keeps none of them.

    Every tensor gets a Shape node, and only those are outputs: onnxruntime frees a tensor after its last reader.
    """
    nodes, outputs = graph.model.graph.node, graph.model.graph.output
    before = len(nodes), len(outputs)
    shapes = [f"{name}::shape" for name in tensors]
    nodes.extend(onnx.helper.make_node("Shape", [n], [s]) for n, s in zip(tensors, shapes, strict=True))
    outputs.extend(onnx.ValueInfoProto(name=name) for name in shapes)
    try:
        session = session_of(graph.model, graph.constants)
    finally:
        del nodes[before[0] :]
        del outputs[before[1] :]
    found = answers(session, feed, shapes)
    return {name: 4 * int(np.prod(found[shape])) for name, shape in zip(tensors, shapes, strict=True)}
