"""Rules about what a model computes: integer division, loops and their bounds, tensors that a small file makes huge.

The graph is walked once with abstract values: calls of functions with their arguments, branches both, bodies of loops.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper

from pytest_modelserve._onnx.graph import sort_nodes
from pytest_modelserve.scanning.abstract_values import (
    UNKNOWN,
    Value,
    constant,
    join,
    names_in,
    numpy_dtype,
    of_tensor,
    of_type,
)
from pytest_modelserve.scanning.findings import Finding, finding
from pytest_modelserve.scanning.graph_rules import ATTRIBUTE_FIELDS, FunctionKey, domain_of, key_of, place_of
from pytest_modelserve.scanning.operator_outputs import outputs_of
from pytest_modelserve.scanning.output_shapes import BROADCASTS, shape_of
from pytest_modelserve.scanning.tree_rules import tree_findings

# Nodes that run when every loop takes its bound: about a second.
_MAX_WORK = 1_000_000
_MAX_TRIPS = 100_000
_MAX_LOOP_DEPTH = 4
# Nodes that are visited, in calls and loops more than once: about two seconds.
_MAX_STEPS = 80_000
_MAX_AXIS = 1 << 31
_MAX_CHARACTERS = 1 << 28
_STRING = 8
# Constants that a file makes, beyond its own bytes, and tensors that it makes of any input.
_MADE_BYTES, _MADE_RATIO = 64 << 20, 8
_HUGE_BYTES = 4 << 30
# Operators of onnxruntime alone that make integers of floats; the others return floats for floats.
_INTEGERS_OF_FLOATS = ("MurmurHash3", "Unique", "Sampling", "BeamSearch", "GreedySearch", "WhisperBeamSearch")
# One operator that multiplies what it reads.
_GROWTH = 16
_MAX_AT_ONCE = 20
# Up to this version of the format every initializer was an input, too, and none was replaced.
_LAST_WITH_ALL_INPUTS = 3
# Evaluations of a body that tell a sum, whose growth slows down, from a product.
_GROWTH_ROUNDS, _LEAST_ROUNDS = 8, 4
_MULTIPLIES = 1.5
_MULTIPLY = BROADCASTS | names_in(
    "ConstantOfShape Expand Tile Range Pad Resize Upsample OneHot EyeLike RandomNormal RandomUniform Multinomial "
    "RoiAlign MaxRoiPool MaxUnpool AffineGrid CenterCropPad Col2Im ConvTranspose HannWindow HammingWindow "
    "BlackmanWindow MelWeightMatrix Concat Gather"
)


class TooManyStepsError(Exception):
    """The model is larger than what can be followed within bounds."""


@dataclass(slots=True)
class ComputeResult:
    """What the walk found: findings, the number of nodes that one run executes, and whether there are loops."""

    findings: list[Finding]
    work: float
    has_loops: bool


def check_computation(model: onnx.ModelProto, total_bytes: int) -> ComputeResult:
    """Return what the rules find in a model whose structure has no errors."""
    walk = _Walk(model, total_bytes)
    scope = _Scope(None, {}, {domain_of(item.domain): item.version for item in model.opset_import}, {})
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: of_type(value.type) for value in model.graph.input if value.name not in stored}
    if model.ir_version > _LAST_WITH_ALL_INPUTS:
        walk.defaults = stored & {value.name for value in model.graph.input}
    for name, value in inputs.items():
        walk.check_size(f"input {name!r}", value, math.inf)
    try:
        work = walk.graph(model.graph, scope, list(inputs.items()))[1]
        walk.uncalled_functions()
    except TooManyStepsError as error:
        walk.found.append(finding("graph.node-count", "model", str(error)))
        work = float(_MAX_STEPS)
    return ComputeResult(walk.found, work, walk.has_loops)


class _Scope:
    """Values by name in a graph, with those of the graphs around it, and the attributes of the function."""

    def __init__(
        self,
        outer: _Scope | None,
        values: dict[str, Value],
        opsets: Mapping[str, int],
        attributes: Mapping[str, onnx.AttributeProto],
        loops: int = 0,
    ) -> None:
        self.outer, self.values, self.opsets, self.attributes, self.loops = outer, values, opsets, attributes, loops

    def inner(self, *, loops: int = 0) -> _Scope:
        return _Scope(self, {}, self.opsets, self.attributes, self.loops + loops)

    def __getitem__(self, name: str) -> Value:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        return UNKNOWN


Result = tuple[list[Value], float]
"""The outputs of a node or graph, and the number of nodes that ran."""


class _Walk:
    """One walk over a model."""

    def __init__(self, model: onnx.ModelProto, total_bytes: int) -> None:
        self.functions: dict[FunctionKey, onnx.FunctionProto] = {
            (domain_of(f.domain), f.name, f.overload): f for f in model.functions
        }
        self.made_limit = _MADE_BYTES + _MADE_RATIO * total_bytes
        self.made = 0
        self.defaults: set[str] = set()  # initializers that an input of the same name replaces
        self.found: list[Finding] = []
        self.has_loops = False
        self._steps = 0
        self._counts: Counter[str] = Counter()
        self._seen: set[tuple[str, str]] = set()
        self._calls: dict[Any, tuple[list[Value], float, int]] = {}
        self._is_called = True  # without a call, an unknown value is no finding
        self._quiet = 0  # bodies of loops are evaluated several times

    def add(self, rule: str, place: str, text: str, severity: Any = None) -> None:
        if self._quiet or (rule, place) in self._seen:
            return
        self._seen.add((rule, place))
        self._counts[rule] += 1
        if self._counts[rule] <= _MAX_AT_ONCE:
            self.found.append(finding(rule, place, text, severity))

    def graph(self, graph: onnx.GraphProto, scope: _Scope, inputs: Sequence[tuple[str, Value]]) -> Result:
        """Walk over a graph; `inputs` are names and values."""
        scope.values.update(inputs)
        for tensor in graph.initializer:
            value = of_tensor(tensor)
            if scope.outer is None and tensor.name in self.defaults:
                value = Value(value.dtype, value.shape, value.const)
            scope.values[tensor.name] = value
        for sparse in graph.sparse_initializer:
            scope.values[sparse.values.name] = Value(sparse.values.data_type, tuple(sparse.dims), is_fixed=True)
        declared = {value.name: of_type(value.type).dtype for value in (*graph.value_info, *graph.output)}
        work = self._body(graph.node, scope, declared)
        return [scope[value.name] for value in graph.output], work

    def uncalled_functions(self) -> None:
        """Walk over the functions that nothing calls, with arguments of which nothing is known."""
        self._is_called = False
        called = {key for key, *_ in self._calls}
        for domain, name, overload in [key for key in self.functions if key not in called]:
            call = helper.make_node(name, [], [], domain=domain, overload=overload)
            self._call(call, [], _Scope(None, {}, {}, {}))

    def _body(self, nodes: Sequence[onnx.NodeProto], scope: _Scope, declared: Mapping[str, int]) -> float:
        work = 0.0
        for node in nodes:
            inputs = [scope[name] if name else UNKNOWN for name in node.input]
            outputs, done = self._node(node, inputs, scope, declared)
            work += done
            for name, value in zip(node.output, outputs, strict=False):
                if name:
                    known = value if value.dtype else replace(value, dtype=declared.get(name, 0))
                    scope.values[name] = known
        return work

    def _node(
        self, node: onnx.NodeProto, inputs: list[Value], scope: _Scope, declared: Mapping[str, int]
    ) -> tuple[list[Value], float]:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise TooManyStepsError(f"the walk through calls and loops takes more than {_MAX_STEPS:,} steps")
        if key_of(node) in self.functions:
            return self._call(node, inputs, scope)
        attributes = self._attributes(node, scope)
        domain = domain_of(node.domain)
        if domain == "" and node.op_type == "If":
            return self._branches(attributes, scope, node)
        if domain == "" and node.op_type == "Loop":
            return self._loop(node, inputs, attributes, scope)
        if domain == "" and node.op_type == "Scan":
            return self._scan(node, inputs, attributes, scope)
        if domain == "" and node.op_type == "SequenceMap":
            return self._sequence_map(node, inputs, attributes, scope)
        if domain == "ai.onnx.ml" and node.op_type.startswith("TreeEnsemble"):
            sizes = inputs[0].shape if inputs and not scope.loops else None  # in a loop it may become wider
            for rule, text in tree_findings(node.op_type, attributes, sizes[-1] if sizes else None):
                self.add(rule, place_of(node), text)
        if domain == "" and node.op_type == "Constant":
            return [self._constant(attributes)], 1.0
        outputs = []
        if domain in ("", "ai.onnx.ml"):
            outputs = outputs_of(node, inputs, attributes, scope.opsets.get(domain, 1))
        elif node.op_type not in _INTEGERS_OF_FLOATS:
            dtype = next((value.dtype for value in inputs if value.is_float), 0)
            shape = shape_of(node.op_type, inputs, attributes) if node.op_type in ("Pad", "Range") else None
            outputs = [Value(dtype, shape)] * len(node.output)
        outputs += [UNKNOWN] * (len(node.output) - len(outputs))
        if domain == "" and node.op_type in ("Div", "Mod") and len(inputs) == 2:
            dtypes = [value.dtype for value in (*inputs, *outputs)] + [declared.get(name, 0) for name in node.output]
            self._check_division(node, inputs[0], inputs[1], next(filter(None, dtypes), 0))
        if domain == "" and node.op_type == "StringConcat" and len(inputs) == 2:
            length = sum(1.0 if math.isinf(value.nominal) else value.nominal for value in inputs)
            outputs[0] = replace(outputs[0], nominal=length)
            if length > _MAX_CHARACTERS:
                self.add("compute.amplification", place_of(node), f"one character becomes {length:,.0f}")
        if outputs:
            self._check_growth(node, inputs, outputs[0])
        return outputs, 1.0

    # Attributes

    def _attributes(self, node: onnx.NodeProto, scope: _Scope) -> dict[str, Any]:
        """Return the attributes of a node by name: those of a function's call in the place of references."""
        found: dict[str, Any] = {}
        for attribute in node.attribute:
            given = scope.attributes.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
            if given is not None:
                found[attribute.name] = _content(given)
        return found

    def _constant(self, attributes: Mapping[str, Any]) -> Value:
        for name, value in attributes.items():
            if isinstance(value, Value):
                return value
            if name in ("value_int", "value_ints"):
                return constant(np.array(value, np.int64), 7)
            if name in ("value_float", "value_floats"):
                return constant(np.array(value, np.float32), 1)
        return UNKNOWN

    # Calls and subgraphs

    def _call(self, node: onnx.NodeProto, inputs: Sequence[Value], scope: _Scope) -> Result:
        function = self.functions[key_of(node)]
        given = {attribute.name: attribute for attribute in function.attribute_proto}
        for attribute in node.attribute:
            known = scope.attributes.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
            if known is not None:
                given[attribute.name] = known
        settings = tuple((name, each.SerializeToString(deterministic=True)) for name, each in sorted(given.items()))
        memory = (key_of(node), scope.loops, tuple(map(_identity, inputs)), settings)
        if memory not in self._calls:
            made = self.made
            opsets = {domain_of(item.domain): item.version for item in function.opset_import}
            inner = _Scope(None, dict(zip(function.input, inputs, strict=False)), opsets, given, scope.loops)
            work = self._body(function.node, inner, {})
            self._calls[memory] = [inner[name] for name in function.output], work, self.made - made
        else:
            self._add_made(self._calls[memory][2], place_of(node))
        return self._calls[memory][:2]

    def _branches(self, attributes: Mapping[str, Any], scope: _Scope, node: onnx.NodeProto) -> Result:
        results = [
            self.graph(graph, scope.inner(), [])
            for graph in (attributes.get("then_branch"), attributes.get("else_branch"))
            if isinstance(graph, onnx.GraphProto)
        ]
        if not results:
            return [UNKNOWN] * len(node.output), 1.0
        outputs = [join(values) for values in zip(*(found for found, _ in results), strict=False)]
        return outputs, 1.0 + max(work for _, work in results)

    def _loop(self, node: onnx.NodeProto, inputs: list[Value], attributes: Mapping[str, Any], scope: _Scope) -> Result:
        body = attributes.get("body")
        trips = inputs[0] if node.input and node.input[0] else UNKNOWN
        carried = [_unsettled(value) for value in inputs[2:]]
        if not isinstance(body, onnx.GraphProto):
            return [UNKNOWN] * len(node.output), 1.0
        names = [value.name for value in body.input]

        def run(state: list[Value]) -> Result:
            count = Value(7, (), None, 0, trips.high, trips.nominal)
            values = [count, Value(9, ()), *state]
            return self.graph(body, scope.inner(loops=1), list(zip(names, values, strict=False)))

        outputs, work = run(carried)
        states = outputs[1 : 1 + len(carried)]
        bound = 0.0 if trips.high <= 0 else trips.nominal
        self._check_trips(node, trips if node.input and node.input[0] else None, bound, work, scope)
        self._check_states(node, carried, states, bound, run)
        scanned = outputs[1 + len(carried) :]
        for value in scanned if math.isfinite(bound) else ():
            self.check_size(place_of(node), replace(value, shape=(int(bound), *(value.shape or ()))), math.inf)
        found = [replace(_unsettled(value), dtype=value.dtype, shape=None) for value in (*states, *scanned)]
        return found, 1.0 + bound * work

    def _scan(self, node: onnx.NodeProto, inputs: list[Value], attributes: Mapping[str, Any], scope: _Scope) -> Result:
        body, count = attributes.get("body"), attributes.get("num_scan_inputs", 0)
        if not isinstance(body, onnx.GraphProto) or not isinstance(count, int) or not 0 <= count <= len(inputs):
            return [UNKNOWN] * len(node.output), 1.0
        skip = 1 if scope.opsets.get("", 9) < 9 else 0  # opset 8 has lengths first, and a batch
        states, sequences = inputs[skip : len(inputs) - count], inputs[len(inputs) - count :]
        axes = list(attributes.get("scan_input_axes") or [skip] * count)
        lengths = [
            value.shape[axis] for value, axis in zip(sequences, axes, strict=False)
            if value.shape is not None and -len(value.shape) <= axis < len(value.shape)
        ]  # fmt: skip
        known = [length for length in lengths if length is not None]
        trips = Value(7, (), None, 0, max(known, default=2**31), float(max(known, default=64)))
        slices = [_slice_of(value, axis) for value, axis in zip(sequences, axes, strict=False)]
        names = [value.name for value in body.input]
        carried = [_unsettled(value) for value in states]

        def run(state: list[Value]) -> Result:
            return self.graph(body, scope.inner(loops=1), list(zip(names, [*state, *slices], strict=False)))

        outputs, work = run(carried)
        self._check_trips(node, trips, trips.nominal, work, scope)
        for value in outputs[len(states) :]:
            shape = (int(trips.nominal), *(value.shape or ()))
            self.check_size(place_of(node), replace(value, shape=shape), math.inf)
        return [replace(_unsettled(value), shape=None) for value in outputs], 1.0 + trips.nominal * work

    def _sequence_map(
        self, node: onnx.NodeProto, inputs: list[Value], attributes: Mapping[str, Any], scope: _Scope
    ) -> Result:
        body = attributes.get("body")
        if not isinstance(body, onnx.GraphProto):
            return [UNKNOWN] * len(node.output), 1.0
        self.has_loops = True
        elements = [replace(_unsettled(value), shape=None) for value in inputs]
        names = [value.name for value in body.input]
        outputs, work = self.graph(body, scope.inner(loops=1), list(zip(names, elements, strict=False)))
        return [replace(_unsettled(value), shape=None) for value in outputs], 1.0 + 64 * work

    # Rules

    def _check_trips(self, node: onnx.NodeProto, trips: Value | None, bound: float, work: float, scope: _Scope) -> None:
        self.has_loops = True
        place = place_of(node)
        if scope.loops + 1 > _MAX_LOOP_DEPTH:
            self.add(
                "compute.loop-bound", place, f"loops are nested {scope.loops + 1} deep, more than {_MAX_LOOP_DEPTH}"
            )
        if trips is None:
            self.add("compute.loop-bound", place, "it has no trip count: only its condition ends it")
        elif not math.isfinite(bound):
            text = "its trip count is an input or computed, and nothing bounds it"
            self.add("compute.loop-bound", place, text, None if self._is_called else "note")
        elif bound > _MAX_TRIPS:
            self.add("compute.loop-bound", place, f"its trip count may be {bound:,.0f}, more than {_MAX_TRIPS:,}")
        elif bound * work > _MAX_WORK:
            text = f"{bound:,.0f} trips run {bound * work:,.0f} nodes, more than {_MAX_WORK:,}"
            self.add("compute.loop-bound", place, text)

    def _check_states(
        self, node: onnx.NodeProto, before: list[Value], after: list[Value], trips: float, run: Any
    ) -> None:
        """Add a finding for a state that grows by a factor in each trip: 30 doublings of a byte are a gigabyte."""
        if trips < 2 or not any(_amount(b) > _amount(a) for a, b in zip(before, after, strict=False)):
            return
        self._quiet += 1
        states = [before, [_grown(value) for value in after]]
        for number in range(int(min(_GROWTH_ROUNDS, trips - 1))):
            if number >= _LEAST_ROUNDS and self._steps > _MAX_STEPS // 2:  # of a body of thousands of nodes
                break
            states.append([_grown(value) for value in run(states[-1])[0][1 : 1 + len(before)]])
        self._quiet -= 1
        for place, values in enumerate(zip(*states, strict=False)):
            sizes = [_amount(value) for value in values[-3:]]
            multiplies = sizes[-1] > _MULTIPLIES * sizes[-2] > 0 and sizes[-2] > _MULTIPLIES * sizes[-3]
            if values[-1].shape is not None and ((multiplies and trips >= 16) or sizes[-1] > _HUGE_BYTES):
                text = f"state {place} grows {sizes[-1] / max(sizes[-2], 1):,.1f} times in each trip"
                self.add("compute.loop-growth", place_of(node), text)

    def _check_division(self, node: onnx.NodeProto, dividend: Value, divisor: Value, dtype: int) -> None:
        integer = replace(UNKNOWN, dtype=dtype).is_integer
        if not integer and (dtype or not self._is_called):
            return
        is_known = divisor.is_fixed and divisor.const is not None and divisor.const.dtype.kind in "iuf"
        known = divisor.const if is_known else None
        zero = known is not None and bool((known == 0).any())
        if divisor.low > 0 or divisor.high < -1 or (divisor.is_shape and divisor.low >= 0 and not zero):
            return
        is_wide = dtype in (0, 6, 7)  # int32 and int64: minimum / -1 traps; the narrower types are widened
        if known is not None and not zero and not (is_wide and (known == -1).any() and dividend.low <= _minimum(dtype)):
            return
        what = "a computed value" if known is None else f"the constant {known.ravel()[:4].tolist()}"
        text = f"integers are divided by {what}; 0, or the minimum by -1, ends the process"
        self.add("compute.integer-division", place_of(node), text)

    def _check_growth(self, node: onnx.NodeProto, inputs: Sequence[Value], output: Value) -> None:
        place = place_of(node)
        read = sum(_bytes(value) for value in inputs)
        made = _bytes(output)
        if output.is_fixed and made > max(map(_bytes, inputs), default=0):
            self._add_made(made, place)
        if node.op_type in _MULTIPLY:
            limit = self.made_limit if made > _GROWTH * read else math.inf
            self.check_size(place, output, limit)
        else:
            self.check_size(place, output, math.inf)

    def _add_made(self, made: int, place: str) -> None:
        """Count bytes of constants that onnxruntime computes when it opens the file."""
        if self._quiet:
            return
        self.made += made
        if self.made > self.made_limit:
            text = f"opening computes constants of {self.made:,} bytes, more than {self.made_limit:,}"
            self.add("compute.amplification", place, text)

    def check_size(self, place: str, value: Value, limit: float) -> None:
        """Add a finding if a value is larger than the limit, or than any tensor of a small batch."""
        if any(axis is not None and axis > _MAX_AXIS for axis in value.shape or ()):
            self.add("compute.amplification", place, f"an axis of more than {_MAX_AXIS:,}: shape {_short(value)}")
            return
        made = _bytes(value)
        if made > min(limit, _HUGE_BYTES + _MADE_RATIO * self.made_limit):
            text = f"it makes a tensor of {made:,} bytes: shape {_short(value)}"
            self.add("compute.amplification", place, text)


def _minimum(dtype: int) -> int:
    try:
        return int(np.iinfo(numpy_dtype(dtype)).min)
    except (TypeError, ValueError):
        return -(2**63)


def _short(value: Value) -> str:
    return str([1 if axis is None else axis for axis in (value.shape or ())][:8])


def _bytes(value: Value) -> int:
    try:
        return value.elements() * max(numpy_dtype(value.dtype).itemsize, 1)
    except TypeError:
        return value.elements() * 4


def _slice_of(value: Value, axis: int) -> Value:
    """Return what a body of Scan gets of a sequence."""
    if not value.shape:
        return replace(value, shape=None, const=None)
    axis %= len(value.shape)
    return replace(value, shape=(*value.shape[:axis], *value.shape[axis + 1 :]), const=None)


def _unsettled(value: Value) -> Value:
    """Return what is known of a value that a loop changes: its type and shape."""
    return Value(value.dtype, value.shape)


def _grown(value: Value) -> Value:
    """Return what is known of a value after a trip: also the length of its strings, which StringConcat adds."""
    return replace(_unsettled(value), nominal=value.nominal) if value.dtype == _STRING else _unsettled(value)


def _amount(value: Value) -> float:
    """Return the number of elements, or of characters."""
    return value.elements() * (value.nominal if value.dtype == _STRING and math.isfinite(value.nominal) else 1)


def _identity(value: Value) -> Any:
    content = None if value.const is None else (value.const.dtype.str, value.const.tobytes())
    return (value.dtype, value.shape, content, value.low, value.high, value.nominal, value.is_shape, value.is_fixed)


def _content(attribute: onnx.AttributeProto) -> Any:
    """Return the content of an attribute: numbers, a graph, or a tensor as an array or an abstract value."""
    if attribute.type == attribute.TENSOR:
        return of_tensor(attribute.t)
    if attribute.type == attribute.SPARSE_TENSOR:
        return Value(attribute.sparse_tensor.values.data_type, tuple(attribute.sparse_tensor.dims), is_fixed=True)
    return getattr(attribute, ATTRIBUTE_FIELDS[attribute.type]) if attribute.type in ATTRIBUTE_FIELDS else None


def sorted_model(model: onnx.ModelProto) -> None:
    """Put the nodes of the graph in an order in which values are written before they are read."""
    sort_nodes(model.graph)
