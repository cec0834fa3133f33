"""What the host was doing while a gate measured: a figure of time means little without it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def host_state(root: Path = Path("/")) -> dict[str, Any]:
    """The load average of the last minute, CPU pressure, the cgroup's CPU quota and the frequency governor.

    What this host does not tell is left out. `pressure_stall_percent` is the share of the last 10 s in which some task
    waited for a CPU; `cpu_quota` is in CPUs. The CPU model is in the evidence's environment.
    """
    found = {
        "load_average": _load(),
        "pressure_stall_percent": _pressure(root / "proc/pressure/cpu"),
        "cpu_quota": _quota(root / "sys/fs/cgroup"),
        "governor": _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):  # Windows has none
        return None


def _pressure(path: Path) -> float | None:
    """`some avg10=0.66 avg60=0.58 …`, as the kernel's Documentation/accounting/psi.rst describes it."""
    for line in (_text(path) or "").splitlines():
        kind, *fields = line.split()
        if kind == "some":
            return _number(dict(field.partition("=")[::2] for field in fields).get("avg10"))
    return None


def _quota(cgroup: Path) -> float | None:
    """cpu.max of version 2 ("200000 100000" or "max 100000"), or the two files of version 1 (-1: none)."""
    quota, _, period = (_text(cgroup / "cpu.max") or "").partition(" ")
    if not quota:
        quota = _text(cgroup / "cpu/cpu.cfs_quota_us") or ""
        period = _text(cgroup / "cpu/cpu.cfs_period_us") or ""
    allowed, per = _number(quota), _number(period)
    return allowed / per if allowed is not None and per and allowed > 0 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
