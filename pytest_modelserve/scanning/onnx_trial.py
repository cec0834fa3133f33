"""Trial of an ONNX file inside the sandbox: open it, optimize it, run it once."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime

# The process ends without freeing a session, which takes a tenth of the time of a large model.
_sessions: list[onnxruntime.InferenceSession] = []
# Sizes of a free first axis and of other free axes, tried until the model takes them: 1 is too small for differences
# of steps and for convolutions, and recurrent layers end the process where nothing is left.
_FREE_SIZES = ((2, 8), (1, 1), (2, 64), (1, 224))
_MAX_INPUT_BYTES = 256 << 20
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(string)": "object",
    **{f"tensor({name})": name for name in ("float16", "bool")},
    **{f"tensor({u}int{bits})": f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)},
}


def try_onnx(request: Mapping[str, Any], report: Callable[[Any], None]) -> dict[str, Any]:
    """Open the model at `request["path"]` and run it once on zeros; return the reason if no run was possible.

    Reports "opening", then a mapping with the growth of resident memory, then "running".
    """
    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    before = _peak_bytes()
    report("opening")
    session = onnxruntime.InferenceSession(request["path"], options, providers=["CPUExecutionProvider"])
    _sessions.append(session)
    report({"opened_bytes": _peak_bytes() - before})
    reason = ""
    for first, others in _FREE_SIZES:
        try:
            feed = dict(_zeros(session, first, others))
        except ValueError as error:
            return {"not_run": str(error)}
        report("running")
        try:
            session.run(None, feed)
            return {"not_run": ""}
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class
            if "bad_alloc" in str(error) or "Failed to allocate memory" in str(error):
                raise MemoryError(str(error)) from error
            reason = reason or str(error).partition("\n")[0]
        if all(isinstance(axis, int) for value in session.get_inputs() for axis in value.shape):
            break
    return {"not_run": reason[:500]}


def _zeros(session: onnxruntime.InferenceSession, first: int, others: int) -> Iterator[tuple[str, Any]]:
    total = 0
    for value in session.get_inputs():
        dtype = _DTYPES.get(value.type)
        if dtype is None:
            raise ValueError(f"no array is made for an input of type {value.type}")
        sizes = (others if place else first for place in range(len(value.shape)))
        shape = [axis if isinstance(axis, int) else size for axis, size in zip(value.shape, sizes, strict=True)]
        total += math.prod(shape) * (8 if dtype == "object" else np.dtype(dtype).itemsize)
        if total > _MAX_INPUT_BYTES:
            raise ValueError(f"its inputs have more than {_MAX_INPUT_BYTES >> 20} MiB")
        yield value.name, np.full(shape, "a", object) if dtype == "object" else np.zeros(shape, dtype)


def _peak_bytes() -> int:
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)
