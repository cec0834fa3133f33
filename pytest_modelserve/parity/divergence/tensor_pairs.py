"""Where two graphs can be held against each other: the tensors that both have."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pytest_modelserve.artifacts import Artifact, load_model, open_artifact
from pytest_modelserve.errors import UsageError
from pytest_modelserve.metrics.tolerance import RECOMPUTED_WEIGHT_EPSILONS
from pytest_modelserve.parity.divergence.computation_graph import (
    Contents,
    Fingerprints,
    Graph,
    as_type,
    graph_of,
    inputs_of,
    stretch,
)
from pytest_modelserve.parity.divergence.precision import Precision, epsilon, largest, precision_of
from pytest_modelserve.serving import Predictor
from pytest_modelserve.serving.crash_guards import find_known_crashes
from pytest_modelserve.serving.inputs import Inputs, checked_feed

_STORED_QUANTISED = "_quantized"  # what onnxruntime's quantizer appends to the name of a weight
_DROPPED = ("Clip", "Relu")  # what it leaves out before QuantizeLinear, whose range clips just as well


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """One tensor under its name in each graph; `order` is its place in the reference's graph."""

    candidate: str
    reference: str
    order: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """What both graphs know: their common inputs, which are never in question, and the points in order.

    `of_candidate` gives the reference's name of each of them by the candidate's, `of_reference` by its own.
    """

    inputs: tuple[str, ...]
    points: tuple[Point, ...]
    of_candidate: Mapping[str, str] = field(init=False)
    of_reference: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        names = {name: name for name in self.inputs} | {point.candidate: point.reference for point in self.points}
        object.__setattr__(self, "of_candidate", names)
        object.__setattr__(self, "of_reference", {name: name for name in names.values()})


def common_points(candidate: Graph, reference: Graph, *, without: Collection[str] = ()) -> Points:
    """The tensors that nodes of both graphs make under one name, and what a candidate makes of one by quantising it.

    What `DequantizeLinear` gives back of a quantised tensor or weight stands for the reference's own, so that the noise
    of quantising it is told apart from that of the operator behind. Names in `without` are left out. UsageError where
    the graphs have no input or no output in common.
    """
    inputs = tuple(name for name in reference.inputs if name in set(candidate.inputs))
    for what, ours, theirs in (
        ("input", candidate.inputs, reference.inputs),
        ("output", candidate.outputs, reference.outputs),
    ):
        if theirs and not set(ours) & set(theirs):
            raise UsageError(
                f"the models share no {what}: the candidate has {_listed(ours)}, the reference {_listed(theirs)}"
            )
    every = (*_same_names(candidate, reference), *_dequantised(candidate, reference, inputs))
    points = sorted((point for point in every if point.candidate not in without), key=lambda point: point.order)
    return Points(inputs, tuple(_sources_first(candidate, points, inputs)))


def _sources_first(candidate: Graph, points: Sequence[Point], inputs: Sequence[str]) -> Iterator[Point]:
    """`points` in their order, but each behind those that `candidate` makes it of.

    Only where both graphs are wired otherwise is that another order: the candidate may make an early tensor of one that
    the reference has later, and then that one is where they part.
    """
    by_name = {point.candidate: point for point in points}
    given = {*by_name, *inputs}
    reads = {name: _reads(candidate, name, given) & by_name.keys() for name in by_name}
    told: set[str] = set()
    for point in points:
        waiting = [point.candidate]
        while waiting:
            missing = reads[waiting[-1]] - told
            if missing:
                waiting.extend(sorted(missing, key=lambda name: by_name[name].order, reverse=True))
                continue
            name = waiting.pop()
            if name not in told:
                told.add(name)
                yield by_name[name]


def _reads(graph: Graph, tensor: str, given: Collection[str]) -> set[str]:
    """What the stretch that makes `tensor` reads."""
    return {name for place in stretch(graph, tensor, given) for name in inputs_of(graph.nodes[place])}


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _same_names(candidate: Graph, reference: Graph) -> Iterator[Point]:
    makes = set(candidate.tensors())
    only_quantised = _only_quantised(candidate)
    for name in reference.tensors():
        if name in makes:
            ours = candidate.nodes[candidate.producer[name]].op_type
            theirs = reference.nodes[reference.producer[name]].op_type
            if ours == theirs or theirs not in _DROPPED or name not in only_quantised:
                yield Point(name, name, (reference.producer[name], 1))


def _only_quantised(candidate: Graph) -> set[str]:
    """The tensors that nothing but QuantizeLinear reads."""
    others = {name for node in candidate.nodes if node.op_type != "QuantizeLinear" for name in inputs_of(node)}
    quantised = {node.input[0] for node in candidate.nodes if node.op_type == "QuantizeLinear"}
    return quantised - others - set(candidate.outputs)


def _dequantised(candidate: Graph, reference: Graph, inputs: tuple[str, ...]) -> Iterator[Point]:
    known = {*inputs, *reference.producer}
    first_reader: dict[str, int] = {}
    for place, node in enumerate(reference.nodes):
        for name in inputs_of(node):
            first_reader.setdefault(name, place)
    for node in candidate.nodes:
        if node.op_type == "DequantizeLinear" and node.output[0] not in reference.producer:
            name = _original(node, candidate, reference)
            if name in known or name in reference.constants:
                yield Point(node.output[0], name, (first_reader.get(name, len(reference.nodes)), 0))


def _original(node: onnx.NodeProto, candidate: Graph, reference: Graph) -> str:
    """The reference's name of what `node` dequantises, or ""."""
    stored = node.input[0]
    if stored in candidate.producer:
        maker = candidate.nodes[candidate.producer[stored]]
        return maker.input[0] if maker.op_type == "QuantizeLinear" else ""
    name = stored.removesuffix(_STORED_QUANTISED)
    ours, theirs = candidate.constants.get(stored), reference.constants.get(name)
    return name if ours is not None and theirs is not None and ours.shape == theirs.shape else ""


# What is different between two nodes: operator, attributes, wiring and stored weights, in sentences.


def named(node: onnx.NodeProto) -> str:
    """`Gemm 'node_linear'`; a node without a name is called by what it makes."""
    return f"{node.op_type} {name_of(node)!r}"


def name_of(node: onnx.NodeProto) -> str:
    """The name of `node`, or of the first tensor that it makes."""
    return str(node.name or next(filter(None, node.output), ""))


def changes(
    candidate: Graph, ours: onnx.NodeProto, reference: Graph, theirs: onnx.NodeProto, same: Mapping[str, str]
) -> tuple[str, ...]:
    """One sentence for each difference between node `ours` of `candidate` and `theirs` of `reference`.

    `same` gives the reference's name of each tensor of the candidate that both have. Differences of stored weights in
    the last bits are none.
    """
    if (ours.domain, ours.op_type) != (theirs.domain, theirs.op_type):
        return (f"operator is {ours.op_type} where the reference has {theirs.op_type}",)
    return (
        *_attributes(_settings(candidate, ours), _settings(reference, theirs)),
        *_inputs(candidate, ours, reference, theirs, same),
    )


def _settings(graph: Graph, node: onnx.NodeProto) -> dict[str, Any]:
    """Every attribute's value, those that the operator's definition implies included."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    found: dict[str, Any] = {}
    try:
        schema = onnx.defs.get_schema(node.op_type, graph.opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        pass  # an operator that onnx itself does not know
    else:
        for name, formal in schema.attributes.items():
            if formal.default_value.type != onnx.AttributeProto.UNDEFINED:
                found[name] = onnx.helper.get_attribute_value(formal.default_value)
    return found | {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}


def _attributes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs:
            side, other = ("candidate", "reference") if name in ours else ("reference", "candidate")
            value = _told(ours.get(name, theirs.get(name)))
            yield f"attribute {name} is {value} in the {side} and absent in the {other}"
        elif ours[name] != theirs[name]:
            yield f"attribute {name} is {_told(ours[name])} where the reference has {_told(theirs[name])}"


def _told(value: Any) -> str:
    if isinstance(value, bytes):
        return repr(value.decode(errors="replace"))
    if isinstance(value, float):
        return f"{value:g}"
    return f"a {type(value).__name__}" if hasattr(value, "SerializeToString") else str(value)


def _inputs(
    candidate: Graph, ours: onnx.NodeProto, reference: Graph, theirs: onnx.NodeProto, same: Mapping[str, str]
) -> Iterator[str]:
    for place, (mine, other) in enumerate(zip_longest(ours.input, theirs.input, fillvalue="")):
        stored, expected = candidate.constants.get(mine), reference.constants.get(other)
        if stored is not None and expected is not None:
            yield from _weights(f"weight {mine!r}", stored, expected)
        elif (stored is None) != (expected is None) or bool(mine) != bool(other):
            yield f"input {place} is {_kind(mine, stored)} where the reference has {_kind(other, expected)}"
        elif mine and same.get(mine, mine) != other and (mine in same or other in same.values()):
            yield f"input {place} is {mine!r} where the reference takes {other!r}"


def _kind(name: str, stored: NDArray[Any] | None) -> str:
    if not name:
        return "absent"
    return f"{name!r}" if stored is None else f"the stored {name!r}"


def _weights(what: str, ours: NDArray[Any], theirs: NDArray[Any]) -> Iterator[str]:
    if ours.dtype != theirs.dtype:
        yield f"{what} is {ours.dtype} where the reference has {theirs.dtype}"
    if ours.shape != theirs.shape:
        if ours.ndim > 1 and ours.shape == theirs.T.shape and np.array_equal(ours, theirs.T):
            yield f"{what} is the reference's transposed"
        else:
            yield f"{what} has shape {list(ours.shape)} where the reference has {list(theirs.shape)}"
        return
    if ours.ndim > 1 and not np.array_equal(ours, theirs) and np.array_equal(ours, np.swapaxes(theirs, -1, -2)):
        yield f"{what} is the reference's transposed"
        return
    yield from _values(what, ours, theirs)


def _values(what: str, ours: NDArray[Any], theirs: NDArray[Any]) -> Iterator[str]:
    if ours.dtype.kind in "fiub" and theirs.dtype.kind in "fiub":
        error = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        allowed = (
            RECOMPUTED_WEIGHT_EPSILONS * epsilon(ours, theirs) * largest(theirs) if theirs.dtype.kind == "f" else 0.0
        )
        differ = ~(error <= allowed) & ~(np.isnan(ours) & np.isnan(theirs)) & (ours != theirs)
    else:
        error = differ = np.asarray(ours != theirs)
    if differ.any():
        ranked = np.where(differ, np.nan_to_num(error.astype(np.float64), nan=np.inf), -1)
        index = tuple(int(i) for i in np.unravel_index(int(ranked.argmax()), ranked.shape))
        told = f"{ours[index]!s} where the reference has {theirs[index]!s}"
        if ours.size == 1:
            yield f"{what} is {told}"
        else:
            yield f"{what} differs in {int(differ.sum())} of {ours.size} elements, most at {list(index)}: {told}"


# What a QuantizeLinear or DequantizeLinear node can hold of a tensor.


def quantiser(graph: Graph, nodes: Sequence[onnx.NodeProto]) -> tuple[onnx.NodeProto, tuple[str, ...]]:
    """The first node of `nodes` that quantises, or the last one of all, and the range that its scale spans."""
    node = next((node for node in nodes if node.op_type == "QuantizeLinear"), nodes[-1])
    scale = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    if scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
        return node, ()
    limits, step = np.iinfo(zero.dtype), float(scale.item())
    low, high = (step * (end - int(zero.item())) for end in (limits.min, limits.max))
    return node, (f"scale {node.input[1]!r} of {step:.4g} spans {low:.4g} to {high:.4g}",)


def spanned(values: NDArray[Any]) -> str:
    """A sentence with the range of the reference's finite values."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "the reference has no finite value there"
    return f"the reference's values span {float(finite.min()):.4g} to {float(finite.max()):.4g}"


# Which node of a stretch that errs is at fault, and in what it differs from the reference's.


@dataclass(frozen=True, slots=True, eq=False)
class Blame:
    """The node at fault, of the candidate, or of the reference where the candidate has lost it, and what is said of it.

    `is_twin` says that both stretches are this one node with the same inputs, so that the same kernel answers.
    """

    node: onnx.NodeProto
    changes: tuple[str, ...]
    is_twin: bool


def blamed(candidate: Graph, reference: Graph, points: Points, point: Point) -> Blame:
    """The node to name where the stretch that makes `point` errs.

    The nodes of both stretches are paired: first those that are equal with their attributes and weights, then those of
    one name, then those of one operator, in order. The first node in the reference's order that changed, was lost or
    was added is the one; where all are equal they are wired otherwise, and the last node is.
    """
    of_candidate, of_reference = points.of_candidate, points.of_reference
    ours = [candidate.nodes[place] for place in stretch(candidate, point.candidate, of_candidate)]
    if point.candidate != point.reference or point.reference not in reference.producer:
        return Blame(*quantiser(candidate, ours), False)
    theirs = [reference.nodes[place] for place in stretch(reference, point.reference, of_reference)]
    if len(ours) == len(theirs) == 1:
        found = changes(candidate, ours[0], reference, theirs[0], of_candidate)
        same_reads = [of_candidate.get(name, "") for name in inputs_of(ours[0]) if name not in candidate.constants]
        is_twin = ours[0].op_type == theirs[0].op_type and same_reads == [
            name for name in inputs_of(theirs[0]) if name not in reference.constants
        ]
        return Blame(ours[0], found, is_twin)
    return _among(candidate, ours, reference, theirs, of_candidate)


def _among(
    candidate: Graph,
    ours: list[onnx.NodeProto],
    reference: Graph,
    theirs: list[onnx.NodeProto],
    same: Mapping[str, str],
) -> Blame:
    pairs = _paired(candidate, ours, reference, theirs)
    partner = {id(theirs[there]): ours[here] for here, there in pairs}
    taken = {here for here, _ in pairs}
    for node in theirs:
        mate = partner.get(id(node))
        if mate is None:
            return Blame(node, (f"the candidate has no {named(node)}",), False)
        found = changes(candidate, mate, reference, node, same)
        if [sentence for sentence in found if not sentence.startswith("input ")]:
            return Blame(mate, found, False)
    added = [node for here, node in enumerate(ours) if here not in taken]
    if added:
        return Blame(added[0], (f"the reference has no {named(added[0])}",), False)
    last = theirs[dict(pairs)[len(ours) - 1]]
    return Blame(ours[-1], changes(candidate, ours[-1], reference, last, same), False)


def _paired(
    candidate: Graph, ours: list[onnx.NodeProto], reference: Graph, theirs: list[onnx.NodeProto]
) -> list[tuple[int, int]]:
    contents = Contents()
    mine, other = Fingerprints(candidate, {}, contents), Fingerprints(reference, {}, contents)
    keys = (
        (
            [mine.of_node(candidate.producer[_first(node)]) for node in ours],
            [other.of_node(reference.producer[_first(node)]) for node in theirs],
        ),
        ([node.name for node in ours], [node.name for node in theirs]),
        ([node.op_type for node in ours], [node.op_type for node in theirs]),
    )
    pairs: list[tuple[int, int]] = []
    for left, right in keys:
        free = defaultdict(list)
        for there, key in enumerate(right):
            if key and there not in {pair[1] for pair in pairs}:
                free[key].append(there)
        for here, key in enumerate(left):
            if free.get(key) and here not in {pair[0] for pair in pairs}:
                pairs.append((here, free[key].pop(0)))
    return pairs


def _first(node: onnx.NodeProto) -> str:
    return str(next(filter(None, node.output)))


Model = Artifact | Predictor | str | os.PathLike[str]


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """`feed` are the inputs by the reference's names and in its dtypes."""

    candidate: Graph
    reference: Graph
    feed: Mapping[str, NDArray[Any]]
    precision: Precision
    points: Points

    def without(self, tensors: Collection[str]) -> Pair:
        """The same pair, not compared at `tensors`, which are named as the candidate has them."""
        known = {point.candidate for point in self.points.points}
        every = (set(self.candidate.producer) - known) | set(tensors)
        return replace(self, points=common_points(self.candidate, self.reference, without=every))

    @property
    def candidate_feed(self) -> dict[str, NDArray[Any]]:
        """The inputs that the candidate takes, in its own dtypes."""
        types = {value.name: value.type.tensor_type.elem_type for value in self.candidate.model.graph.input}
        return {name: as_type(self.feed[name], types[name]) for name in self.candidate.inputs if name in self.feed}


def pair_of(candidate: Model, reference: Model, inputs: Inputs) -> Pair:
    """Both models, loaded. A single input or output of each belongs together, whatever it is called."""
    theirs, other = opened(reference, "reference")
    _, mine = opened(candidate, "candidate")
    feed = checked_feed(inputs, theirs.signature)
    for model in (mine, other):
        find_known_crashes(model).refuse(feed)
    reference_graph = graph_of(other)
    candidate_graph = _with_ends(graph_of(mine), reference_graph)
    return Pair(
        candidate=candidate_graph,
        reference=reference_graph,
        feed=feed,
        precision=precision_of(candidate_graph, reference_graph),
        points=common_points(candidate_graph, reference_graph),
    )


def opened(model: Model, side: str) -> tuple[Artifact, onnx.ModelProto]:
    """The artifact behind `model` and its graph with all weights; `side` is what an error calls it."""
    if isinstance(model, Predictor):
        if model.artifact is None:
            raise UsageError(
                f"the {side} {model.subject} is no file with a graph to look into: give an artifact, the path of an "
                "ONNX file, or a predictor of one"
            )
        model = model.artifact
    if isinstance(model, Artifact):
        artifact, loaded = model, load_model(model)
    else:
        artifact = open_artifact(model)
        loaded = onnx.load(artifact.path, load_external_data=False)
    onnx.load_external_data_for_model(loaded, str(artifact.path.parent))
    return artifact, loaded


def _with_ends(candidate: Graph, reference: Graph) -> Graph:
    """`candidate` with its one input and its one output named as those of `reference`, where each side has one."""
    names = {}
    for ours, theirs in ((candidate.inputs, reference.inputs), (candidate.outputs, reference.outputs)):
        if len(ours) == len(theirs) == 1 and ours != theirs:
            if {theirs[0]} & {*candidate.producer, *candidate.constants, *candidate.inputs}:
                raise UsageError(
                    f"the candidate calls {ours[0]!r} what the reference calls {theirs[0]!r}, and has another tensor "
                    "of that name: name both alike"
                )
            names[ours[0]] = theirs[0]
    return candidate.renamed(names) if names else candidate
