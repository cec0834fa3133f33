"""What a model says of its inputs beyond dtypes and shapes: what its graph does with them, and what they hold."""

from __future__ import annotations

from pytest_modelserve.artifacts import Artifact, Signature, TensorSpec, read_graph
from pytest_modelserve.robustness.nested import tensors_of
from pytest_modelserve.robustness.parameters import Use, uses_of
from pytest_modelserve.serving import Predictor


def declared(
    source: Signature | Predictor | Artifact, signature: Signature
) -> tuple[tuple[TensorSpec, ...], tuple[Use, ...]]:
    """The tensors that the inputs are made of, and the nodes that take them; none without a file to read.

    A graph is only read where one of the inputs may be a parameter, or is no tensor.
    """
    if not any(may_be_parameter(spec) for spec in signature.inputs):
        return signature.inputs, ()
    artifact = source if isinstance(source, Artifact) else getattr(source, "artifact", None)
    graph = read_graph(artifact.path) if isinstance(artifact, Artifact) and artifact.path.exists() else None
    kinds = {value.name: value.type for value in graph.graph.input} if graph else {}
    specs = tuple(part for spec in signature.inputs for part in tensors_of(spec, kinds.get(spec.name)))
    return specs, uses_of(graph) if graph else ()


def may_be_parameter(spec: TensorSpec) -> bool:
    """Whether values of an input may be refused for what they are: integers, and whatever has one axis or none.

    Real numbers along several axes are data, and every operator takes any of them.
    """
    is_data = spec.dtype.startswith(("float", "bfloat")) and len(spec.shape or ()) > 1
    return not is_data and spec.dtype != "bool"
