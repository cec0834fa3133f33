import pytest

from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Record, Subject


@pytest.fixture
def record_of():
    """A record of accuracy parity whose drop lies between `low` and `high`."""

    def make(
        low = -0.002, high = 0.005, *, owner = "", node_id = "test_a", index = 0,
        attempt = 1, examples = 1, **changes,
    ):  # fmt: skip
        values = {
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
