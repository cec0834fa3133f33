"""Resident memory of a process, from /proc where there is one, else from psutil and getrusage."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytest_modelserve.errors import ModelServeError
from pytest_modelserve.serving.subprocess_worker import largest_resident_size

PROC = Path("/proc")


def resident_bytes(pid: int | None = None) -> int:
    """Return the resident memory of this process or of process `pid` (VmRSS of /proc, else psutil's rss).

    ModelServeError on a host without /proc and psutil.
    """
    found = _field("VmRSS", pid)
    return int(_psutil_memory(pid).rss) if found is None else found


def peak_bytes(pid: int | None = None, *, max_rss: Callable[[], int] | None = None) -> int:
    """Return the peak of resident memory since the start, or since `reset_peak` (VmHWM of /proc).

    getrusage's ru_maxrss survives exec on Linux: the child of a large process would begin with its parent's. It stands
    in where there is no /proc, or psutil's peak working set on Windows; neither can be reset. `max_rss` returns it for
    process `pid`.
    """
    found = _field("VmHWM", pid)
    if found is not None:
        return found
    memory = _psutil_memory(pid)
    if hasattr(memory, "peak_wset"):
        return int(memory.peak_wset)
    return max(int(memory.rss), (max_rss or largest_resident_size)())


def reset_peak(pid: int | None = None) -> bool:
    """Reset the peak to the resident memory; return False where the kernel does not allow it."""
    try:
        _folder(pid).joinpath("clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the peak
    except OSError:
        return False
    return True


def describe_source() -> str:
    """Return a sentence on memory that is not read from /proc, "" if it is; ModelServeError as `resident_bytes`."""
    if _field("VmRSS", None) is not None:
        return ""
    _psutil_memory(None)
    return (
        f"this system has no {_folder(None) / 'status'}: memory is read by psutil, and the peak is that since the "
        "start of the process, imports included, so that a small model may seem larger than it is"
    )


def _folder(pid: int | None) -> Path:
    return PROC / ("self" if pid is None else str(pid))


def _field(name: str, pid: int | None) -> int | None:
    try:
        lines = (_folder(pid) / "status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _psutil_memory(pid: int | None) -> Any:
    try:
        return importlib.import_module("psutil").Process(*(() if pid is None else (pid,))).memory_info()
    except ModuleNotFoundError as error:
        raise ModelServeError(
            f"memory is not reported by {_folder(pid) / 'status'}: run this gate on Linux, or pip install psutil"
        ) from error
