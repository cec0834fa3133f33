"""Tiny projects whose gates are real and cheap: an accuracy gate over a function that is wrong on a chosen number of
rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _pytest.pytester import SysModulesSnapshot

import pytest_modelserve as ms

GATES = '''
import functools
import numpy as np
import pytest_modelserve as ms

LABELS = np.arange(2000) % 2
ROWS = np.zeros((2000, 1), np.float32)


@functools.cache
def model(wrong):
    answers = np.where(np.arange(2000) < wrong, 1 - LABELS, LABELS)
    return ms.serve(lambda x: np.eye(2, dtype=np.float32)[answers], name=f"wrong{wrong}")


def gate(wrong, min_value=0.9):
    """90 % is required: 100 wrong rows of 2,000 pass, 200 decide nothing, 600 fail."""
    return ms.assert_accuracy(model(wrong), ROWS, LABELS, min_value=min_value)
'''

PASSES, UNDECIDED, FAILS = 100, 200, 600


@pytest.fixture(autouse=True)
def installed_modules_stay_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep packages in `sys.modules` after a run in this process: an extension module cannot be loaded twice.

    Submodules that an extension makes, such as `onnx.onnx_cpp2py_export.inliner`, have no file; they go with their package.
    """
    restore = SysModulesSnapshot.restore

    def restore_all_but_packages(snapshot: SysModulesSnapshot) -> None:
        root = Path(ms.__file__).parents[1]
        loaded = dict(sys.modules)
        kept = {
            name.partition(".")[0]
            for name, module in loaded.items()
            if (file := getattr(module, "__file__", None)) and ("site-packages" in file or root in Path(file).parents)
        }
        packages = {name: module for name, module in loaded.items() if name.partition(".")[0] in kept}
        restore(snapshot)
        sys.modules.update(packages)

    monkeypatch.setattr(SysModulesSnapshot, "restore", restore_all_but_packages)


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project with `from gates import gate`, whose tests run in processes of their own."""
    pytester.makepyfile(gates=GATES)
    pytester.makeini("[pytest]\npythonpath = .\naddopts = -p no:cacheprovider --modelserve-json evidence.json\n")
    return pytester


@pytest.fixture(params=[(), ("-n", "1")], ids=["one process", "xdist"])
def processes(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Every promise about evidence holds with and without xdist."""
    arguments: tuple[str, ...] = request.param
    return arguments


@pytest.fixture
def document(pytester: pytest.Pytester) -> Callable[[], dict[str, Any]]:
    """The JSON document that the last run of the project wrote."""

    def read() -> dict[str, Any]:
        text = Path(pytester.path, "evidence.json").read_text(encoding="utf-8")
        data: dict[str, Any] = json.loads(text)
        return data

    return read


@pytest.fixture
def fields_of_gates(document: Callable[[], dict[str, Any]]) -> Callable[..., list[tuple[Any, ...]]]:
    """Chosen fields of every gate of the last run, in order."""

    def fields(*names: str) -> list[tuple[Any, ...]]:
        return [tuple(gate[name] for name in names) for gate in document()["gates"]]

    return fields
