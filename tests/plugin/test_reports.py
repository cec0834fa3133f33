"""What a run shows: the table, JUnit, the schema; and nothing at all to those who do not use it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest

EXAMPLE = """
    import pytest, pytest_modelserve as ms
    from gates import gate
    def test_good(): gate(100)
    @pytest.mark.xfail(strict=True, raises=ms.GateFailure)
    def test_bad_candidate(): gate(600)
"""


def test_table_is_the_same_with_and_without_workers(project: pytest.Pytester, processes: tuple[str, ...]) -> None:
    project.makepyfile(test_x=EXAMPLE)
    result = project.runpytest_inprocess(*processes)
    lines = result.stdout.lines
    start = next(i for i, line in enumerate(lines) if line.strip("=") == " modelserve ")
    assert lines[start + 1 : start + 7] == [
        "wrong100",
        "  accuracy    accuracy 95.00 %  [94.12, 96.38] 95/99.9 %  ≥ 90.00 %  PASS  n 2000 · test_x.py::test_good",
        "wrong600",
        "  accuracy    accuracy 70.00 %  [68.27, 73.12] 95/99.9 %  ≥ 90.00 %  FAIL  n 2000 · expected · test_x.py::test_bad_candidate",
        "2 gates: 1 PASS, 1 FAIL (all expected), 0 INCONCLUSIVE · evidence evidence.json",
        "If every subject is inside its budget (for comparisons with a profile: same distribution) and each "
        "method's stated assumptions hold, this run gives at least one statistical FAIL with probability at most 0.2 %, "
        "the sum of the alphas; INCONCLUSIVE is not counted.",
    ]


def test_document_validates_against_its_schema(project: pytest.Pytester, document: Callable[[], Any]) -> None:
    project.makepyfile(EXAMPLE)
    project.runpytest_inprocess()
    schema = json.loads(resources.files("pytest_modelserve.evidence").joinpath("schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(document())] == []
    damaged = {**document(), "complete": "yes"}
    assert not validator.is_valid(damaged)


def test_junit_carries_the_evidence(project: pytest.Pytester) -> None:
    project.makepyfile(EXAMPLE)
    project.runpytest_inprocess("--junit-xml=junit.xml")
    cases = ElementTree.parse(Path(project.path, "junit.xml")).getroot().iter("testcase")
    verdicts = {
        case.get("name"): [json.loads(p.get("value", ""))["evidence"]["verdict"] for p in case.iter("property")]
        for case in cases
    }
    assert verdicts == {"test_good": ["PASS"], "test_bad_candidate": ["FAIL"]}


def test_failure_text_stands_in_the_report_without_our_frames(project: pytest.Pytester) -> None:
    project.makepyfile("from gates import gate\ndef test_bad(): gate(600)\n")
    result = project.runpytest_inprocess()
    result.stdout.fnmatch_lines(
        [
            "E *pytest_modelserve.GateFailure: accuracy: lower than required",
            "E*accuracy   70.00 %",
            "E*verdict    FAIL: the whole interval lies below the budget",
        ]
    )
    result.stdout.no_fnmatch_line("*assertions.py*")


@pytest.mark.parametrize("arguments", [(), ("-n1",), ("--modelserve-inconclusive=fail", "-vv")], ids=" ".join)
def test_short_summary_shows_the_sentence_of_the_verdict(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    project.makepyfile(
        test_x="""
        import pytest_modelserve as ms
        from gates import gate
        def test_bad(): gate(600)
        def test_open(): gate(200)
        def test_other(): raise ValueError("no such file")
        def test_ours(): raise ms.InputError("x has no rows: pass some")
        """
    )
    lines = project.runpytest_inprocess(*arguments).outlines
    assert [line for line in lines if line.startswith("FAILED")] == [
        "FAILED test_x.py::test_bad - accuracy: lower than required",
        "FAILED test_x.py::test_open - accuracy: not enough rows to decide whether accuracy reaches min_value",
        "FAILED test_x.py::test_other - ValueError: no such file",
        "FAILED test_x.py::test_ours - InputError: x has no rows: pass some",
    ]


def test_plugin_is_inert_where_it_is_not_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest, sys
        @pytest.fixture(scope="session")
        def shared(): return 1
        def test_one(shared, request):
            assert request.node.user_properties == []
            assert not {"pytest_modelserve.pipeline", "pytest_modelserve.reporting"} & sys.modules.keys()
        @pytest.mark.xfail
        def test_two(): assert False
    """)
    arguments = ("-p", "no:cacheprovider", "--junit-xml=junit.xml")
    result = pytester.runpytest_subprocess(*arguments)
    without = pytester.runpytest_subprocess(*arguments, "-p", "no:modelserve")
    result.assert_outcomes(passed=1, xfailed=1)
    plain = [line for line in without.outlines if not line.startswith(("=", "plugins:"))]
    assert [line for line in result.outlines if not line.startswith(("=", "plugins:"))] == plain
    assert "modelserve" not in Path(pytester.path, "junit.xml").read_text()
    assert list(Path(pytester.path).rglob("*modelserve*")) == []


@pytest.mark.parametrize(
    "arguments",
    [("--collect-only",), ("--fixtures",), ("--markers",), ("--help",), ("--setup-plan",), ("-k", "no such test")],
    ids=" ".join,
)
def test_command_that_runs_no_test_leaves_the_last_reports_alone(
    project: pytest.Pytester, arguments: tuple[str, ...]
) -> None:
    project.makepyfile(EXAMPLE)
    reports = [Path(project.path, name) for name in ("evidence.json", "page.html")]
    for report in reports:
        report.write_text("the last run")
    project.runpytest_inprocess("--modelserve-html", "page.html", *arguments)
    assert [report.read_text() for report in reports] == ["the last run"] * 2


def test_run_without_tests_writes_no_report(project: pytest.Pytester, processes: tuple[str, ...]) -> None:
    project.makepyfile(test_empty="")
    assert project.runpytest_inprocess(*processes).ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert not Path(project.path, "evidence.json").exists()


def test_skipped_inconclusive_gate_of_a_unittest_case_is_a_skip(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import unittest
        from gates import gate
        class TestIt(unittest.TestCase):
            def test_undecided(self): gate(200)
    """)
    project.runpytest_inprocess("--modelserve-inconclusive=skip").assert_outcomes(skipped=1)
