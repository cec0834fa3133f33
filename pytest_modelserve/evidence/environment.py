"""Where a figure was measured: a number without its machine and versions cannot be compared."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

_PACKAGES = ("pytest-modelserve", "numpy", "onnx", "onnxruntime", "torch", "onnxsim")


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine, the interpreter and the versions of the packages that shape a result."""

    python: str
    system: str
    machine: str
    cpu: str
    cpus: int
    packages: Mapping[str, str]

    @staticmethod
    @functools.cache
    def current() -> Environment:
        """This process's environment, read once; a package that is not installed is left out."""
        return Environment(
            python=platform.python_version(),
            system=platform.system(),
            machine=platform.machine(),
            cpu=_cpu_model(),
            cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            packages=package_versions(_PACKAGES),
        )


def package_versions(names: tuple[str, ...]) -> dict[str, str]:
    """The installed version of each package, without importing it; one that is not installed is left out."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
