"""Matching of two ONNX models: the tensors that both compute, and the node to report where one diverges."""

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
    ArrayIds,
    Fingerprints,
    Graph,
    as_type,
    inputs_of,
    load_graph,
)
from pytest_modelserve.parity.divergence.precision import Precision, epsilon, largest, precision_of
from pytest_modelserve.serving import Predictor
from pytest_modelserve.serving.crash_guards import find_known_crashes
from pytest_modelserve.serving.inputs import Inputs, checked_feed

Model = Artifact | Predictor | str | os.PathLike[str]

_QUANTIZED_WEIGHT = "_quantized"  # what onnxruntime's quantizer appends to the name of a weight
_FUSED_INTO_RANGE = ("Clip", "Relu")  # what it leaves out before QuantizeLinear, whose range clips as well


@dataclass(frozen=True, slots=True, eq=False)
class TensorPair:
    """One tensor by its name in each graph; `order` is its position in the reference's graph."""

    candidate: str
    reference: str
    order: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class TensorMatching:
    """The common inputs of two graphs, which are never in question, and the tensor pairs in order.

    `by_candidate` maps the candidate's names of all of them to the reference's, `by_reference` the reference's names to
    themselves.
    """

    inputs: tuple[str, ...]
    pairs: tuple[TensorPair, ...]
    by_candidate: Mapping[str, str] = field(init=False)
    by_reference: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        names = {name: name for name in self.inputs} | {pair.candidate: pair.reference for pair in self.pairs}
        object.__setattr__(self, "by_candidate", names)
        object.__setattr__(self, "by_reference", {name: name for name in names.values()})


@dataclass(frozen=True, slots=True, eq=False)
class ModelPair:
    """Two loaded models. `feed` holds the inputs by the reference's names and in its dtypes."""

    candidate: Graph
    reference: Graph
    feed: Mapping[str, NDArray[Any]]
    precision: Precision
    matching: TensorMatching

    def without(self, tensors: Collection[str]) -> ModelPair:
        """Return the same pair without the tensor pairs of `tensors` (the candidate's names)."""
        known = {pair.candidate for pair in self.matching.pairs}
        excluded = (set(self.candidate.producer) - known) | set(tensors)
        return replace(self, matching=match_tensors(self.candidate, self.reference, excluded=excluded))

    @property
    def candidate_feed(self) -> dict[str, NDArray[Any]]:
        """The inputs that the candidate takes, in its own dtypes."""
        types = {value.name: value.type.tensor_type.elem_type for value in self.candidate.model.graph.input}
        return {name: as_type(self.feed[name], types[name]) for name in self.candidate.inputs if name in self.feed}


@dataclass(frozen=True, slots=True, eq=False)
class DivergentNode:
    """The node to report, and how it differs from the reference's.

    It is the candidate's node, or the reference's where the candidate has lost it. `same_kernel` says that both
    subgraphs are this one node with the same inputs, so that the same kernel computes them.
    """

    node: onnx.NodeProto
    changes: tuple[str, ...]
    same_kernel: bool


def load_pair(candidate: Model, reference: Model, inputs: Inputs) -> ModelPair:
    """Load both models. A single input or output of each is matched whatever its name."""
    artifact, reference_model = load_artifact(reference, "reference")
    _, candidate_model = load_artifact(candidate, "candidate")
    feed = checked_feed(inputs, artifact.signature)
    for model in (candidate_model, reference_model):
        find_known_crashes(model).check(feed)
    theirs = load_graph(reference_model)
    ours = _with_single_names(load_graph(candidate_model), theirs)
    return ModelPair(ours, theirs, feed, precision_of(ours, theirs), match_tensors(ours, theirs))


def load_artifact(model: Model, side: str) -> tuple[Artifact, onnx.ModelProto]:
    """Return the artifact of `model` and its graph with all weights; `side` names it in errors."""
    if isinstance(model, Predictor):
        if model.artifact is None:
            raise UsageError(
                f"{side} {model.subject} has no ONNX file: give an artifact, the path of an ONNX file, or a predictor "
                "of one"
            )
        model = model.artifact
    if isinstance(model, Artifact):
        artifact, loaded = model, load_model(model)
    else:
        artifact = open_artifact(model)
        loaded = onnx.load(artifact.path, load_external_data=False)
    onnx.load_external_data_for_model(loaded, str(artifact.path.parent))
    return artifact, loaded


def match_tensors(candidate: Graph, reference: Graph, *, excluded: Collection[str] = ()) -> TensorMatching:
    """Match the tensors that nodes of both graphs compute under one name, and dequantized tensors with their originals.

    The output of `DequantizeLinear` stands for the quantized tensor or weight, which separates the quantization noise
    from that of the operator behind it. UsageError if the graphs have no input or no output in common.
    """
    inputs = tuple(name for name in reference.inputs if name in set(candidate.inputs))
    for what, ours, theirs in (
        ("input", candidate.inputs, reference.inputs),
        ("output", candidate.outputs, reference.outputs),
    ):
        if theirs and not set(ours) & set(theirs):
            raise UsageError(
                f"the models have no {what} name in common: the candidate has {_listed(ours)}, the reference "
                f"{_listed(theirs)}; rename them alike"
            )
    every = (*_same_names(candidate, reference), *_dequantized(candidate, reference, inputs))
    pairs = sorted((pair for pair in every if pair.candidate not in excluded), key=lambda pair: pair.order)
    return TensorMatching(inputs, tuple(_sources_first(candidate, pairs, inputs)))


def find_divergent_node(
    candidate: Graph, reference: Graph, matching: TensorMatching, pair: TensorPair
) -> DivergentNode:
    """Return the node to report where the subgraph that computes `pair` diverges.

    The nodes of both subgraphs are paired: first equal nodes with equal attributes and weights, then nodes of one name,
    then of one operator, in order. The first node in the reference's order that was changed, removed or added is
    reported; the last node where all are equal, because then they are wired differently.
    """
    by_candidate = matching.by_candidate
    ours = [candidate.nodes[at] for at in candidate.subgraph(pair.candidate, by_candidate)]
    if pair.candidate != pair.reference or pair.reference not in reference.producer:
        return DivergentNode(*_quantizer(candidate, ours), False)
    theirs = [reference.nodes[at] for at in reference.subgraph(pair.reference, matching.by_reference)]
    if len(ours) == len(theirs) == 1:
        changes = _changes(candidate, ours[0], reference, theirs[0], by_candidate)
        our_reads = [by_candidate.get(name, "") for name in inputs_of(ours[0]) if name not in candidate.constants]
        their_reads = [name for name in inputs_of(theirs[0]) if name not in reference.constants]
        same_kernel = ours[0].op_type == theirs[0].op_type and our_reads == their_reads
        return DivergentNode(ours[0], changes, same_kernel)
    pairs = _pair_nodes(candidate, ours, reference, theirs)
    partner = {there: here for here, there in pairs}
    for there, node in enumerate(theirs):
        if there not in partner:
            return DivergentNode(node, (f"the candidate has no {_describe_node(node)}",), False)
        mate = ours[partner[there]]
        changes = _changes(candidate, mate, reference, node, by_candidate)
        if [sentence for sentence in changes if not sentence.startswith("input ")]:
            return DivergentNode(mate, changes, False)
    matched = {here for here, _ in pairs}
    added = [node for here, node in enumerate(ours) if here not in matched]
    if added:
        return DivergentNode(added[0], (f"the reference has no {_describe_node(added[0])}",), False)
    last = theirs[dict(pairs)[len(ours) - 1]]
    return DivergentNode(ours[-1], _changes(candidate, ours[-1], reference, last, by_candidate), False)


def node_name(node: onnx.NodeProto) -> str:
    """Return the name of `node`, or of its first output."""
    return str(node.name or next(filter(None, node.output), ""))


def describe_range(values: NDArray[Any]) -> str:
    """Describe the range of the reference's finite values."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return "the reference has no finite value there"
    return f"the reference's values span {float(finite.min()):.4g} to {float(finite.max()):.4g}"


def _with_single_names(candidate: Graph, reference: Graph) -> Graph:
    """Give the candidate's only input and only output the reference's names, where each side has one."""
    names = {}
    for ours, theirs in ((candidate.inputs, reference.inputs), (candidate.outputs, reference.outputs)):
        if len(ours) == len(theirs) == 1 and ours != theirs:
            if {theirs[0]} & {*candidate.producer, *candidate.constants, *candidate.inputs}:
                raise UsageError(
                    f"the candidate's {ours[0]!r} corresponds to the reference's {theirs[0]!r}, but the candidate has "
                    "another tensor of that name: rename one of them"
                )
            names[ours[0]] = theirs[0]
    return candidate.renamed(names) if names else candidate


def _sources_first(candidate: Graph, pairs: Sequence[TensorPair], inputs: Sequence[str]) -> Iterator[TensorPair]:
    """Yield `pairs` in order, but each after those that `candidate` computes it from.

    The order changes only where the graphs are wired differently. The candidate may compute an early tensor from one
    that the reference has later; that one is then the divergence.
    """
    by_name = {pair.candidate: pair for pair in pairs}
    boundary = {*by_name, *inputs}
    reads = {
        name: {read for at in candidate.subgraph(name, boundary) for read in inputs_of(candidate.nodes[at])}
        & by_name.keys()
        for name in by_name
    }
    done: set[str] = set()
    for pair in pairs:
        pending = [pair.candidate]
        while pending:
            missing = reads[pending[-1]] - done
            if missing:
                pending.extend(sorted(missing, key=lambda name: by_name[name].order, reverse=True))
                continue
            name = pending.pop()
            if name not in done:
                done.add(name)
                yield by_name[name]


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _same_names(candidate: Graph, reference: Graph) -> Iterator[TensorPair]:
    computed = set(candidate.tensors())
    others = {name for node in candidate.nodes if node.op_type != "QuantizeLinear" for name in inputs_of(node)}
    quantized = {node.input[0] for node in candidate.nodes if node.op_type == "QuantizeLinear"}
    only_quantized = quantized - others - set(candidate.outputs)
    for name in reference.tensors():
        if name in computed:
            ours = candidate.nodes[candidate.producer[name]].op_type
            theirs = reference.nodes[reference.producer[name]].op_type
            if ours == theirs or theirs not in _FUSED_INTO_RANGE or name not in only_quantized:
                yield TensorPair(name, name, (reference.producer[name], 1))


def _dequantized(candidate: Graph, reference: Graph, inputs: tuple[str, ...]) -> Iterator[TensorPair]:
    known = {*inputs, *reference.producer}
    first_reader: dict[str, int] = {}
    for at, node in enumerate(reference.nodes):
        for name in inputs_of(node):
            first_reader.setdefault(name, at)
    for node in candidate.nodes:
        if node.op_type == "DequantizeLinear" and node.output[0] not in reference.producer:
            name = _original(node, candidate, reference)
            if name in known or name in reference.constants:
                yield TensorPair(node.output[0], name, (first_reader.get(name, len(reference.nodes)), 0))


def _original(node: onnx.NodeProto, candidate: Graph, reference: Graph) -> str:
    """Return the reference's name of what `node` dequantizes, or ""."""
    stored = node.input[0]
    if stored in candidate.producer:
        maker = candidate.nodes[candidate.producer[stored]]
        return maker.input[0] if maker.op_type == "QuantizeLinear" else ""
    name = stored.removesuffix(_QUANTIZED_WEIGHT)
    ours, theirs = candidate.constants.get(stored), reference.constants.get(name)
    return name if ours is not None and theirs is not None and ours.shape == theirs.shape else ""


def _pair_nodes(
    candidate: Graph, ours: list[onnx.NodeProto], reference: Graph, theirs: list[onnx.NodeProto]
) -> list[tuple[int, int]]:
    array_ids = ArrayIds()
    our_prints, their_prints = Fingerprints(candidate, {}, array_ids), Fingerprints(reference, {}, array_ids)
    keys = (
        (
            [our_prints.of_node(candidate.producer[_first_output(node)]) for node in ours],
            [their_prints.of_node(reference.producer[_first_output(node)]) for node in theirs],
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


def _first_output(node: onnx.NodeProto) -> str:
    return str(next(filter(None, node.output)))


def _describe_node(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node_name(node)!r}"


def _quantizer(graph: Graph, nodes: Sequence[onnx.NodeProto]) -> tuple[onnx.NodeProto, tuple[str, ...]]:
    """Return the first quantizing node of `nodes`, or the last of all, and the range that its scale spans."""
    node = next((node for node in nodes if node.op_type == "QuantizeLinear"), nodes[-1])
    scale = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    if scale is None or zero is None or scale.size != 1 or zero.dtype.kind not in "iu":
        return node, ()
    limits, step = np.iinfo(zero.dtype), float(scale.item())
    low, high = (step * (end - int(zero.item())) for end in (limits.min, limits.max))
    return node, (f"scale {node.input[1]!r} of {step:.4g} spans {low:.4g} to {high:.4g}",)


def _changes(
    candidate: Graph, ours: onnx.NodeProto, reference: Graph, theirs: onnx.NodeProto, names: Mapping[str, str]
) -> tuple[str, ...]:
    """Describe each difference between two nodes; `names` maps the candidate's matched tensors to the reference's.

    Differences in the last bits of stored weights do not count.
    """
    if (ours.domain, ours.op_type) != (theirs.domain, theirs.op_type):
        return (f"operator is {ours.op_type} where the reference has {theirs.op_type}",)
    return (
        *_attribute_changes(_attributes(candidate, ours), _attributes(reference, theirs)),
        *_input_changes(candidate, ours, reference, theirs, names),
    )


def _attributes(graph: Graph, node: onnx.NodeProto) -> dict[str, Any]:
    """Return the value of each attribute, including the defaults of the operator's schema."""
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


def _attribute_changes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs:
            side, absent = ("candidate", "reference") if name in ours else ("reference", "candidate")
            value = _format_value(ours.get(name, theirs.get(name)))
            yield f"attribute {name} is {value} in the {side} and absent in the {absent}"
        elif ours[name] != theirs[name]:
            mine, other = _format_value(ours[name]), _format_value(theirs[name])
            yield f"attribute {name} is {mine} where the reference has {other}"


def _format_value(value: Any) -> str:
    if isinstance(value, bytes):
        return repr(value.decode(errors="replace"))
    if isinstance(value, float):
        return f"{value:g}"
    return f"a {type(value).__name__}" if hasattr(value, "SerializeToString") else str(value)


def _input_changes(
    candidate: Graph, ours: onnx.NodeProto, reference: Graph, theirs: onnx.NodeProto, names: Mapping[str, str]
) -> Iterator[str]:
    for at, (mine, other) in enumerate(zip_longest(ours.input, theirs.input, fillvalue="")):
        stored, expected = candidate.constants.get(mine), reference.constants.get(other)
        if stored is not None and expected is not None:
            yield from _weight_changes(f"weight {mine!r}", stored, expected)
        elif (stored is None) != (expected is None) or bool(mine) != bool(other):
            values = f"{_format_input(mine, stored)} where the reference has {_format_input(other, expected)}"
            yield f"input {at} is {values}"
        elif mine and names.get(mine, mine) != other and (mine in names or other in names.values()):
            yield f"input {at} is {mine!r} where the reference has {other!r}"


def _format_input(name: str, stored: NDArray[Any] | None) -> str:
    if not name:
        return "absent"
    return f"{name!r}" if stored is None else f"the stored {name!r}"


def _weight_changes(what: str, ours: NDArray[Any], theirs: NDArray[Any]) -> Iterator[str]:
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
    if ours.dtype.kind in "fiub" and theirs.dtype.kind in "fiub":
        error = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        step = epsilon(ours, theirs) * largest(theirs) if theirs.dtype.kind == "f" else 0.0
        allowed = RECOMPUTED_WEIGHT_EPSILONS * step
        differ = ~(error <= allowed) & ~(np.isnan(ours) & np.isnan(theirs)) & (ours != theirs)
    else:
        error = differ = np.asarray(ours != theirs)
    if not differ.any():
        return
    ranked = np.where(differ, np.nan_to_num(error.astype(np.float64), nan=np.inf), -1)
    index = tuple(int(i) for i in np.unravel_index(int(ranked.argmax()), ranked.shape))
    values = f"{ours[index]!s} where the reference has {theirs[index]!s}"
    if ours.size == 1:
        yield f"{what} is {values}"
    else:
        yield f"{what} differs in {int(differ.sum())} of {ours.size} elements, most at {list(index)}: {values}"
