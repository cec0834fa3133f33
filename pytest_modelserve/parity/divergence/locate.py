"""The first diverging node of two ONNX models, and the stage at fault between eager torch and the served model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from pytest_modelserve._onnx.sessions import Values, open_graph_session, run_session
from pytest_modelserve.errors import InputError
from pytest_modelserve.metrics import Outputs, pair_outputs
from pytest_modelserve.metrics.comparison import Scalar
from pytest_modelserve.metrics.tolerance import OTHER_KERNEL_EPSILONS, SAME_KERNEL_EPSILONS, WHOLE_GRAPH_EPSILONS
from pytest_modelserve.parity.divergence.computation_graph import Graph, load_graph
from pytest_modelserve.parity.divergence.precision import (
    Deviation,
    epsilon,
    error_in_steps,
    find_deviation,
)
from pytest_modelserve.parity.divergence.subgraphs import (
    Batch,
    ComparedTensor,
    SubgraphRuns,
    UnsupportedTensorError,
    session_with_outputs,
)
from pytest_modelserve.parity.divergence.tensor_pairs import (
    DivergentNode,
    ModelPair,
    TensorPair,
    describe_range,
    find_divergent_node,
    load_artifact,
    load_pair,
    node_name,
)
from pytest_modelserve.serving.inputs import checked_feed

if TYPE_CHECKING:
    from pytest_modelserve.parity.divergence.tensor_pairs import Model
    from pytest_modelserve.serving import Predictor
    from pytest_modelserve.serving.inputs import Inputs

Kind = Literal["operator", "accumulated", "optimizer"]
Fault = Literal["none", "export", "optimizer", "export_and_optimizer"]

# One rounding of the inputs is a sample; the worst effect of rounding is some times larger.
_ROUNDINGS = 8
# An operator with such a relative error cannot leave the outputs as they are.
_GROSS_ERROR = 1e-2
_STACK_TRACE = "pkg.torch.onnx.stack_trace"
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in \w+\n\s*(?P<code>[^\n]*)')
_TORCH = re.compile(r"[\\/]site-packages[\\/]torch[\\/]")


def locate_divergence(candidate: Model, reference: Model, inputs: Inputs) -> Divergence | None:
    """Find the first node of `candidate` that diverges from `reference`.

    The graphs are compared at every tensor that has one name in both. Each differing subgraph between such tensors runs
    in onnxruntime, unoptimized and on one thread, on the reference's own values. A difference is therefore found where
    it arises, not where it arrives. Equal subgraphs (operators, attributes and weights) are skipped. The first
    difference beyond rounding, in the reference's order, is the divergence. Between a float model and a quantized or
    fp16 one, a subgraph may lose signal down to the floor of that precision (int4 18 dB, int8 25, fp16 55).

    If no operator diverges but the outputs differ, the first tensor beyond the tolerance is returned with `local`
    False. The same holds if only the optimized graphs differ.

    Args:
        candidate: An artifact, the path of an ONNX file, or a predictor of one.
        reference: The same, for the model to compare with.
        inputs: One array, or a mapping from input names to arrays, as for `predict`. NaN at the same places agree.

    Returns:
        The divergence; None if no node diverges and both the plain and the optimized outputs agree.

    Raises:
        UsageError: A predictor has no file, or the models have no common input or output.
        InputError: The inputs do not fit, or the reference does not run on them.
        ArtifactError: A file cannot be opened.

    Example:
        >>> import onnx.parser
        >>> import pytest_modelserve as ms
        >>> for name, operator in (("candidate", "Relu"), ("champion", "Abs")):
        ...     head = '<ir_version: 10, opset_import: ["": 20]>'
        ...     model = onnx.parser.parse_model(f"{head} g (float[n] x) => (float[n] y) {{ y = {operator}(x) }}")
        ...     onnx.save(model, f"{name}.onnx")
        >>> found = ms.locate_divergence("candidate.onnx", "champion.onnx", np.array([-1.0], np.float32))
        >>> found.node, found.changes
        ('y', ('operator is Relu where the reference has Abs',))
    """
    models = load_pair(candidate, reference, inputs)
    while True:
        try:
            return _locate(models)
        except UnsupportedTensorError as error:
            models = models.without(error.tensors)


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first node whose output differs by more than its inputs explain.

    Attributes:
        node: The node's name in the candidate, or in the reference if the candidate has lost it.
        operator: Its operator.
        tensor: Its output, by the reference's name.
        index: The worst element; None if the whole tensor differs, in shape for example.
        reference_value: The reference's value there.
        candidate_value: The candidate's value there.
        local: Whether the operator diverges by itself, given the reference's inputs.
        kind: "operator" if it does, "accumulated" if small differences add up, "optimizer" if only onnxruntime's
            optimizer makes the difference.
        source: The source line of the torch module, "" if the file does not hold it.
        changes: Sentences on differences in operator, attributes, inputs and stored weights.
        problem: A difference in kind: NaN, infinities, shape, dtype.
        sqnr_db: The tensor's signal-to-quantization-noise ratio, where a lower precision is allowed.
        agreeing: The number of compared tensors before it that agree.
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
                yield f"first diverging node: {where}, given the reference's inputs to it"
            case "accumulated":
                yield f"no single node diverges; small differences accumulate and first exceed the tolerance at {where}"
            case "optimizer":
                yield f"the graphs agree until onnxruntime optimizes them; then the output of {where} differs"
        yield self._values()
        yield from self.changes
        if self.agreeing:
            yield f"the {self.agreeing} tensors before it agree" if self.agreeing > 1 else "the tensor before it agrees"
        if self.source:
            yield f"from {self.source}"

    def _values(self) -> str:
        text = f"tensor {self.tensor!r}"
        if self.index is not None:
            text += f" at {list(self.index)} is {_format_value(self.candidate_value)} where the reference has "
            text += _format_value(self.reference_value)
        if self.problem:
            text += f" ({self.problem})" if self.index is not None else f": {self.problem}"
        if self.sqnr_db is not None:
            text += f" (SQNR {self.sqnr_db:.1f} dB)"
        return text


@dataclass(frozen=True, slots=True)
class FaultOrigin:
    """The stage between eager torch and the served model at which outputs begin to differ.

    "export": the unoptimized graph differs from the eager model. "optimizer": onnxruntime's optimized graph differs
    from the unoptimized one. `exported` and `optimized` describe the first differing output of each step, "" if none.
    """

    fault: Fault
    exported: str = ""
    optimized: str = ""

    def __str__(self) -> str:
        if self.fault == "none":
            return "eager torch, the unoptimized and the optimized graph agree"
        parts = []
        if self.exported:
            parts.append(f"the exported graph differs from the eager model: {self.exported}")
        if self.optimized:
            parts.append(f"onnxruntime's optimizer changes the graph's outputs: {self.optimized}")
        return "; ".join(parts)


_FAULTS: dict[tuple[bool, bool], Fault] = {
    (False, False): "none",
    (True, False): "export",
    (False, True): "optimizer",
    (True, True): "export_and_optimizer",
}


def fault_origin(candidate: Model, eager: Predictor, inputs: Inputs) -> FaultOrigin:
    """Return whether the export or onnxruntime's optimizer makes `candidate` differ from `eager`.

    Outputs agree within what rounding grows to in a whole graph: 2048 machine epsilons of a value plus the output's
    scale. Raises the errors of `locate_divergence`.
    """
    artifact, model = load_artifact(candidate, "candidate")
    feed = checked_feed(inputs, artifact.signature)
    graph = load_graph(model)
    plain, optimized = (
        run_session(open_graph_session(graph.model, graph.constants, optimize=is_optimized), feed, graph.outputs)
        for is_optimized in (False, True)
    )
    exported = _describe_difference(plain, eager.predict(inputs))
    changed = _describe_difference(optimized, plain)
    return FaultOrigin(_FAULTS[bool(exported), bool(changed)], exported, changed)


def _describe_difference(candidate: Outputs, reference: Outputs) -> str:
    """Describe the first output that differs beyond rounding, or return ""."""
    found = pair_outputs(candidate, reference)
    for name, expected in reference.items():
        if name not in found:
            return f"output {name!r} is missing"
        worst = find_deviation(found[name], expected, "same", steps=WHOLE_GRAPH_EPSILONS)
        if worst is not None:
            if worst.problem:
                return f"output {name!r}: {worst.problem}"
            where = f" at {list(worst.index)}" if worst.index is not None else ""
            values = f"{worst.candidate:.7g}, not {worst.reference:.7g}" if where else ""
            return f"output {name!r}{where} is {values}"
    return ""


def _locate(models: ModelPair) -> Divergence | None:
    runs = SubgraphRuns(models)
    differing = runs.differing()
    if not differing:
        return None
    for batch in runs.batches(differing):
        if _bitwise_equal(runs.candidate_outputs, runs.reference_outputs):
            break
        for tensor in batch.compared():
            found = _local_divergence(batch, tensor, runs)
            if found is not None:
                return found
    if runs.candidate_outputs is None:  # no operator is at fault: raise onnxruntime's own error
        run_session(session_with_outputs(models.candidate, ()), models.candidate_feed, models.candidate.outputs)
    return _accumulated_divergence(models, runs) or _optimizer_divergence(models, runs)


def _local_divergence(batch: Batch, tensor: ComparedTensor, runs: SubgraphRuns) -> Divergence | None:
    """Return the divergence of one subgraph, given the reference's values before it."""
    models, pair = batch.models, tensor.pair
    if isinstance(tensor.candidate, str):
        if _outputs_agree(runs):
            return None
        node = find_divergent_node(models.candidate, models.reference, models.matching, pair)
        return _divergence(models, pair, node, Deviation(None, None, None, tensor.candidate), "operator")
    found = find_deviation(tensor.candidate, tensor.reference, models.precision, steps=SAME_KERNEL_EPSILONS)
    if found is None:
        return None
    node = find_divergent_node(models.candidate, models.reference, models.matching, pair)
    if models.precision == "same" and not (node.same_kernel and node.changes):
        found = _beyond_rounding(batch, tensor, runs)
        if found is None:
            return None
    if node.changes and node.node.op_type in ("QuantizeLinear", "DequantizeLinear") and models.precision != "same":
        node = replace(node, changes=(*node.changes, describe_range(tensor.reference)))
    return _divergence(models, pair, node, found, "operator")


def _beyond_rounding(batch: Batch, tensor: ComparedTensor, runs: SubgraphRuns) -> Deviation | None:
    """Return the deviation of a rewritten subgraph that neither its rounding nor a clash of names explains."""
    assert not isinstance(tensor.candidate, str)
    perturbed = batch.perturbed(tensor.pair)
    allowed = OTHER_KERNEL_EPSILONS + _ROUNDINGS * error_in_steps(perturbed, tensor.reference)
    found = find_deviation(tensor.candidate, tensor.reference, "same", steps=allowed)
    is_gross = found is not None and (
        bool(found.problem) or found.multiple * allowed * epsilon(tensor.reference) > _GROSS_ERROR
    )
    return None if is_gross and _outputs_agree(runs) else found


def _outputs_agree(runs: SubgraphRuns) -> bool:
    """Return whether the outputs agree so closely that two differing tensors of one name are unrelated.

    Exporters number their tensors; one number left out shifts all that follow.
    """
    outputs = (runs.candidate_outputs, runs.reference_outputs)
    return _output_deviation(runs.models, *outputs, steps=OTHER_KERNEL_EPSILONS) is None


def _accumulated_divergence(models: ModelPair, runs: SubgraphRuns) -> Divergence | None:
    """Return the first tensor beyond the tolerance in two whole runs, None if the outputs are within."""
    if _output_deviation(models, runs.candidate_outputs, runs.reference_outputs) is None:
        return None
    for batch in runs.batches(models.matching.pairs):
        names = [pair.candidate for pair in batch.pairs]
        ours = run_session(session_with_outputs(models.candidate, names), models.candidate_feed, names)
        for pair in batch.pairs:
            expected = batch.values[pair.reference]
            found = find_deviation(ours[pair.candidate], expected, models.precision, steps=WHOLE_GRAPH_EPSILONS)
            if found is not None:
                node = find_divergent_node(models.candidate, models.reference, models.matching, pair)
                return _divergence(models, pair, node, found, "accumulated")
    return None


def _optimizer_divergence(models: ModelPair, runs: SubgraphRuns) -> Divergence | None:
    """Return the first output that differs once onnxruntime has optimized both graphs, if its optimizer changed it."""
    ours = _optimized_outputs(models.candidate, models.candidate_feed)
    theirs = _optimized_outputs(models.reference, models.feed)
    found = _output_deviation(models, ours, theirs)
    changed = _output_deviation(models, ours, runs.candidate_outputs) or _output_deviation(
        models, theirs, runs.reference_outputs
    )
    if found is None or changed is None:
        return None
    name, worst = found
    pair = next((pair for pair in models.matching.pairs if pair.reference == name), None)
    if pair is None:
        return None
    last = models.candidate.nodes[models.candidate.producer[pair.candidate]]
    return _divergence(models, pair, DivergentNode(last, (), False), worst, "optimizer")


def _optimized_outputs(graph: Graph, feed: Mapping[str, NDArray[Any]]) -> Values | None:
    try:
        return run_session(open_graph_session(graph.model, graph.constants, optimize=True), feed, graph.outputs)
    except InputError:
        return None


def _output_deviation(
    models: ModelPair, ours: Values | None, theirs: Values | None, *, steps: int = WHOLE_GRAPH_EPSILONS
) -> tuple[str, Deviation] | None:
    """Return the first output that is off by more than `steps`, by default what a whole graph's rounding explains."""
    if ours is None or theirs is None:
        return "", Deviation(None, None, None, "the model does not run")
    for name, reference in theirs.items():
        if name in ours:
            found = find_deviation(ours[name], reference, models.precision, steps=steps)
            if found is not None:
                return name, found
    return None


def _bitwise_equal(ours: Values | None, theirs: Values) -> bool:
    return (
        ours is not None
        and ours.keys() == theirs.keys()
        and all(
            ours[name].dtype == theirs[name].dtype
            and np.array_equal(ours[name], theirs[name], equal_nan=theirs[name].dtype.kind == "f")
            for name in theirs
        )
    )


def _divergence(models: ModelPair, pair: TensorPair, node: DivergentNode, found: Deviation, kind: Kind) -> Divergence:
    source = _source_line(node.node)
    if not source and pair.reference in models.reference.producer:
        source = _source_line(models.reference.nodes[models.reference.producer[pair.reference]])
    return Divergence(
        node=node_name(node.node),
        operator=node.node.op_type,
        tensor=pair.reference,
        index=found.index,
        reference_value=found.reference,
        candidate_value=found.candidate,
        local=kind == "operator",
        kind=kind,
        source=source,
        changes=node.changes,
        problem=found.problem,
        sqnr_db=found.sqnr_db,
        agreeing=models.matching.pairs.index(pair),
    )


def _source_line(node: onnx.NodeProto) -> str:
    """Return `/models/net.py:12: x = self.norm(x)`, the innermost line outside torch; "" if the node has no trace.

    A line of torch itself is returned only if there are no others.
    """
    trace = next((entry.value for entry in node.metadata_props if entry.key == _STACK_TRACE), "")
    frames = list(_FRAME.finditer(trace))
    users = [frame for frame in frames if not _TORCH.search(frame["file"])] or frames
    return f"{users[-1]['file']}:{users[-1]['line']}: {users[-1]['code'].strip()}" if users else ""


def _format_value(value: Scalar | None) -> str:
    return f"{value:.7g}" if isinstance(value, float) else repr(value)
