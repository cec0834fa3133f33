"""Which node of a stretch that errs is at fault, and in what it differs from the reference's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from pytest_modelserve.parity.locating.fingerprint import Contents, Fingerprints
from pytest_modelserve.parity.locating.graph import Graph, inputs_of, stretch
from pytest_modelserve.parity.locating.nodes import changes, named
from pytest_modelserve.parity.locating.points import Point, Points
from pytest_modelserve.parity.locating.quantisers import quantiser


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
