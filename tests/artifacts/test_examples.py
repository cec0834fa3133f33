"""Examples in docstrings."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["transforms", "metadata", "hashing"])
def test_docstring_examples_run(module):
    found = doctest.testmod(importlib.import_module(f"pytest_modelserve.artifacts.{module}"))
    assert found.attempted
    assert not found.failed
