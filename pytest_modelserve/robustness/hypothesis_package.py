"""hypothesis, imported once for all strategies."""

from __future__ import annotations

import importlib
from types import ModuleType

from pytest_modelserve.errors import MissingDependencyError
from pytest_modelserve.evidence import Environment

# What the first call of a gate would import or read. Hypothesis times each example and reports a first one that takes
# longer than its deadline of 200 ms as flaky, because the repetition is fast.
_OF_FIRST_CALLS = (
    "pytest_modelserve.assertions",
    "pytest_modelserve.parity",
    "pytest_modelserve.monitoring",
    "onnx.reference.ops",
)


def hypothesis_package() -> ModuleType:
    """Return hypothesis, after what gates in an example need has been loaded."""
    for module in _OF_FIRST_CALLS:
        importlib.import_module(module)
    Environment.current()
    try:
        import hypothesis
        import hypothesis.strategies
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "hypothesis":
            raise
        raise MissingDependencyError(
            "strategies require hypothesis, which is not installed: pip install 'pytest-modelserve[robustness]'"
        ) from error
    return hypothesis
