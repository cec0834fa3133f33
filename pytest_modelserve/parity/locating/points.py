"""Where two graphs can be held against each other: the tensors that both have."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from pytest_modelserve.errors import UsageError
from pytest_modelserve.parity.locating.graph import Graph, inputs_of, stretch

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
