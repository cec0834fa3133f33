"""Rules about the structure of a model: names and values, nesting, domains and operators, functions."""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

import onnx

from pytest_modelserve._onnx.graph import all_nodes, subgraphs
from pytest_modelserve.scanning.findings import Finding, finding
from pytest_modelserve.scanning.name_rules import with_escape
from pytest_modelserve.scanning.tensor_rules import is_dtype, sparse_findings

FunctionKey = tuple[str, str, str]
"""Domain, name and overload of a function, as a node gives them."""

_MAX_NESTING = 10
# Nodes after the calls of functions are replaced by bodies: so many, or so many times those that are stored.
_MAX_EXPANSION, _SMALL_EXPANSION, _EXPANSION_RATIO = 100_000, 5_000, 100
_MAX_CALL_DEPTH = 50
_MAX_AT_ONCE = 20
_DENSE_BYTES = 64 << 20

# Domains whose operators onnxruntime has itself. Any other needs a library of someone else.
_STANDARD = ("", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "ai.onnx.preview")
_BUILT_IN = (*_STANDARD, "com.microsoft", "com.microsoft.nchwc", "com.microsoft.experimental", "com.ms.internal.nhwc")
# Metadata from which onnxruntime takes settings of its session.
_SETTINGS_KEYS = ("ort_config",)
_POSITIVE = ("strides", "dilations", "group", "blocksize", "num_groups", "num_heads", "kv_num_heads", "q_num_heads",
             "kernel_shape", "offset_group", "bits", "size", "num_outputs", "hidden_size")  # fmt: skip
# Attributes that hold an element type.
_DTYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "output_datatype", "stash_type", "softmax_precision"}
ATTRIBUTE_FIELDS = {
    getattr(onnx.AttributeProto, name.upper()): field
    for name, field in (
        ("float", "f"), ("int", "i"), ("string", "s"), ("tensor", "t"), ("graph", "g"), ("type_proto", "tp"),
        *((name, name) for name in ("floats", "ints", "strings", "tensors", "graphs", "type_protos")),
        *((name, name) for name in ("sparse_tensor", "sparse_tensors")),
    )
}  # fmt: skip
"""The field that holds the content of an attribute, by its type."""


def domain_of(domain: str) -> str:
    """Return a domain by one name: "ai.onnx" is ""."""
    return "" if domain == "ai.onnx" else domain


def key_of(node: onnx.NodeProto) -> FunctionKey:
    """Return the key of the function that the node may call."""
    return domain_of(node.domain), node.op_type, node.overload


def place_of(node: onnx.NodeProto) -> str:
    """Return how a finding names a node."""
    return f"node {node.name!r} ({node.op_type})" if node.name else f"node {node.op_type} that writes {node.output[:1]}"


def check_structure(model: onnx.ModelProto) -> tuple[list[Finding], int]:
    """Return the findings, and the number of nodes after each call is replaced by the body of its function."""
    found = list(_model_findings(model))
    functions = {(domain_of(f.domain), f.name, f.overload): f for f in model.functions}
    opsets = {domain_of(item.domain): item.version for item in model.opset_import}
    graphs = _Graphs(functions, opsets)
    graphs.check_graph(model.graph, "the graph", (), 0)
    for function in model.functions:
        graphs.check_function(function)
    total, problems = _expansion(model, functions)
    return [*found, *graphs.found, *problems], total


def _with_inner(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    yield node
    for graph in subgraphs(node):
        yield from all_nodes(graph)


def _model_findings(model: onnx.ModelProto) -> Iterator[Finding]:
    if not model.HasField("graph") or not model.graph.output:
        yield finding("graph.no-output", "model", "it has no graph with an output")
    newest = int(onnx.IR_VERSION)
    if not 1 <= model.ir_version <= newest:
        text = f"version {model.ir_version} of the format (ir_version); the newest known is {newest}"
        yield finding("graph.operator", "model", text)
    if model.training_info:
        text = "it holds graphs for training, which no run for inference reads and no trial runs"
        yield finding("graph.training-info", "model", text)
    if not model.opset_import:
        yield finding("graph.no-output", "model", "it has no operator set (opset_import)")
    yield from _opset_findings(model.opset_import, "model")
    for key, times in Counter(entry.key for entry in model.metadata_props).items():
        if times > 1:
            yield finding("graph.duplicate-entry", "metadata", f"key {key!r} is given {times} times")
        if key in _SETTINGS_KEYS:
            yield finding("graph.runtime-settings", "metadata", f"key {key!r}")
    for key, times in Counter((domain_of(f.domain), f.name, f.overload) for f in model.functions).items():
        place = f"function {key[1]!r} of domain {key[0]!r}"
        if times > 1:
            yield finding("function.duplicate", place, f"it is defined {times} times")
        if key[0] in _BUILT_IN:
            yield finding("function.shadows-operator", place, "the domain is that of built-in operators")
    yield from _look_alikes(model)


def _opset_findings(imports: Iterable[onnx.OperatorSetIdProto], place: str) -> Iterator[Finding]:
    versions: dict[str, int] = {}
    for item in imports:
        domain = domain_of(item.domain)
        if domain in versions:
            text = f"operator set {domain!r} is given twice, versions {versions[domain]} and {item.version}"
            same = versions[domain] == item.version
            yield finding("graph.duplicate-entry", place, text, "note" if same else None)
        versions[domain] = item.version
        newest = _newest_opset(domain)
        if item.version < 1 or (newest and item.version > newest):
            text = f"operator set {item.version} of {domain or 'ai.onnx'!r}; the newest known is {newest}"
            yield finding("graph.operator", place, text)


@functools.cache
def _newest_opset(domain: str) -> int:
    """Return the newest version that the installed onnx knows; 0 for a domain that it does not know."""
    versions = [schema.since_version for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == domain]
    return max([onnx.defs.onnx_opset_version(), *versions]) if domain == "" else max(versions, default=0)


def _look_alikes(model: onnx.ModelProto) -> Iterator[Finding]:
    """Yield a warning for names of inputs, outputs and functions that differ and look the same."""
    names = {value.name for value in (*model.graph.input, *model.graph.output)} | {f.name for f in model.functions}
    shown: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (not name.isascii(), name)):
        skeleton = "".join(
            c for c in unicodedata.normalize("NFKC", name).translate(_CONFUSABLE) if unicodedata.category(c) != "Cf"
        )
        if shown.setdefault(skeleton, name) != name:
            text = f"{name!r} looks like {shown[skeleton]!r} ({name!a})"
            yield finding("names.look-alike", "model", text)


# Letters of Cyrillic and Greek that look like Latin ones.
_CONFUSABLE = str.maketrans("аеорсухіјѕԁһνοαАВЕКМНОРСТХΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "aeopcyxijsdhvoaABEKMHOPCTXABEZHIKMNOPTYX")


class _Graphs:
    """The checks of one graph after the other, each in the scope of the graphs around it."""

    def __init__(self, functions: Mapping[FunctionKey, Any], opsets: Mapping[str, int]) -> None:
        self.functions, self.opsets = functions, opsets
        self.found: list[Finding] = []
        self._counts: Counter[str] = Counter()

    def add(self, rule: str, place: str, text: str, severity: Any = None) -> None:
        self._counts[rule] += 1
        if self._counts[rule] <= _MAX_AT_ONCE:
            self.found.append(finding(rule, place, text, severity))

    def check_graph(self, graph: onnx.GraphProto, place: str, outer: Sequence[set[str]], depth: int) -> None:
        if depth > _MAX_NESTING:
            return self.add("graph.nesting", place, f"subgraphs are nested {depth} deep, more than {_MAX_NESTING}")
        inputs = [value.name for value in graph.input]
        stored = [tensor.name for tensor in graph.initializer]
        stored += [sparse.values.name for sparse in graph.sparse_initializer]
        for name in _repeated(stored):
            self.add("graph.duplicate-initializer", place, f"initializer {name!r} is given twice")
        if "" in inputs or "" in stored:
            self.add("graph.undefined-value", place, "an input or initializer has no name")
        self._check_metadata(graph.metadata_props, place)
        for name in _repeated([item.tensor_name for item in graph.quantization_annotation]):
            self.add("graph.duplicate-entry", place, f"the quantization of {name!r} is given twice")
        for value in graph.input if not depth else ():
            if value.type.HasField("tensor_type") and not value.type.tensor_type.elem_type:
                self.add("tensor.dtype", f"{place}, value {value.name!r}", "an input without an element type")
        for what, names in (("input", inputs), ("output", [value.name for value in graph.output])):
            for name in _repeated(names):
                self.add("graph.duplicate-value", place, f"{what} {name!r} is given twice")
        types: dict[str, bytes] = {}
        for value in graph.value_info:
            content = value.type.SerializeToString(deterministic=True)
            if types.setdefault(value.name, content) != content:
                self.add("graph.duplicate-value", place, f"value {value.name!r} is declared twice, with two types")
        for value in (*graph.input, *graph.output, *graph.value_info):
            self._check_type(value.type, f"{place}, value {value.name!r}", 0)
        for tensor in graph.initializer:
            self._check_strings(tensor.string_data, f"tensor {tensor.name!r}")
        for sparse in graph.sparse_initializer:
            for rule, text in sparse_findings(sparse, _DENSE_BYTES):
                self.add(rule, f"tensor {sparse.values.name!r}", text)
        self._check_body(graph.node, place, {*inputs, *stored}, outer, depth, is_function=False)
        written = {*inputs, *stored, *(name for node in graph.node for name in node.output)}
        for value in graph.output:
            if not any(value.name in scope for scope in (written, *outer)):
                self.add("graph.undefined-value", place, f"output {value.name!r} is never written")
        return None

    def check_function(self, function: onnx.FunctionProto) -> None:
        place = f"function {function.name!r}"
        for what, names in (("input", function.input), ("output", function.output)):
            for name in _repeated(names):
                self.add("graph.duplicate-value", place, f"{what} {name!r} is given twice")
        names = [*function.attribute, *(attribute.name for attribute in function.attribute_proto)]
        for name in _repeated(names):
            self.add("graph.duplicate-entry", place, f"attribute {name!r} is given twice")
        for attribute in function.attribute_proto:
            self._check_strings_of(attribute, place)
        self.found += _opset_findings(function.opset_import, place)
        outside, self.opsets = self.opsets, {domain_of(i.domain): i.version for i in function.opset_import}
        self._check_body(function.node, place, {*function.input}, (), 0, is_function=True)
        self.opsets = outside
        written = {*function.input, *(name for node in function.node for name in node.output)}
        for name in function.output:
            if name not in written:
                self.add("graph.undefined-value", place, f"output {name!r} is never written")

    def _check_body(
        self,
        nodes: Sequence[onnx.NodeProto],
        place: str,
        known: set[str],
        outer: Sequence[set[str]],
        depth: int,
        *,
        is_function: bool,
    ) -> None:
        later = {name for node in nodes for name in node.output if name}
        is_unsorted = False
        names = [node.name for node in nodes if node.name]
        for name in _repeated(names)[:1]:
            self.add("graph.duplicate-name", place, f"several nodes are called {name!r}")
        for node in nodes:
            for name in node.input:
                if not name or name in known or any(name in scope for scope in outer):
                    continue
                if name in later:
                    is_unsorted = True
                else:
                    self.add("graph.undefined-value", place_of(node), f"input {name!r} is never written")
            self._check_node(node, is_function)
            for graph in subgraphs(node):
                where = f"a subgraph of {place_of(node)}"
                self.check_graph(graph, where, (*outer, known | later if is_unsorted else known), depth + 1)
            for name in node.output:
                if name and (name in known or any(name in scope for scope in outer)):
                    self.add("graph.duplicate-value", place_of(node), f"output {name!r} is written before")
                if name:
                    known.add(name)
        if is_unsorted:
            self._check_order(nodes, place)

    def _check_order(self, nodes: Sequence[onnx.NodeProto], place: str) -> None:
        writers = {name: number for number, node in enumerate(nodes) for name in node.output if name}
        needed = {
            number: [writers[name] for each in _with_inner(node) for name in each.input if name in writers]
            for number, node in enumerate(nodes)
        }
        if any(number in before for number, before in needed.items()):
            self.add("graph.cycle", place, "a node reads what it writes")
            return
        try:
            TopologicalSorter(needed).prepare()
        except CycleError as error:
            names = ", ".join(repr(nodes[number].name or nodes[number].op_type) for number in error.args[1][:4])
            self.add("graph.cycle", place, f"nodes read what they write, through {names}")
        else:
            self.add("graph.order", place, "a node reads a value that a later node writes")

    def _check_node(self, node: onnx.NodeProto, is_function: bool) -> None:
        place, domain = place_of(node), domain_of(node.domain)
        is_call = key_of(node) in self.functions
        if domain not in _BUILT_IN and not is_call:
            self.add("graph.domain", place, f"domain {domain!r} needs a library of other operators, or a function")
        elif not is_call and (problem := _operator_problem(node.op_type, domain, self.opsets)):
            self.add("graph.operator", place, problem)
        if node.op_type == "EPContext" or any("ep_cache_context" in attribute.name for attribute in node.attribute):
            self.add("graph.provider-binary", place, "it holds, or loads, a compiled program")
        self._check_metadata(node.metadata_props, place)
        for name in _repeated([attribute.name for attribute in node.attribute]):
            self.add("graph.duplicate-entry", place, f"attribute {name!r} is given twice")
        for attribute in node.attribute:
            self._check_strings_of(attribute, place)
            if problem := _attribute_problem(attribute, is_function):
                self.add("graph.attribute", place, f"attribute {attribute.name!r} {problem}")
            elif domain in _BUILT_IN and not is_call:
                self._check_value(attribute, place)
            for kind in (*([attribute.tp] * attribute.HasField("tp")), *attribute.type_protos):
                self._check_type(kind, place, 0)
            for sparse in (
                *([attribute.sparse_tensor] * attribute.HasField("sparse_tensor")),
                *attribute.sparse_tensors,
            ):
                for rule, text in sparse_findings(sparse, _DENSE_BYTES):
                    self.add(rule, place, text)

    def _check_metadata(self, entries: Sequence[onnx.StringStringEntryProto], place: str) -> None:
        for key in _repeated([entry.key for entry in entries]) if len(entries) > 1 else ():
            self.add("graph.duplicate-entry", place, f"the metadata key {key!r} is given twice")

    def _check_strings_of(self, attribute: onnx.AttributeProto, place: str) -> None:
        where = f"{place}, attribute {attribute.name!r}"
        for strings in ([attribute.s], attribute.strings, attribute.t.string_data):
            self._check_strings(strings, where)
        for tensor in attribute.tensors:
            self._check_strings(tensor.string_data, where)

    def _check_strings(self, strings: Sequence[bytes], place: str) -> None:
        if (text := with_escape(strings)) is not None:
            self.add("names.escape-sequence", place, repr(text[:200]))

    def _check_value(self, attribute: onnx.AttributeProto, place: str) -> None:
        if attribute.ref_attr_name:
            return
        numbers = [attribute.i] if attribute.type == attribute.INT else attribute.ints
        if attribute.name in _POSITIVE and any(number < 1 for number in numbers):
            self.add("compute.zero-attribute", place, f"{attribute.name} = {list(numbers)[:8]}")
        if attribute.name in _DTYPE_ATTRIBUTES and attribute.type == attribute.INT and not is_dtype(attribute.i):
            is_unset = attribute.i == 0 and attribute.name != "to"
            if not is_unset:
                self.add("tensor.dtype", place, f"attribute {attribute.name!r} is the element type {attribute.i}")

    def _check_type(self, kind: onnx.TypeProto, place: str, depth: int) -> None:
        which = kind.WhichOneof("value")
        if which in ("tensor_type", "sparse_tensor_type"):
            tensor = getattr(kind, which)
            if tensor.elem_type and not is_dtype(tensor.elem_type):
                self.add("tensor.dtype", place, f"element type {tensor.elem_type}")
            if any(axis.HasField("dim_value") and axis.dim_value < -1 for axis in tensor.shape.dim):
                self.add("tensor.shape", place, "an axis of negative size")
        elif which == "map_type":
            self._check_type(kind.map_type.value_type, place, depth + 1)
        elif which in ("sequence_type", "optional_type"):
            self._check_type(getattr(kind, which).elem_type, place, depth + 1)


def _attribute_problem(attribute: onnx.AttributeProto, is_function: bool) -> str:
    """Return why a node cannot have this attribute; "" if it can."""
    filled = {descriptor.name for descriptor, _ in attribute.ListFields()} & {*ATTRIBUTE_FIELDS.values()}
    if attribute.ref_attr_name:
        return "" if is_function else "refers to an attribute of a function, and is in none"
    expected = ATTRIBUTE_FIELDS.get(attribute.type)
    if expected is None:
        return f"has the unknown type {attribute.type}" if attribute.type else "has no type"
    if filled - {expected}:
        return f"is of type {expected}, and has content in {', '.join(sorted(filled - {expected}))}"
    if attribute.type in (attribute.TENSOR, attribute.GRAPH, attribute.SPARSE_TENSOR) and not filled:
        return f"is of type {expected}, and has no content"
    return ""


def _operator_problem(op: str, domain: str, opsets: Mapping[str, int]) -> str:
    """Return why a graph with these operator sets cannot have this built-in operator; "" if it can."""
    shown = domain or "ai.onnx"
    if opsets and domain not in opsets:
        return f"its domain {shown!r} has no operator set in the model"
    if domain not in _STANDARD:
        return ""
    if not onnx.defs.has(op, domain):
        return f"ONNX has no operator {op!r} in domain {shown!r}"
    version = opsets.get(domain, 0)
    if 0 < version < 1 << 31 and not onnx.defs.has(op, version, domain):
        return f"operator set {version} of {shown!r} has no operator {op!r}"
    return ""


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1 and name]


def _expansion(
    model: onnx.ModelProto, functions: Mapping[FunctionKey, onnx.FunctionProto]
) -> tuple[int, list[Finding]]:
    """Return the number of nodes after each call is replaced by its body, without doing that."""
    bodies = {
        key: [each for node in function.node for each in _with_inner(node)] for key, function in functions.items()
    }
    calls = {key: {key_of(node) for node in body} & functions.keys() for key, body in bodies.items()}
    try:
        order = list(TopologicalSorter(calls).static_order())
    except CycleError as error:
        names = " → ".join(repr(key[1]) for key in error.args[1][:6])
        return 0, [finding("function.recursion", f"function {error.args[1][0][1]!r}", f"it calls itself: {names}")]
    sizes: dict[FunctionKey, int] = {}
    depths: dict[FunctionKey, int] = {}
    for key in order:
        sizes[key] = sum(sizes.get(key_of(node), 1) for node in bodies[key])
        depths[key] = 1 + max((depths[each] for each in calls[key]), default=0)
    total = sum(sizes.get(key_of(node), 1) for node in all_nodes(model.graph))
    worst = max(order, key=lambda key: sizes[key], default=("", "", ""))
    stored = sum(1 for _ in all_nodes(model.graph)) + sum(map(len, bodies.values()))
    limit = min(_MAX_EXPANSION, max(_SMALL_EXPANSION, _EXPANSION_RATIO * stored))
    if total > limit and functions:
        text = f"{stored:,} nodes expand to {_count(total)}, more than {limit:,}"
        return total, [finding("function.expansion", f"function {worst[1]!r}", text)]
    if max(depths.values(), default=0) > _MAX_CALL_DEPTH:
        text = f"functions call each other {max(depths.values())} deep, more than {_MAX_CALL_DEPTH}"
        return total, [finding("function.expansion", f"function {worst[1]!r}", text)]
    return total, []


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**15 else f"more than 10^{len(str(number)) - 1}"
