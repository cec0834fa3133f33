"""Whether a failure of somebody else's code was a full disk."""

from __future__ import annotations

from pathlib import Path

_CHUNK = bytes(1 << 20)


def refuse_full(folder: Path, needed_bytes: int) -> None:
    """OSError, as the system words it, if `needed_bytes` cannot be written to `folder`; nothing stays there.

    onnx and onnxruntime write in C++ and do not tell: onnx leaves half a file, of which the next to read it says that
    its "wire format was corrupt".
    """
    probe = folder / "room"
    try:
        write_zeros(probe, needed_bytes)
    finally:
        probe.unlink(missing_ok=True)


def write_zeros(path: Path, count: int) -> None:
    """Fill `path` with `count` bytes."""
    with open(path, "wb", buffering=0) as file:
        while count > 0:
            count -= file.write(_CHUNK[:count])
