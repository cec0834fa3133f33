"""The table at the end of a run, whole."""

from dataclasses import replace

from pytest_modelserve.evidence import Budget, Quantity, Subject
from pytest_modelserve.reporting import (
    Row,
    error_bound,
    error_bound_line,
    failures_first,
    not_judged_lines,
    summary_line,
    table_lines,
)


def row(record, **changes):
    plain = Row(record.node_id, record.evidence.verdict.value, record, "passed", attempt=record.attempt)
    return replace(plain, **changes)


def test_rows_stand_in_columns_under_their_model(record_of):
    slow = Quantity("slowdown", 0.83, "ratio", budget=Budget("at_most", 1.1))
    rows = [
        row(record_of()),
        row(record_of(0.2, 0.3, subject=Subject("digits_cnn", "shuffled")), expected=True),
        row(record_of(gate="slowdown", subject=Subject("mlp"), reference=None, quantities=(slow,), n=50, examples=7)),
        Row("test_x.py::test_gone", "CRASHED", None, "crashed", error="its worker crashed"),
        Row("test_x.py::test_lost", "ERROR", None, "failed", error="setup: FileNotFoundError: m.onnx"),
    ]
    assert [str(line) for line in table_lines(rows)] == [
        "no verdict",
        "  test_x.py::test_gone  CRASHED  its worker crashed",
        "  test_x.py::test_lost  ERROR    setup: FileNotFoundError: m.onnx",
        "digits_cnn",
        "  accuracy parity  int8-static vs fp32  drop 0.15 pt   [-0.20, 0.50] 99.9/95 %   ≤ 1.00 pt  PASS     n 2000 · test_a",
        "  accuracy parity  shuffled vs fp32     drop 25.00 pt  [20.00, 30.00] 99.9/95 %  ≤ 1.00 pt  FAIL     "
        "n 2000 · expected · test_a",
        "mlp",
        "  slowdown                              × 0.83                                   ≤ × 1.10   PASS     "
        "n 50 · worst of 7 examples · test_a",
    ]


def test_reruns_say_what_they_cost(record_of):
    rows = [row(record_of(0.02, 0.03), superseded=True, reruns=1), row(record_of(attempt=2), reruns=1)]
    _, first, second = map(str, table_lines(rows))
    assert first.endswith("attempt 1, rerun: does not count · test_a")
    assert second.endswith("attempt 2: error rates do not hold under reruns · test_a")
    assert summary_line(rows) == "1 gate: 1 PASS, 0 FAIL, 0 INCONCLUSIVE"


def test_counts_tell_expected_failures_apart(record_of):
    failed = row(record_of(0.02, 0.03))
    expected = replace(failed, expected=True)
    assert summary_line([expected]) == "1 gate: 0 PASS, 1 FAIL (all expected), 0 INCONCLUSIVE"
    assert summary_line([failed, expected]) == "2 gates: 0 PASS, 2 FAIL (1 expected), 0 INCONCLUSIVE"
    assert summary_line([row(record_of(0.0, 0.02))]) == "1 gate: 0 PASS, 0 FAIL, 1 INCONCLUSIVE"
    crash = Row("t", "CRASHED", None, "crashed")
    error = Row("e", "ERROR", None, "failed")
    assert summary_line([error, crash]) == "0 gates: 0 PASS, 0 FAIL, 0 INCONCLUSIVE, 1 ERROR, 1 CRASHED"


def test_summary_counts_tests_without_evidence_that_did_not_pass(record_of):
    error = Row("test_lost", "ERROR", None, "failed")
    line = summary_line(
        [row(record_of()), error], {"passed": ["a", "b"], "skipped": ["c"], "failed": ["test_lost", "d"]}
    )
    assert line == "1 gate: 1 PASS, 0 FAIL, 0 INCONCLUSIVE, 1 ERROR · without evidence: 1 skipped, 1 failed"


def test_last_line_bounds_false_alarms_by_the_sum_of_alphas(record_of):
    rows = [row(record_of(alpha=0.017)), row(record_of(alpha=0.017)), row(record_of(alpha=0.5), superseded=True)]
    assert error_bound_line(rows) == (
        "If every subject is inside its budget (for comparisons with a profile: same distribution) and each "
        "method's stated assumptions hold, this run gives at least one statistical FAIL with probability at most 3.4 %, "
        "the sum of the alphas; INCONCLUSIVE is not counted."
    )


def test_failures_stand_first_and_their_model_too(record_of):
    good, bad, undecided = record_of(), record_of(0.02, 0.03), record_of(0.0, 0.02)
    other = {"subject": Subject("other")}
    rows = [
        row(good, node_id="a"),
        row(undecided, node_id="b"),
        row(bad, node_id="c", superseded=True),
        row(record_of(**other), node_id="d"),
        row(record_of(0.02, 0.03, **other), node_id="e", expected=True),
        row(record_of(0.02, 0.03, **other), node_id="f"),
    ]
    assert [line.node_id for line in failures_first(rows)] == ["f", "b", "a", "c", "d", "e"]
    assert [line.before for line in table_lines(rows) if line.verdict is None] == ["other", "digits_cnn"]


def test_measurement_stands_last_without_a_verdict_and_is_counted_by_itself(record_of):
    measured = record_of(alpha=0.5)
    measured = replace(measured, evidence=measured.evidence.without_budgets())
    rows = [replace(row(record_of()), record=measured, verdict=None), row(record_of())]
    assert [str(line) for line in table_lines(rows)] == [
        "digits_cnn",
        "  accuracy parity  int8-static vs fp32  drop 0.15 pt  [-0.20, 0.50] 99.9/95 %  ≤ 1.00 pt  PASS      n 2000 · test_a",
        "  accuracy parity  int8-static vs fp32  drop 0.15 pt  [-0.20, 0.50] 99.9/95 %             measured  n 2000 · test_a",
    ]
    assert summary_line(rows) == "1 gate: 1 PASS, 0 FAIL, 0 INCONCLUSIVE · 1 measured"
    assert error_bound(rows) == 0.001


def test_what_was_not_judged_is_listed_with_its_reason(record_of):
    reasons = {"m.onnx::latency": "its inputs\x1b[31m are unknown\nsecond line"}
    assert list(not_judged_lines(reasons)) == ["not judged", r"  m.onnx::latency  its inputs\x1b[31m are unknown"]
    line = summary_line([row(record_of())], {"skipped": ["m.onnx::latency", "test_b"]}, reasons)
    assert line == "1 gate: 1 PASS, 0 FAIL, 0 INCONCLUSIVE · 1 not judged · without evidence: 1 skipped"


def test_one_reason_of_several_gates_of_a_file_is_said_once():
    gates = ("bad.onnx::opens", "m.onnx::latency", "bad.onnx::finite")
    assert list(not_judged_lines(dict.fromkeys(gates, "the scan refuses the file"))) == [
        "not judged",
        "  bad.onnx  the scan refuses the file",
        "    opens, finite",
        "  m.onnx::latency  the scan refuses the file",
    ]


def narrow_rows(record_of):
    low = Quantity("slowdown", 0.83, "ratio", budget=Budget("at_most", 1.1))
    slow = record_of(
        gate="slowdown", subject=Subject("digits_cnn", "int8"), quantities=(low,), owner="tests/a/b.py::test_fast"
    )
    lost = record_of(
        0.2, 0.3, subject=Subject("digits_cnn", "shuffled"), owner="tests/release/test_digits.py::test_parity"
    )
    return [row(record_of()), row(lost), row(slow)]


def test_a_line_has_as_much_of_the_name_of_its_test_as_fits(record_of):
    rows = narrow_rows(record_of)
    names = {150: "tests/release/test_digits.py::test_parity", 140: "test_digits.py::test_parity", 118: "test_parity"}
    for width, name in names.items():
        lines = [str(line) for line in table_lines(rows, width)]
        assert max(map(len, lines)) <= width
        assert lines[1].endswith(f"FAIL  n 2000 · {name}")
        assert len(lines) == 4


def test_a_failed_row_without_room_names_its_test_below(record_of):
    lines = [str(line) for line in table_lines(narrow_rows(record_of), 112)]
    assert lines[1].endswith("FAIL  n 2000")
    assert lines[2] == "      tests/release/test_digits.py::test_parity"
    assert lines[-1].endswith("PASS  n 2000")


def test_a_narrow_terminal_shows_each_row_in_two_lines(record_of):
    assert [str(line) for line in table_lines(narrow_rows(record_of), 80)] == [
        "digits_cnn",
        "  accuracy parity  shuffled vs fp32     FAIL  n 2000 · test_parity",
        "      drop 25.00 pt  [20.00, 30.00] 99.9/95 %  ≤ 1.00 pt",
        "  accuracy parity  int8-static vs fp32  PASS  n 2000 · test_a",
        "      drop 0.15 pt  [-0.20, 0.50] 99.9/95 %  ≤ 1.00 pt",
        "  slowdown         int8 vs fp32         PASS  n 2000 · tests/a/b.py::test_fast",
        "      × 0.83  ≤ × 1.10",
    ]


def test_a_row_with_a_long_cell_takes_two_lines_alone(record_of):
    rows = narrow_rows(record_of)
    long = Subject("digits_cnn", "a variant with a very long name of its own")
    rows[2] = row(record_of(gate="accuracy", subject=long))
    lines = [str(line) for line in table_lines(rows, 120)]
    assert lines[1].index("≤ 1.00 pt") == lines[2].index("≤ 1.00 pt")
    assert lines[3:] == [
        "  accuracy         a variant with a very long name of its own vs fp32  PASS  n 2000 · test_a",
        "      drop 0.15 pt  [-0.20, 0.50] 99.9/95 %  ≤ 1.00 pt",
    ]


def test_an_error_that_does_not_fit_stands_below_its_test():
    lost = Row("tests/test_x.py::test_lost", "ERROR", None, "failed", error="FileNotFoundError: m.onnx " + "x" * 50)
    assert [str(line) for line in table_lines([lost], 80)][1:] == [
        "  tests/test_x.py::test_lost  ERROR",
        "      FileNotFoundError: m.onnx " + "x" * 50,
    ]
