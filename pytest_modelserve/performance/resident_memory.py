"""Resident memory of this process, from /proc where there is one, else from psutil and getrusage."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from pytest_modelserve.errors import ModelServeError

STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def resident_bytes(status: Path | None = None) -> int:
    """Return the resident memory of this process (VmRSS of /proc, else psutil's rss).

    ModelServeError on a host without /proc and psutil.
    """
    found = _field("VmRSS", status or STATUS)
    return int(_psutil_memory(status or STATUS).rss) if found is None else found


def peak_bytes(status: Path | None = None) -> int:
    """Return the peak of resident memory since the start, or since `reset_peak` (VmHWM of /proc).

    getrusage's ru_maxrss survives exec on Linux: the child of a large process would begin with its parent's. It stands
    in where there is no /proc, or psutil's peak working set on Windows; neither can be reset.
    """
    found = _field("VmHWM", status or STATUS)
    if found is not None:
        return found
    memory = _psutil_memory(status or STATUS)
    if hasattr(memory, "peak_wset"):
        return int(memory.peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return max(int(memory.rss), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def reset_peak() -> bool:
    """Reset the peak to the resident memory; return False where the kernel does not allow it."""
    try:
        _CLEAR_REFS.write_text("5", encoding="ascii")  # proc(5): "5" resets the peak resident set size
    except OSError:
        return False
    return True


def describe_source() -> str:
    """Return a sentence on memory that is not read from /proc, "" if it is; ModelServeError as `resident_bytes`."""
    if _field("VmRSS", STATUS) is not None:
        return ""
    _psutil_memory(STATUS)
    return (
        f"this system has no {STATUS}: memory is read by psutil, and the peak is that since the start of the process, "
        "imports included, so that a small model may seem larger than it is"
    )


def _field(name: str, status: Path) -> int | None:
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _psutil_memory(status: Path) -> Any:
    try:
        return importlib.import_module("psutil").Process().memory_info()
    except ModuleNotFoundError as error:
        raise ModelServeError(
            f"memory of this process is not reported by {status}: run this gate on Linux, or pip install psutil"
        ) from error
