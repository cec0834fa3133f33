from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Subject


@pytest.fixture
def evidence_of() -> Callable[..., Evidence]:
    """Evidence of a drop between 0 and `high` points against a budget of one."""

    def make(high: float = 0.005, low: float = 0.0, **changes: Any) -> Evidence:
        quantity = Quantity(
            "drop", low, "proportion_difference", Interval(low, high, 0.999, 0.95), Budget("at_most", 0.01)
        )
        values: dict[str, Any] = {
            "gate": "accuracy parity",
            "subject": Subject("digits", "int8", "ab" * 32),
            "reference": Subject("digits", "fp32", "cd" * 32),
            "quantities": (quantity,),
            "n": 600,
            "n_unit": "rows",
            "method": Method("Tango paired score"),
            "summary": "accuracy stays within its budget",
            "alpha": 0.001,
        }
        return Evidence(**{**values, **changes})

    return make
