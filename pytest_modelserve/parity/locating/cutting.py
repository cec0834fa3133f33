"""A graph cut at known tensors: every stretch of it runs on values that it is given, and not on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from pytest_modelserve.parity.locating.graph import Graph, initializer_of, inputs_of, stretch

_MADE = "::made"


def made(tensor: str) -> str:
    """The output of a cut model that holds `tensor` as its own stretch makes it."""
    return f"{tensor}{_MADE}"


def cut_model(graph: Graph, tensors: Sequence[str], given: Mapping[str, int]) -> onnx.ModelProto:
    """A model with the stretches of `graph` that make `tensors`, and what is `given` (by element type) as its inputs.

    Only tensors that some stretch reads become inputs. What a stretch makes itself is read under the name of `made`, so
    that one run tells of every stretch whether it errs by itself.
    """
    places = sorted({place for tensor in tensors for place in stretch(graph, tensor, given)})
    nodes = [_renamed(graph.nodes[place], given) for place in places]
    read = dict.fromkeys(name for place in places for name in inputs_of(graph.nodes[place]))
    inner = onnx.GraphProto(name="cut")
    inner.node.extend(nodes)
    inner.initializer.extend(
        initializer_of(graph, name) for name in read if name in graph.constants and name not in given
    )
    inner.input.extend(onnx.helper.make_tensor_value_info(name, given[name], None) for name in read if name in given)
    inner.output.extend(onnx.ValueInfoProto(name=made(tensor)) for tensor in tensors)
    model = onnx.ModelProto(ir_version=graph.model.ir_version, graph=inner)
    model.opset_import.extend(graph.model.opset_import)
    return model


def _renamed(node: onnx.NodeProto, given: Mapping[str, int]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.output[:] = [made(name) if name in given else name for name in node.output]
    return copy
