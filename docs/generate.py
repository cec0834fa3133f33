"""Write what is generated from the package's own tables: `python docs/generate.py` (part of `make format`)."""

from __future__ import annotations

from pathlib import Path

import pytest_modelserve

STUB = Path(pytest_modelserve.__file__).with_suffix(".pyi")


def stub_text() -> str:
    """Return the stub of the package, so that editors and type checkers see the names that load at first use."""
    gates, names = pytest_modelserve._GATES, pytest_modelserve._NAMES
    lines = [
        "# Written by `python docs/generate.py` from the tables in __init__.py.",
        "from pytest_modelserve import (",
    ]
    lines += ["    planning as planning,", ")"]
    modules = {module: set(exported) for module, exported in names.items()}
    for module, measure in gates.values():
        modules.setdefault(module, set()).add(measure)
    for module, exported in sorted(modules.items()):
        lines.append(f"from pytest_modelserve.{module} import (")
        lines += [f"    {name} as {name}," for name in sorted(exported)]
        lines.append(")")
    lines += ["", *(f"{name} = {measure}" for name, (_, measure) in sorted(gates.items()))]
    lines += ["", "__all__: list[str]"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    STUB.write_text(stub_text(), encoding="utf-8")
