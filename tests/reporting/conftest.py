from pathlib import Path

import pytest

from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Record, Subject
from pytest_modelserve.reporting import Row, RunCounts, run_document


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


@pytest.fixture
def document_of():
    """The JSON document of a run with these rows."""

    def make(*rows, complete=True, **changes):
        settings = {"without_evidence": {}, "started": 1_790_000_000.0, "root": Path("/nowhere/else"), **changes}
        counts = RunCounts(selected=2, deselected=1, ended=1, expected_failures=0)
        return run_document(rows, counts=counts, complete=complete, exit_status=0, **settings)

    return make


@pytest.fixture
def run_of_all_kinds(record_of, document_of):
    """A document with one gate of each group, at known places."""

    def row(verdict, low, high, outcome, number, **changes):
        node_id = f"tests/test_release.py::test_{number}"
        place = ("tests/test_release.py", 10 * number)
        return Row(node_id, verdict, record_of(low, high, node_id=node_id), outcome, place=place, **changes)

    measured = (Quantity("p95", 2.5, "ms", Interval(2.0, 3.0, 0.95, 0.95)),)
    return document_of(
        row("PASS", -0.002, 0.005, "passed", 1),
        row("FAIL", 0.02, 0.03, "failed", 2),
        row("INCONCLUSIVE", 0.0, 0.02, "failed", 3),
        row("INCONCLUSIVE", 0.0, 0.02, "passed", 4),
        row("FAIL", 0.02, 0.03, "xfailed", 5, expected=True),
        row("FAIL", 0.02, 0.03, "rerun", 6, superseded=True, reruns=1),
        Row("tests/test_lost.py::test_7", "ERROR", None, "failed", error="FileNotFoundError: m.onnx"),
        Row("m.onnx::latency", None, record_of(node_id="m.onnx::latency", quantities=measured, alpha=0.0), "passed"),
        not_judged={"tests/test_release.py::test_8": "there are no labels"},
        without_evidence={"skipped": ["tests/test_release.py::test_8"], "failed": ["tests/test_lost.py::test_7"]},
    )


NASTY = '\x1b[31mred</script><img src=x onerror=alert(1)>|`x`|**b** @team #1\n::error::pwned ##[error]pwned "\\{}<!--'


@pytest.fixture
def nasty_document(record_of, document_of):
    """A document whose every name from outside holds ANSI codes, markup, line ends and workflow commands."""
    quantity = Quantity(NASTY, 0.05, "", Interval(0.04, 0.06, 0.999, 0.95), Budget("at_most", 0.01, argument=NASTY))
    record = record_of(
        subject=Subject(NASTY, NASTY),
        reference=Subject(NASTY),
        quantities=(quantity,),
        findings=(NASTY,),
        advice=NASTY,
        summary=NASTY,
        label=NASTY,
        n_unit=NASTY,
        method=Method(NASTY, NASTY, NASTY),
        node_id=f"tests/test_x.py::test_it[{NASTY}]",
    )
    failed = Row(record.node_id, "FAIL", record, "failed", place=(f"tests/{NASTY}.py", 3))
    error = Row(f"tests/test_x.py::test_lost[{NASTY}]", "ERROR", None, "failed", error=NASTY)
    return document_of(failed, error, without_evidence={"skipped": [NASTY]})
