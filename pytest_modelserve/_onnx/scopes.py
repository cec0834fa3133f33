"""Walk over the nodes of a model with the opset, types and constants in scope at each."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pytest_modelserve._onnx.graph import has_omitted_data, subgraphs
from pytest_modelserve.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Scope:
    """Element types by value name, as ONNX writes them ("float", "int64"), and constants of one graph.

    Values of an outer graph are visible in its subgraphs. A value that is in neither map is unknown.
    """

    opsets: dict[str, int]
    types: ChainMap[str, str] = field(default_factory=ChainMap)
    constants: ChainMap[str, onnx.TensorProto] = field(default_factory=ChainMap)

    def inside(self) -> Scope:
        """Return the scope of a subgraph."""
        return Scope(self.opsets, self.types.new_child(), self.constants.new_child())

    def type_of(self, names: Iterable[str]) -> str | None:
        """Return the first known element type of values that share one."""
        return next((self.types[name] for name in names if name in self.types), None)

    def constant(self, name: str) -> NDArray[Any] | None:
        """Return the value of a constant, or None if it is external, was not read, or is no constant."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == onnx.TensorProto.EXTERNAL or has_omitted_data(tensor):
            return None
        return np.asarray(onnx.numpy_helper.to_array(tensor))


def walk(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, Scope]]:
    """Yield each node with its scope, in file order; types are declared or follow from the operators' schemas.

    Local functions are walked once each and not at their calls, so the time is linear in the size of the model. Their
    inputs have no types.
    """
    yield from _graph(model.graph, Scope(_opsets(model.opset_import)))
    for function in model.functions:
        yield from _body(function.node, Scope(_opsets(function.opset_import)))


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {"" if item.domain == "ai.onnx" else item.domain: item.version for item in imports}


def cast_type(node: onnx.NodeProto) -> str | None:
    """Return the output type of a Cast node, None where it is a parameter of a local function."""
    to = next((item.i for item in node.attribute if item.name == "to" and not item.ref_attr_name), None)
    return None if to is None else onnx.TensorProto.DataType.Name(to).lower()


def _graph(graph: onnx.GraphProto, scope: Scope) -> Iterator[tuple[onnx.NodeProto, Scope]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.WhichOneof("value") == "tensor_type":
            _declare(scope, value.name, value.type.tensor_type.elem_type)
    for tensor in graph.initializer:
        scope.constants[tensor.name] = tensor
        _declare(scope, tensor.name, tensor.data_type)
    yield from _body(graph.node, scope)


def _body(nodes: Iterable[onnx.NodeProto], scope: Scope) -> Iterator[tuple[onnx.NodeProto, Scope]]:
    for node in nodes:
        yield node, scope
        for graph in subgraphs(node):
            yield from _graph(graph, scope.inside())
        if node.op_type == "Constant":
            _add_constant(node, scope)
        else:
            _infer_types(node, scope)


def _declare(scope: Scope, name: str, elem_type: int) -> None:
    if elem_type != onnx.TensorProto.UNDEFINED:
        scope.types.setdefault(name, onnx.TensorProto.DataType.Name(elem_type).lower())


def _add_constant(node: onnx.NodeProto, scope: Scope) -> None:
    for item in node.attribute:
        if item.name == "value" and item.HasField("t"):
            tensor = item.t
        elif item.name in ("value_int", "value_ints"):
            tensor = onnx.numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(item), dtype=np.int64))
        else:
            continue
        scope.constants[node.output[0]] = tensor
        _declare(scope, node.output[0], tensor.data_type)


def _infer_types(node: onnx.NodeProto, scope: Scope) -> None:
    """Add the output types that the operator's schema fixes or binds to its inputs."""
    if node.op_type == "Cast":
        found = cast_type(node)
        if found is not None:
            scope.types.setdefault(node.output[0], found)
        return
    domain = "" if node.domain == "ai.onnx" else node.domain
    for text in (node.op_type, domain):
        if not isinstance(text, str):  # protobuf returns bytes then
            raise ArtifactError(f"the model names an operator {text!r}, which is not UTF-8: export it again")
    try:
        schema = onnx.defs.get_schema(node.op_type, scope.opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return  # an operator of another domain, or a local function
    bound = {
        formal.type_str: scope.types[name]
        for formal, name in _with_formal(schema.inputs, node.input)
        if name in scope.types
    }
    fixed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    for formal, name in _with_formal(schema.outputs, node.output):
        allowed = fixed.get(formal.type_str, [formal.type_str])
        found = bound.get(formal.type_str, allowed[0] if len(allowed) == 1 else None)
        if found is not None:
            scope.types.setdefault(name, found.removeprefix("tensor(").removesuffix(")"))


def _with_formal(formals: Any, names: Iterable[str]) -> Iterator[tuple[Any, str]]:
    """Yield each present name with its formal parameter; a variadic last one covers all further names.

    Values of If, Loop and Scan are left out: there one type parameter has a different type at every position.
    """
    for index, name in enumerate(names):
        formal = formals[min(index, len(formals) - 1)]
        if name and formal.is_homogeneous:
            yield formal, name
