"""Annotations of GitHub, code quality of GitLab, and CTRF."""

import json
import re

import pytest

from pytest_modelserve.reporting import Row, code_quality_json, ctrf_json, github_annotations


def test_annotation_stands_at_the_line_of_the_test_and_a_pass_has_none(run_of_all_kinds):
    commands = list(github_annotations(run_of_all_kinds))
    starts = [command.partition(",title=")[0] for command in commands]
    assert sorted(starts) == [
        "::error file=tests/test_lost.py",
        "::error file=tests/test_release.py,line=20",
        "::error file=tests/test_release.py,line=30",
        "::warning file=tests/test_release.py,line=40",
    ]
    (failed,) = (command for command in commands if "line=20" in command)
    assert failed == (
        "::error file=tests/test_release.py,line=20,title=FAIL%3A accuracy parity of digits_cnn / int8-static::"
        "int8-static loses more accuracy than its budget%0Adrop 2.50 pt [2.00, 3.00], budget ≤ 1.00 pt%0A"
        "tests/test_release.py::test_2"
    )


def test_annotations_keep_to_the_ten_that_are_shown(record_of, document_of):
    rows = [Row(f"t{i}", "FAIL", record_of(0.02, 0.03, node_id=f"t{i}"), "failed") for i in range(30)]
    assert len(list(github_annotations(document_of(*rows)))) == 10


def test_name_cannot_end_an_annotation_or_start_another(nasty_document):
    for command in github_annotations(nasty_document):
        assert re.fullmatch(r"::error file=[^,:\n]*(,line=\d+)?,title=[^,:\n]*::[^\n\r\x1b]*", command)
        assert "##[" not in command


def test_code_quality_has_what_gitlab_requires_of_each_problem(run_of_all_kinds):
    problems = json.loads(code_quality_json(run_of_all_kinds))
    assert [(p["severity"], p["location"]["path"], p["location"]["lines"]["begin"]) for p in problems] == [
        ("major", "tests/test_release.py", 20),
        ("critical", "tests/test_lost.py", 1),
        ("minor", "tests/test_release.py", 30),
        ("minor", "tests/test_release.py", 40),
    ]
    assert problems[0]["check_name"] == "modelserve/accuracy parity"
    assert problems[0]["description"].startswith("FAIL: accuracy parity of digits_cnn / int8-static: ")


def test_fingerprint_is_that_of_the_gate_and_not_of_its_figures(record_of, document_of):
    def fingerprint(low, high, **changes):
        row = Row("t", "FAIL", record_of(low, high, node_id="t", **changes), "failed")
        return json.loads(code_quality_json(document_of(row)))[0]["fingerprint"]

    assert fingerprint(0.02, 0.03) == fingerprint(0.04, 0.05)
    assert len({fingerprint(0.02, 0.03), fingerprint(0.02, 0.03, label="night"), fingerprint(0.02, 0.03, index=1)}) == 3


def test_ctrf_counts_gates_and_tests_without_evidence(run_of_all_kinds):
    report = json.loads(ctrf_json(run_of_all_kinds))
    results = report["results"]
    assert (report["reportFormat"], results["tool"]["name"]) == ("CTRF", "pytest-modelserve")
    counts = {name: results["summary"][name] for name in ("tests", "passed", "failed", "skipped", "pending", "other")}
    assert counts == {"tests": 8, "passed": 3, "failed": 3, "skipped": 1, "pending": 0, "other": 1}
    assert results["summary"]["stop"] - results["summary"]["start"] == results["summary"]["duration"]
    of_the_format = {
        "name", "status", "duration", "suite", "message", "trace", "line", "rawStatus", "filePath", "retries", "flaky", "extra",
    }  # fmt: skip
    assert all(test.keys() <= of_the_format for test in results["tests"])
    skipped = next(test for test in results["tests"] if test["status"] == "skipped")
    assert skipped["message"] == "not judged: there are no labels"
    failed = next(test for test in results["tests"] if test.get("line") == 20)
    assert failed["rawStatus"] == "FAIL"
    assert failed["filePath"] == "tests/test_release.py"
    assert "the whole interval lies above the budget" in failed["trace"]


def test_gate_that_passed_after_a_rerun_is_flaky_in_ctrf(record_of, document_of):
    row = Row("t", "PASS", record_of(node_id="t", attempt=2), "passed", attempt=2, reruns=1)
    (test,) = json.loads(ctrf_json(document_of(row)))["results"]["tests"]
    assert (test["retries"], test["flaky"]) == (1, True)


@pytest.mark.parametrize("write", [code_quality_json, ctrf_json])
def test_json_formats_hold_no_control_characters(nasty_document, write):
    text = write(nasty_document)
    json.loads(text)
    assert not any(c != "\n" and not c.isprintable() for c in text)
    assert "\\u001b" not in text
