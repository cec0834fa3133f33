"""Models on which onnxruntime's last level of optimisation ends the whole process, found by reading their graph.

Seen with onnxruntime 1.32 on x86-64: a float16 Transpose of an input that feeds a MatMul (SIGSEGV while the session
opens), also with a Cast, Reshape or Identity in between. The levels below are fine, and so are values that a layer has
computed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

# Operators that move values, or write them in another type, and compute nothing.
_MOVES = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def is_fragile(model: onnx.ModelProto) -> bool:
    """Whether a MatMul reads an input of the model that was transposed in float16, with nothing computed in between."""
    from pytest_modelserve.serving.graph_walk import walk

    moved = {value.name for value in model.graph.input}
    turned: set[str] = set()
    for node, scope in walk(model):
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type == "MatMul" and turned.intersection(node.input):
            return True
        if node.op_type in _MOVES and moved.intersection(node.input[:1]):
            moved.update(node.output)
            is_turn = node.op_type == "Transpose" and scope.type_of((*node.input, *node.output)) == "float16"
            if is_turn or turned.intersection(node.input[:1]):
                turned.update(node.output)
    return False
