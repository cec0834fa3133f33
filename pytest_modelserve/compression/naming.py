"""Names for nodes that have none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def name_nodes(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """The names of `nodes`, given to those that have none: onnxruntime's tools know nodes by name.

    Names are unique where there are any, or onnxruntime would not have taken the model.
    """
    names = []
    for node in nodes:
        if not node.name:
            node.name = f"{node.op_type}_{node.output[0]}"
        names.append(node.name)
    return names
