"""How much memory this process holds and held at most, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

from pytest_modelserve.errors import ModelServeError

STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def resident_bytes(status: Path = STATUS) -> int:
    """The physical memory that this process holds now (VmRSS). ModelServeError on a host that does not tell."""
    return _field("VmRSS", status)


def peak_bytes(status: Path = STATUS) -> int:
    """The most that it held since it started, or since `forget_peak` (VmHWM). ModelServeError as above.

    Not getrusage's ru_maxrss: that one survives exec, so that the child of a large process begins with its parent's.
    """
    return _field("VmHWM", status)


def forget_peak() -> bool:
    """Let the peak start again from what is held now; False where the kernel does not allow it."""
    try:
        _CLEAR_REFS.write_text("5", encoding="ascii")  # proc(5): "5" resets the peak resident set size
    except OSError:
        return False
    return True


def check_host(status: Path = STATUS) -> None:
    """Raise ModelServeError where this host does not tell a process its memory."""
    resident_bytes(status)


def _field(name: str, status: Path) -> int:
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration) as error:
        raise ModelServeError(
            f"memory is read from {name} in {status}, which this host does not have: run this gate on Linux"
        ) from error
