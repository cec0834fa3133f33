"""Where two models first part: the question as users ask it; what answers it loads onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from pytest_modelserve._onnx.sessions import Values, answers, session_of
from pytest_modelserve.errors import InputError
from pytest_modelserve.metrics.tolerance import OTHER_KERNEL_EPSILONS, SAME_KERNEL_EPSILONS, WHOLE_GRAPH_EPSILONS
from pytest_modelserve.parity.divergence.precision import (
    Gap,
    epsilon,
    error_steps,
    gap,
)
from pytest_modelserve.parity.divergence.subgraphs import Batch, Made, NoArrayError, Stretches, marked_session
from pytest_modelserve.parity.divergence.tensor_pairs import Blame, Point, blamed, name_of, spanned

if TYPE_CHECKING:
    from pytest_modelserve.metrics import Outputs
    from pytest_modelserve.parity.divergence.computation_graph import Graph
    from pytest_modelserve.parity.divergence.tensor_pairs import Model, Pair
    from pytest_modelserve.serving import Predictor
    from pytest_modelserve.serving.inputs import Inputs


# Where two graphs first part, as a value and as a sentence.


Scalar = float | int | bool | str
Kind = Literal["operator", "on the way", "optimised"]


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first node whose output differs beyond what its inputs explain.

    `node` and `operator` name it as the candidate does; a node that the candidate has lost is named as the reference
    does. `tensor` is its output by the reference's name, `index` the worst element of it (None where the whole tensor
    differs, in shape say), with both values there. `local` is True where the operator errs by itself: the candidate's
    value is what it makes of the reference's own inputs. It is False where no operator does ("on the way": many small
    differences add up) and where only onnxruntime's optimiser brings the difference about ("optimised").

    `changes` are sentences: in what the node's operator, attributes, inputs and stored weights differ. `problem` tells
    NaN, infinities, shapes and dtypes, `sqnr_db` the signal-to-quantisation-noise ratio of the tensor where a lower
    precision was allowed for. `agreeing` is the number of tensors before it that were held against the reference's and
    agree. `source` is the line of the torch module, "" where the file does not tell it.
    """

    node: str
    operator: str
    tensor: str
    index: tuple[int, ...] | None
    reference_value: Scalar | None
    candidate_value: Scalar | None
    local: bool
    kind: Kind
    source: str = ""
    changes: tuple[str, ...] = ()
    problem: str = ""
    sqnr_db: float | None = None
    agreeing: int = 0

    def __str__(self) -> str:
        return "; ".join(self._parts())

    def _parts(self) -> Iterator[str]:
        where = f"{self.operator} {self.node!r}"
        match self.kind:
            case "operator":
                yield f"{where} is the first to err, given the reference's own inputs"
            case "on the way":
                yield f"no operator errs by itself, the difference grows on the way: first beyond bounds after {where}"
            case "optimised":
                yield f"the graphs agree until onnxruntime optimises them; then the output of {where} differs"
        yield self._values()
        yield from self.changes
        if self.agreeing:
            yield f"the {self.agreeing} tensors before it agree" if self.agreeing > 1 else "the tensor before it agrees"
        if self.source:
            yield f"from {self.source}"

    def _values(self) -> str:
        told = f"tensor {self.tensor!r}"
        if self.index is not None:
            told += f" at {list(self.index)} is {_told(self.candidate_value)} where the reference has "
            told += _told(self.reference_value)
        if self.problem:
            told += f" ({self.problem})" if self.index is not None else f": {self.problem}"
        if self.sqnr_db is not None:
            told += f" (SQNR {self.sqnr_db:.1f} dB)"
        return told


def _told(value: Scalar | None) -> str:
    return f"{value:.7g}" if isinstance(value, float) else repr(value)


def locate_divergence(candidate: Model, reference: Model, inputs: Inputs) -> Divergence | None:
    """The first node of `candidate` that errs on the values that `reference` has before it; None where none does.

    Both are an artifact, a path, or a predictor of one; `inputs` is one array or a mapping from input names to arrays,
    as for `predict`. The graphs are held against each other at every tensor that has one name in both. Stretches
    between such tensors that are equal, operators, attributes and weights, cannot differ and are passed over; every
    other is run by onnxruntime, unoptimised and on one thread, on the reference's own values, so that a difference is
    seen where it arises and not where it arrives. The first in the reference's order that is off by more than rounding
    is the divergence. Between a float model and a quantised or fp16 one, a stretch may lose signal down to the floor
    of that precision (int4 18 dB, int8 25, fp16 55).

    Where no operator errs but the answers differ, the first tensor beyond bounds is told with `local` False; likewise
    where only the optimised graphs differ. None also where both the plain and the optimised answers are equal.

    UsageError for a predictor without a file and for models without a common input or output, InputError for inputs
    that do not fit or on which the reference does not run, ArtifactError for a file that cannot be opened.
    """
    from pytest_modelserve.parity.divergence.tensor_pairs import pair_of

    pass

    return located(pair_of(candidate, reference, inputs))


# The line of a torch module that a node was exported from.


_KEY = "pkg.torch.onnx.stack_trace"
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in \w+\n\s*(?P<code>[^\n]*)')
_TORCH = re.compile(r"[\\/]site-packages[\\/]torch[\\/]")


def source_of(node: onnx.NodeProto) -> str:
    """`/models/net.py:12: x = self.norm(x)`, the innermost line outside torch itself; "" for a node that tells none.

    torch's own lines are told only where there are no others.
    """
    trace = next((entry.value for entry in node.metadata_props if entry.key == _KEY), "")
    frames = list(_FRAME.finditer(trace))
    users = [frame for frame in frames if not _TORCH.search(frame["file"])] or frames
    return f"{users[-1]['file']}:{users[-1]['line']}: {users[-1]['code'].strip()}" if users else ""


# The walk over all points of two graphs, in order, until one is off by more than its inputs explain.


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
    found = gap(each.candidate, each.reference, pair.precision, steps=SAME_KERNEL_EPSILONS)
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
    allowed = OTHER_KERNEL_EPSILONS + _ROUNDINGS * error_steps(batch.rounded(each.point), each.reference)
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
    return _gap_of_ends(stretches.pair, *ends, steps=OTHER_KERNEL_EPSILONS) is None


def _on_the_way(pair: Pair, stretches: Stretches) -> Divergence | None:
    """The first tensor beyond bounds in two whole runs, None where the answers themselves are within."""
    if _gap_of_ends(pair, stretches.candidate_ends, stretches.reference_ends) is None:
        return None
    for batch in stretches.batches(pair.points.points):
        names = [point.candidate for point in batch.points]
        ours = answers(marked_session(pair.candidate, names), pair.candidate_feed, names)
        for point in batch.points:
            found = gap(
                ours[point.candidate], batch.values[point.reference], pair.precision, steps=WHOLE_GRAPH_EPSILONS
            )
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
    pair: Pair, ours: Values | None, theirs: Values | None, *, steps: int = WHOLE_GRAPH_EPSILONS
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


# Who is at fault: eager torch, the graph as it was written and the graph as onnxruntime optimises it, side by side.


Fault = Literal["none", "export", "optimiser", "export and optimiser"]

_FAULTS: dict[tuple[bool, bool], Fault] = {
    (False, False): "none",
    (True, False): "export",
    (False, True): "optimiser",
    (True, True): "export and optimiser",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where answers part on the way from eager torch to what is served.

    "export": the graph itself answers otherwise than the eager model, whatever runs it; "optimiser": onnxruntime
    answers otherwise once it has optimised the graph. `exported` and `optimised` are sentences on the worst output of
    each step, "" where it agrees.
    """

    fault: Fault
    exported: str = ""
    optimised: str = ""

    def __str__(self) -> str:
        if self.fault == "none":
            return "eager torch, the plain and the optimised graph agree"
        parts = []
        if self.exported:
            parts.append(f"the exported graph answers otherwise than the eager model: {self.exported}")
        if self.optimised:
            parts.append(f"onnxruntime's optimiser changes the graph's answers: {self.optimised}")
        return "; ".join(parts)


def fault_origin(candidate: Model, eager: Predictor, inputs: Inputs) -> Origin:
    """Whether the export or onnxruntime's optimiser makes `candidate` answer otherwise than `eager`.

    `candidate` is an artifact, a path, or a predictor of one; `eager` is what it was exported from, served. Answers
    agree within what rounding grows to in a whole graph, 2048 machine epsilons of a value and of the output's scale.
    The errors are those of `locate_divergence`.
    """
    from pytest_modelserve._onnx.sessions import answers, session_of
    from pytest_modelserve.parity.divergence.computation_graph import graph_of
    from pytest_modelserve.parity.divergence.tensor_pairs import opened
    from pytest_modelserve.serving.inputs import checked_feed

    artifact, model = opened(candidate, "candidate")
    feed = checked_feed(inputs, artifact.signature)
    graph = graph_of(model)
    plain, optimised = (
        answers(session_of(graph.model, graph.constants, optimised=is_optimised), feed, graph.outputs)
        for is_optimised in (False, True)
    )
    exported, changed = _told_origin(plain, eager.predict(inputs)), _told_origin(optimised, plain)
    return Origin(_FAULTS[bool(exported), bool(changed)], exported, changed)


def _told_origin(candidate: Outputs, reference: Outputs) -> str:
    """A sentence on the first output that differs beyond rounding, or ""."""
    from pytest_modelserve.metrics import pair_outputs
    from pytest_modelserve.parity.divergence.precision import gap

    found = pair_outputs(candidate, reference)
    for name, expected in reference.items():
        if name not in found:
            return f"output {name!r} is missing"
        worst = gap(found[name], expected, "same", steps=WHOLE_GRAPH_EPSILONS)
        if worst is not None:
            where = f" at {list(worst.index)}" if worst.index is not None else ""
            values = f"{worst.candidate:.7g}, not {worst.reference:.7g}" if where else ""
            return f"output {name!r}{where} is {values}" if not worst.problem else f"output {name!r}: {worst.problem}"
    return ""
