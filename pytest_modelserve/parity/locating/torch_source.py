"""The line of a torch module that a node was exported from."""

from __future__ import annotations

import re

import onnx

_KEY = "pkg.torch.onnx.stack_trace"
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in \w+\n\s*(?P<code>[^\n]*)')
_TORCH = re.compile(r"[\\/]site-packages[\\/]torch[\\/]")


def source_of(node: onnx.NodeProto) -> str:
    """`/models/net.py:12: x = self.norm(x)`, the innermost line outside torch itself; "" for a node that tells none.

    torch's own lines are told only where there are no others.
    """
    trace = next((entry.value for entry in node.metadata_props if entry.key == _KEY), "")
    frames = list(_FRAME.finditer(trace))
    users = [frame for frame in frames if not _TORCH.search(frame["file"])] or frames
    return f"{users[-1]['file']}:{users[-1]['line']}: {users[-1]['code'].strip()}" if users else ""
