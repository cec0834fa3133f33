"""The walk over all points of two graphs, in order, until one is off by more than its inputs explain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError
from pytest_modelserve.parity.locating.blame import Blame, blamed
from pytest_modelserve.parity.locating.divergence import Divergence, Kind
from pytest_modelserve.parity.locating.graph import Graph
from pytest_modelserve.parity.locating.marking import Values, answers, marked_session, session_of
from pytest_modelserve.parity.locating.nodes import name_of
from pytest_modelserve.parity.locating.pairing import Pair
from pytest_modelserve.parity.locating.points import Point
from pytest_modelserve.parity.locating.precision import (
    OTHER_KERNEL_STEPS,
    SAME_KERNEL_STEPS,
    WHOLE_GRAPH_STEPS,
    Gap,
    epsilon,
    error_steps,
    gap,
)
from pytest_modelserve.parity.locating.quantisers import spanned
from pytest_modelserve.parity.locating.stretches import Batch, Made, NoArrayError, Stretches
from pytest_modelserve.parity.locating.torch_source import source_of

# What one rounding of the inputs does is a sample; the worst that rounding does is some times larger.
_ROUNDINGS = 8
# An operator that is off by so much, relative to its values, cannot leave the answers as they are.
_GROSS = 1e-2


def located(pair: Pair) -> Divergence | None:
    """Where the candidate of `pair` first errs; see `locate_divergence`."""
    while True:
        try:
            return _located(pair)
        except NoArrayError as error:
            pair = pair.without(error.tensors)


def _located(pair: Pair) -> Divergence | None:
    stretches = Stretches(pair)
    differing = stretches.differing()
    if not differing:
        return None
    for batch in stretches.batches(differing):
        if _are_equal(stretches.candidate_ends, stretches.reference_ends):
            break
        for each in batch.made():
            found = _local(batch, each, stretches)
            if found is not None:
                return found
    if stretches.candidate_ends is None:  # no operator is to blame, so the reason is told as onnxruntime tells it
        answers(marked_session(pair.candidate, ()), pair.candidate_feed, pair.candidate.outputs)
    return _on_the_way(pair, stretches) or _optimised(pair, stretches)


def _local(batch: Batch, each: Made, stretches: Stretches) -> Divergence | None:
    """The divergence at one point, given the reference's values before it."""
    pair = batch.pair
    if isinstance(each.candidate, str):
        if _answers_agree(stretches):
            return None
        blame = blamed(pair.candidate, pair.reference, pair.points, each.point)
        return _divergence(pair, each.point, blame, Gap(None, None, None, each.candidate), "operator")
    found = gap(each.candidate, each.reference, pair.precision, steps=SAME_KERNEL_STEPS)
    if found is None:
        return None
    blame = blamed(pair.candidate, pair.reference, pair.points, each.point)
    if pair.precision == "same" and not (blame.is_twin and blame.changes):
        found = _beyond_rounding(batch, each, stretches)
        if found is None:
            return None
    if blame.changes and blame.node.op_type in ("QuantizeLinear", "DequantizeLinear") and pair.precision != "same":
        blame = replace(blame, changes=(*blame.changes, spanned(each.reference)))
    return _divergence(pair, each.point, blame, found, "operator")


def _beyond_rounding(batch: Batch, each: Made, stretches: Stretches) -> Gap | None:
    """The gap of a stretch that is written otherwise, where neither its rounding nor a clash of names explains it."""
    assert not isinstance(each.candidate, str)
    allowed = OTHER_KERNEL_STEPS + _ROUNDINGS * error_steps(batch.rounded(each.point), each.reference)
    found = gap(each.candidate, each.reference, "same", steps=allowed)
    is_gross = found is not None and (
        bool(found.problem) or found.multiple * allowed * epsilon(each.reference) > _GROSS
    )
    return None if is_gross and _answers_agree(stretches) else found


def _answers_agree(stretches: Stretches) -> bool:
    """Whether the answers agree closely, so that two tensors of one name that do not are two different things.

    Exporters number their tensors, and a number that one graph left out shifts all that follow.
    """
    ends = (stretches.candidate_ends, stretches.reference_ends)
    return _gap_of_ends(stretches.pair, *ends, steps=OTHER_KERNEL_STEPS) is None


def _on_the_way(pair: Pair, stretches: Stretches) -> Divergence | None:
    """The first tensor beyond bounds in two whole runs, None where the answers themselves are within."""
    if _gap_of_ends(pair, stretches.candidate_ends, stretches.reference_ends) is None:
        return None
    for batch in stretches.batches(pair.points.points):
        names = [point.candidate for point in batch.points]
        ours = answers(marked_session(pair.candidate, names), pair.candidate_feed, names)
        for point in batch.points:
            found = gap(ours[point.candidate], batch.values[point.reference], pair.precision, steps=WHOLE_GRAPH_STEPS)
            if found is not None:
                blame = blamed(pair.candidate, pair.reference, pair.points, point)
                return _divergence(pair, point, blame, found, "on the way")
    return None


def _optimised(pair: Pair, stretches: Stretches) -> Divergence | None:
    """The first answer that differs once onnxruntime has optimised both graphs, and that its optimiser changed."""
    ours = _optimised_ends(pair.candidate, pair.candidate_feed)
    theirs = _optimised_ends(pair.reference, pair.feed)
    found = _gap_of_ends(pair, ours, theirs)
    changed = _gap_of_ends(pair, ours, stretches.candidate_ends) or _gap_of_ends(pair, theirs, stretches.reference_ends)
    if found is None or changed is None:
        return None
    name, worst = found
    point = next((point for point in pair.points.points if point.reference == name), None)
    if point is None:
        return None
    last = pair.candidate.nodes[pair.candidate.producer[point.candidate]]
    return _divergence(pair, point, Blame(last, (), False), worst, "optimised")


def _optimised_ends(graph: Graph, feed: Mapping[str, NDArray[Any]]) -> Values | None:
    try:
        return answers(session_of(graph.model, graph.constants, optimised=True), feed, graph.outputs)
    except InputError:
        return None


def _gap_of_ends(
    pair: Pair, ours: Values | None, theirs: Values | None, *, steps: int = WHOLE_GRAPH_STEPS
) -> tuple[str, Gap] | None:
    """The first answer that is off by more than `steps`, by default what a whole graph's rounding explains."""
    if ours is None or theirs is None:
        return "", Gap(None, None, None, "the model does not run")
    for name, reference in theirs.items():
        if name in ours:
            found = gap(ours[name], reference, pair.precision, steps=steps)
            if found is not None:
                return name, found
    return None


def _are_equal(ours: Values | None, theirs: Values) -> bool:
    """Whether both gave the same answers, bit for bit."""
    return (
        ours is not None
        and ours.keys() == theirs.keys()
        and all(
            ours[name].dtype == theirs[name].dtype
            and np.array_equal(ours[name], theirs[name], equal_nan=theirs[name].dtype.kind == "f")
            for name in theirs
        )
    )


def _divergence(pair: Pair, point: Point, blame: Blame, found: Gap, kind: Kind) -> Divergence:
    return Divergence(
        node=name_of(blame.node),
        operator=blame.node.op_type,
        tensor=point.reference,
        index=found.index,
        reference_value=found.reference,
        candidate_value=found.candidate,
        local=kind == "operator",
        kind=kind,
        source=source_of(blame.node) or _source_in_reference(pair, point),
        changes=blame.changes,
        problem=found.problem,
        sqnr_db=found.sqnr_db,
        agreeing=pair.points.points.index(point),
    )


def _source_in_reference(pair: Pair, point: Point) -> str:
    place = pair.reference.producer.get(point.reference)
    return "" if place is None else source_of(pair.reference.nodes[place])
