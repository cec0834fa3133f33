from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Record, Subject


@pytest.fixture
def record_of() -> Callable[..., Record]:
    """A record of accuracy parity whose drop lies between `low` and `high`."""

    def make(
        low: float = -0.002, high: float = 0.005, *, owner: str = "", node_id: str = "test_a", index: int = 0,
        attempt: int = 1, examples: int = 1, **changes: Any,
    ) -> Record:  # fmt: skip
        values: dict[str, Any] = {
            "gate": "accuracy parity",
            "subject": Subject("digits_cnn", "int8-static", "9f2c41" + "0" * 58),
            "reference": Subject("digits_cnn", "fp32", "77aa01" + "0" * 58),
            "quantities": (
                Quantity(
                    "drop",
                    (low + high) / 2,
                    "proportion_difference",
                    Interval(low, high, 0.999, 0.95),
                    Budget("at_most", 0.01),
                ),
                Quantity("reference", 0.942, "proportion"),
                Quantity("candidate", 0.916, "proportion"),
            ),
            "n": 2000,
            "n_unit": "rows",
            "method": Method("Tango paired score"),
            "summary": "int8-static loses more accuracy than its budget",
            "alpha": 0.001,
        }
        return Record(owner or node_id, node_id, index, attempt, examples, Evidence(**{**values, **changes}))

    return make
