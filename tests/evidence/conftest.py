import pytest

from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Subject


@pytest.fixture
def evidence_of():
    """Evidence of a drop between 0 and `high` points against a budget of one."""

    def make(high=0.005, low=0.0, **changes):
        quantity = Quantity(
            "drop", low, "proportion_difference", Interval(low, high, 0.999, 0.95), Budget("at_most", 0.01)
        )
        values = {
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
