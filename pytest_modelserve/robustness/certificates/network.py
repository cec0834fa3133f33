"""An ONNX graph as a network for bounds: operators in topological order, with constants and shapes of one row.

`Network.of` runs the graph once, unoptimized, on a few rows. The run folds the constants, and tells the shape and dtype
of every value. Every value has the rows on its first axis; shapes here are those of one row, without that axis.

base.py says how to add an operator.

Bounds for branch and bound
---------------------------
`interval_bounds` and `linear_bounds` (bounds.py) take boxes of the input, one row each: a subproblem is a row. Both
take `given`, boxes of any values by name that are intersected with the computed ones: a ReLU whose input is forced to
be non-negative has `given[node.sources[0]]` with a lower bound of 0. Rows whose box became empty (lower > upper) are
infeasible, which the caller finds out by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import STANDARD_DOMAINS, sort_nodes, subgraphs
from pytest_modelserve._onnx.sessions import open_graph_session, run_session
from pytest_modelserve.artifacts.artifact import load_with_weights
from pytest_modelserve.errors import ArtifactError, InputError, UsageError, unknown_choice
from pytest_modelserve.robustness.certificates.base import Node, Operator, refusal
from pytest_modelserve.robustness.certificates.interval_arithmetic import Box
from pytest_modelserve.robustness.certificates.linear_operators import allow_for_folding
from pytest_modelserve.robustness.certificates.operators import operator_of
from pytest_modelserve.robustness.certificates.patterns import (
    check_axes,
    classes_of,
    fused,
    head_of,
    tables_of,
    title_of,
)
from pytest_modelserve.robustness.certificates.quantized_operators import check_quantized

if TYPE_CHECKING:
    import onnx

    from pytest_modelserve.artifacts import Artifact

_PROBE_ROWS = 3
_SECOND_ROWS = 7
"""Rows of a second run, which shows constants that depend on the number of rows."""
_FLOATS = ("float16", "float32", "float64", "bfloat16")
_OPSET_DOMAIN = ("", "ai.onnx")


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """The part of a graph that computes the scores, in topological order.

    Attributes:
        input: Name of the input.
        input_shape: Shape of one row.
        input_dtype: dtype that callers send.
        nodes: Nodes, each after those it reads.
        operators: Bounds of each node, by the name of its output.
        output: Name of the value that holds the scores.
        output_shape: Shape of one row of the scores.
        head: Operators after the scores that keep their order and were left out, the last one first: Softmax, ArgMax.
        classes: Labels by column where the graph itself maps columns to labels, or None.
        shapes: Shape of one row of every value.
        dtypes: dtype of every value.
    """

    input: str
    input_shape: tuple[int, ...]
    input_dtype: str
    nodes: tuple[Node, ...]
    operators: Mapping[str, Operator]
    output: str
    output_shape: tuple[int, ...]
    head: tuple[str, ...]
    classes: NDArray[Any] | None
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]

    @classmethod
    def of(cls, artifact: Artifact, rows: NDArray[Any], *, output: str | None = None) -> Network:
        """Return the network of the scores that `artifact` returns as `output`.

        Args:
            artifact: The model; composed steps are part of its graph.
            rows: At least one row (n, ...) of the input, with which the graph is run.
            output: Name of the output; required where the model has several.

        Returns:
            The network. Softmax, ArgMax and label tables after the scores are left out.

        Raises:
            UsageError: An unknown output, or one that is missing.
            ArtifactError: Control flow, a value without an axis of rows, several inputs, random operators.
            InputError: Rows that the graph does not take.
        """
        return network_of(load_with_weights(artifact), rows, output=output)


def network_of(model: onnx.ModelProto, rows: NDArray[Any], *, output: str | None = None) -> Network:
    """Return the network of a model with all its weights; `Network.of` says more."""
    import onnx
    import onnx.inliner

    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = model.graph
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    sparse = [tensor.values.name for tensor in graph.sparse_initializer]
    sparse += [node.output[0] for node in graph.node for each in node.attribute if each.name == "sparse_value"]
    if sparse:
        names = ", ".join(map(repr, sparse))
        raise ArtifactError(f"artifact has sparse weights ({names}): store them as dense tensors to certify it")
    stored = {tensor.name: tensor for tensor in graph.initializer}
    given = [value for value in graph.input if value.name not in stored]
    if len(given) != 1:
        names = ", ".join(repr(value.name) for value in given)
        raise ArtifactError(
            f"artifact has {len(given)} inputs ({names}), and certificates need exactly one: fix the others as "
            "constants of the graph"
        )
    (start,) = given
    name = _output_name(graph, output)
    sort_nodes(graph)
    added = check_quantized(model)
    writers = {each: node for node in graph.node for each in node.output if each}
    dependent = _dependent(graph, start.name)
    if name not in dependent:
        raise ArtifactError(f"artifact's output {name!r} does not depend on its input {start.name!r}")
    scores, head = head_of(name, writers, dependent, start.name)
    tables = tables_of(head, dependent)
    needed = _ancestors(scores, writers)
    for node in needed:
        if any(True for _ in subgraphs(node)):
            raise refusal(node.op_type, title_of(node), "control flow has no linear bounds")
    probe, second = _run(model, needed, start, rows, (*tables, scores))
    check_axes(head, probe[scores].ndim)
    _check_axis(probe[start.name].shape, probe, dependent, needed)
    read = {scores, *(name for node in needed for name in node.input)}
    nodes = tuple(
        _node(node, output, probe, dependent, opsets)
        for node in needed
        for output in node.output
        if output in dependent and output in read
    )
    nodes = fused(nodes, scores)
    operators = {node.output: operator_of(node) for node in nodes}
    for changed in operators.keys() & added.keys():
        operator = operators[changed]
        axes = len(operator.node.shape) - 1 if operator.node.op == "Conv" else 0
        operator.added_error = added[changed].reshape(-1, *[1] * axes)
    allow_for_folding(nodes, operators)
    for each in nodes:
        _check_operator(operators[each.output], probe)
        if second is not None:
            _check_operator(operators[each.output], second)
    shapes = {start.name: probe[start.name].shape[1:], **{node.output: node.shape for node in nodes}}
    network = Network(
        input=start.name,
        input_shape=shapes[start.name],
        input_dtype=_dtype(probe[start.name]),
        nodes=nodes,
        operators=operators,
        output=scores,
        output_shape=shapes[scores],
        head=tuple(node.op_type for node in head),
        classes=classes_of([probe[each] for each in tables]),
        shapes=shapes,
        dtypes={start.name: _dtype(probe[start.name]), **{node.output: node.dtype for node in nodes}},
    )
    _check_served(network, model, probe[start.name])
    return network


def _check_operator(operator: Operator, probe: Mapping[str, NDArray[Any]]) -> None:
    """Raise ArtifactError if the runtime computes something else than the table, for the rows of the probe."""
    node = operator.node
    values = [np.asarray(probe[name], np.float64) for name in node.sources]
    value = np.asarray(probe[node.output], np.float64)
    rows = len(value)
    if any(
        each.shape != (rows, *shape) for each, shape in zip((*values, value), (*node.shapes, node.shape), strict=True)
    ):
        raise node.refused("the shape of its values depends on the number of rows")
    if not all(np.isfinite(each).all() for each in (*values, value)):
        raise node.refused("its values are NaN or infinite for the given rows")
    boxes = [Box(value, value) for value in values]
    found = operator.interval(boxes).widened(operator.error(boxes))
    if not ((found.lower <= value) & (value <= found.upper)).all():
        difference = float(np.abs(value - found.center).max())
        if rows == _SECOND_ROWS:
            raise node.refused(f"onnxruntime's result depends on the number of rows: it differs by {difference:.3g}")
        raise node.refused(f"onnxruntime's result differs by {difference:.3g} from what the table of operators expects")


def _check_served(network: Network, model: onnx.ModelProto, rows: NDArray[Any]) -> None:
    """Raise ArtifactError if the graph that onnxruntime makes of the model returns scores outside their bounds."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.append(onnx.ValueInfoProto(name=network.output))
    session = open_graph_session(copy, {}, optimize=True)
    served = run_session(session, {network.input: rows}, [network.output])[network.output].astype(np.float64)
    boxes = {network.input: Box(rows.astype(np.float64), rows.astype(np.float64))}
    with np.errstate(invalid="ignore", over="ignore"):
        for node in network.nodes:
            operator, inputs = network.operators[node.output], [boxes[name] for name in node.sources]
            boxes[node.output] = operator.interval(inputs).widened(operator.error(inputs) + operator.added_error)
    scores = boxes[network.output]
    is_nan = np.isnan(served) & np.isfinite(scores.upper - scores.lower)
    if (is_nan | (served < scores.lower) | (served > scores.upper)).any():
        raise ArtifactError(
            f"artifact's scores {network.output!r} are other ones where onnxruntime optimizes the graph than where it "
            "does not: certificates need a version of onnxruntime that serves what the file says"
        )


def _output_name(graph: onnx.GraphProto, output: str | None) -> str:
    names = [value.name for value in graph.output]
    if output is None:
        if len(names) > 1:
            raise UsageError(f"output= is required: artifact has several outputs ({', '.join(map(repr, names))})")
        return str(names[0])
    if output not in names:
        raise UsageError(unknown_choice("output", output, names))
    return output


def _dependent(graph: onnx.GraphProto, start: str) -> set[str]:
    """Return the values that depend on those of the input, and not only on its shape."""
    found = {start}
    for node in graph.node:
        inner = [name for each in subgraphs(node) for part in each.node for name in part.input]
        if node.op_type not in ("Shape", "Size") and found.intersection((*node.input, *inner)):
            found.update(filter(None, node.output))
    return found


def _ancestors(name: str, writers: Mapping[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return the nodes that compute `name`, in the order of the graph."""
    wanted, found = {name}, []
    seen: set[int] = set()
    for node in reversed(list({id(node): node for node in writers.values()}.values())):
        if wanted.intersection(node.output) and id(node) not in seen:
            seen.add(id(node))
            found.append(node)
            wanted.update(filter(None, node.input))
            wanted.update(name for each in subgraphs(node) for part in each.node for name in part.input)
    return found[::-1]


def _run(
    model: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    start: onnx.ValueInfoProto,
    rows: NDArray[Any],
    names: Iterable[str],
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]] | None]:
    """Return every value that `nodes` read or write for some of `rows`, stored tensors included.

    Twice, for two numbers of rows; None for the second one where the input fixes the number.
    """
    import onnx

    batch, second = _batches(start, rows)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    read = {name for node in nodes for name in node.input if name} | set(names)
    outputs = list(dict.fromkeys(name for node in nodes for name in node.output if name))
    outputs += [name for name in names if name not in outputs and name not in stored and name != start.name]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    keep = [node for node in probe.graph.node if set(node.output).intersection(outputs)]
    copies = [type(node).FromString(node.SerializeToString()) for node in keep]
    del probe.graph.node[:], probe.graph.output[:], probe.graph.value_info[:]
    probe.graph.node.extend(copies)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = open_graph_session(probe, {})
    values = run_session(session, {start.name: batch}, outputs)
    constants = {name: np.asarray(onnx.numpy_helper.to_array(stored[name])) for name in read if name in stored}
    first = {start.name: batch, **constants, **values}
    if second is None:
        return first, None
    try:
        return first, {**first, start.name: second, **run_session(session, {start.name: second}, outputs)}
    except InputError as error:
        raise ArtifactError(
            f"artifact runs with {len(batch)} rows and fails with {len(second)}: a shape or constant of the graph "
            f"fixes the number of rows; export it with a dynamic axis of rows ({error})"
        ) from error


def _batches(start: onnx.ValueInfoProto, rows: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return as many rows as the input takes: a few and a few more, or as many as its first dim says."""
    dims = start.type.tensor_type.shape.dim
    if not dims:
        raise ArtifactError(f"artifact's input {start.name!r} has no axis of rows: certificates need one")
    count = dims[0].dim_value if dims[0].HasField("dim_value") else 0

    def some(wanted: int) -> NDArray[Any]:
        return np.resize(rows, (wanted, *rows.shape[1:])) if len(rows) < wanted else rows[:wanted]

    return (some(count), None) if count > 0 else (some(_PROBE_ROWS), some(_SECOND_ROWS))


def _check_axis(
    shape: tuple[int, ...],
    probe: Mapping[str, NDArray[Any]],
    dependent: set[str],
    nodes: Sequence[onnx.NodeProto],
) -> None:
    """Raise ArtifactError for a value whose first axis is not that of the rows."""
    for node in nodes:
        for name in node.output:
            if name not in dependent or name not in probe:
                continue
            found = np.shape(probe[name])
            if not found or found[0] != shape[0]:
                raise refusal(
                    node.op_type,
                    title_of(node),
                    f"its output has shape {found} for {shape[0]} rows, so that its first axis is not that of the rows",
                    "export the model with the rows on the first axis of every value",
                )


def _node(
    node: onnx.NodeProto,
    output: str,
    probe: Mapping[str, NDArray[Any]],
    dependent: set[str],
    opsets: Mapping[str, int],
) -> Node:
    import onnx

    op = node.op_type if node.domain in _OPSET_DOMAIN else f"{node.domain}.{node.op_type}"
    name = title_of(node)
    if node.domain not in (*STANDARD_DOMAINS, "com.microsoft"):
        raise refusal(op, name, "its operator set is not standard")
    variable = [each for each in node.input if each in dependent]
    attributes = {each.name: _plain(onnx.helper.get_attribute_value(each)) for each in node.attribute}
    constants = {
        at: _constant(probe[each], op, name) for at, each in enumerate(node.input) if each and each not in dependent
    }
    rank = max(probe[each].ndim for each in variable)
    batch = probe[output].shape[0]
    if op in _BROADCASTING:
        constants = {at: _one_row(value, rank, batch, op, name) for at, value in constants.items()}
    return Node(
        op=op,
        name=name,
        inputs=tuple(node.input),
        output=output,
        output_index=list(node.output).index(output),
        attributes=attributes,
        constants=constants,
        shapes=tuple(probe[each].shape[1:] for each in variable),
        shape=probe[output].shape[1:],
        dtype=_dtype(probe[output]),
        dtypes=tuple(_dtype(probe[each]) for each in variable),
        opset=opsets.get(node.domain, opsets.get("", 0)),
        proto=(node, batch),
    )


_BROADCASTING = ("Add", "Sub", "Sum", "Mul", "Div", "Max", "Min", "PRelu", "Concat")


def _one_row(value: NDArray[Any], rank: int, batch: int, op: str, name: str) -> NDArray[Any]:
    """Return a constant that has an axis of rows with one row; all its rows must be equal."""
    if value.ndim < rank or value.shape[0] == 1:
        return value
    if value.shape[0] != batch or not (value == value[:1]).all():
        raise refusal(op, name, "a constant of it differs between the rows of a batch")
    return value[:1]


def _constant(value: NDArray[Any], op: str, name: str) -> NDArray[Any]:
    if _dtype(value) not in _FLOATS:
        return value
    wide = np.asarray(value, np.float64)
    if not np.isfinite(wide).all() and op != "Clip":
        raise refusal(op, name, "a weight of it is NaN or infinite", "repair the model")
    return wide


def _dtype(value: NDArray[Any]) -> str:
    name: str = value.dtype.name
    return name


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
