"""Tests that end without a verdict: they stand in the table and in the document."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Fields = Callable[..., list[tuple[Any, ...]]]
Document = Callable[[], dict[str, Any]]


def test_crash_before_or_after_a_gate_is_an_error_in_the_table_the_document_and_the_page(
    project: pytest.Pytester, processes: tuple[str, ...], fields_of_gates: Fields, document: Document
) -> None:
    project.makepyfile(
        test_it="""
        import pytest
        from gates import gate
        @pytest.fixture
        def rows():
            return open("rows.npy")
        def test_before(): gate(len(open("wrong.txt").read()))
        def test_setup(rows): gate(100)
        def test_between():
            gate(100)
            gate(int("x"))
        def test_good(): gate(100)
    """
    )
    result = project.runpytest_inprocess("--modelserve-html", "page.html", *processes)
    result.assert_outcomes(passed=1, failed=2, errors=1)
    missing = "FileNotFoundError: [Errno 2] No such file or directory:"
    assert fields_of_gates("verdict", "node_id", "outcome", "error") == [
        ("ERROR", "test_it.py::test_before", "failed", f"{missing} 'wrong.txt'"),
        ("ERROR", "test_it.py::test_setup", "failed", f"setup: {missing} 'rows.npy'"),
        ("ERROR", "test_it.py::test_between", "failed", "ValueError: invalid literal for int() with base 10: 'x'"),
        ("PASS", "test_it.py::test_between", "failed", None),
        ("PASS", "test_it.py::test_good", "passed", None),
    ]
    assert document()["complete"] is True
    assert document()["without_evidence"] == {"failed": ["test_it.py::test_before", "test_it.py::test_setup"]}
    result.stdout.fnmatch_lines(
        [
            "no verdict",
            f"  test_it.py::test_before   ERROR  {missing} 'wrong.txt'",
            "2 gates: 2 PASS, 0 FAIL, 0 INCONCLUSIVE, 3 ERROR · evidence evidence.json *",
        ]
    )
    assert "No such file or directory: &#39;wrong.txt&#39;" in Path(project.path, "page.html").read_text("utf-8")


def test_run_whose_only_gate_test_crashes_is_no_empty_report(project: pytest.Pytester, fields_of_gates: Fields) -> None:
    project.makepyfile("from gates import gate\ndef test_it(): gate(open('wrong.txt'))\n")
    result = project.runpytest_inprocess()
    assert fields_of_gates("verdict") == [("ERROR",)]
    result.stdout.fnmatch_lines(["0 gates: 0 PASS, 0 FAIL, 0 INCONCLUSIVE, 1 ERROR*"])


def test_without_reports_an_error_before_the_first_gate_stands_in_the_table(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\npythonpath = .\naddopts = -p no:cacheprovider\n")
    project.makepyfile("""
        from gates import gate
        def test_lost(): open("wrong.txt")
        def test_good(): gate(100)
    """)
    project.runpytest_inprocess().stdout.fnmatch_lines(["*::test_lost  ERROR  FileNotFoundError*", "1 gate: * 1 ERROR"])


def test_module_that_fails_or_is_skipped_at_collection_is_listed_and_the_run_is_not_complete(
    project: pytest.Pytester, processes: tuple[str, ...], fields_of_gates: Fields, document: Document
) -> None:
    project.makepyfile(test_good="from gates import gate\ndef test_it(): gate(100)\n")
    project.makepyfile(test_lost="ROWS = open('rows.npy')\ndef test_it(): pass\n")
    project.makepyfile(test_skipped="import pytest\npytest.importorskip('no_such_module')\ndef test_it(): pass\n")
    project.runpytest_inprocess("--continue-on-collection-errors", *processes)
    assert fields_of_gates("verdict", "node_id", "error") == [
        ("ERROR", "test_lost.py", "collection: FileNotFoundError: [Errno 2] No such file or directory: 'rows.npy'"),
        ("PASS", "test_good.py::test_it", None),
    ]
    assert document()["without_evidence"] == {"failed": ["test_lost.py"], "skipped": ["test_skipped.py"]}
    assert document()["complete"] is False


def test_collection_error_that_ends_the_run_replaces_the_last_report(
    project: pytest.Pytester, fields_of_gates: Fields
) -> None:
    project.makepyfile("ROWS = open('rows.npy')\ndef test_it(): pass\n")
    Path(project.path, "evidence.json").write_text("the last run")
    assert project.runpytest_inprocess().ret == pytest.ExitCode.INTERRUPTED
    assert fields_of_gates("verdict") == [("ERROR",)]


def test_test_that_is_skipped_or_xfails_before_its_gate_is_listed(project: pytest.Pytester, document: Document) -> None:
    project.makepyfile(
        test_it="""
        import pytest
        from gates import gate
        def test_skipped(): pytest.skip("no model")
        @pytest.mark.xfail(strict=True)
        def test_expected(): open("wrong.txt")
        def test_plain(): pass
        def test_good(): gate(100)
    """
    )
    result = project.runpytest_inprocess()
    assert document()["without_evidence"] == {
        "skipped": ["test_it.py::test_skipped"],
        "xfailed": ["test_it.py::test_expected"],
        "passed": ["test_it.py::test_plain"],
    }
    result.stdout.fnmatch_lines(["1 gate: 1 PASS, 0 FAIL, 0 INCONCLUSIVE · without evidence: 1 skipped, 1 xfailed *"])


def test_candidate_that_passes_although_its_failure_is_expected_is_an_error(
    project: pytest.Pytester, fields_of_gates: Fields
) -> None:
    project.makepyfile("""
        import pytest, pytest_modelserve as ms
        from gates import gate
        @pytest.mark.xfail(strict=True, raises=ms.GateFailure, reason="shuffled")
        def test_bad_candidate(): gate(100)
    """)
    project.runpytest_inprocess().assert_outcomes(failed=1)
    assert fields_of_gates("verdict", "error") == [("ERROR", "[XPASS(strict)] shuffled"), ("PASS", None)]


SUBTESTS = {
    "unittest": """
        import unittest
        from gates import gate
        class TestDays(unittest.TestCase):
            def test_days(self):
                for wrong in (100, 600):
                    with self.subTest(wrong=wrong):
                        gate(wrong)
                with self.subTest("later"):
                    open("wrong.txt")
    """,
    "fixture": """
        from gates import gate
        def test_days(subtests):
            for wrong in (100, 600):
                with subtests.test(wrong=wrong):
                    gate(wrong)
            with subtests.test("later"):
                open("wrong.txt")
    """,
}


@pytest.mark.parametrize("kind", SUBTESTS)
def test_failure_inside_a_subtest_is_a_failure(
    project: pytest.Pytester, processes: tuple[str, ...], fields_of_gates: Fields, document: Document, kind: str
) -> None:
    project.makepyfile(SUBTESTS[kind])
    project.runpytest_inprocess(*processes)
    missing = "[later]: FileNotFoundError: [Errno 2] No such file or directory: 'wrong.txt'"
    assert fields_of_gates("verdict", "outcome", "expected", "error") == [
        ("FAIL", "failed", False, None),
        ("ERROR", "failed", False, missing),
        ("PASS", "failed", False, None),
    ]
    assert document()["complete"] is True


def test_error_of_an_attempt_that_was_rerun_is_labeled(
    project: pytest.Pytester, processes: tuple[str, ...], fields_of_gates: Fields
) -> None:
    pytest.importorskip("pytest_rerunfailures")
    project.makepyfile("""
        from pathlib import Path
        from gates import gate
        def test_flaky():
            if not Path("seen").exists():
                Path("seen").touch()
                raise OSError("busy")
            gate(100)
    """)
    result = project.runpytest_inprocess("--reruns", "1", *processes)
    assert fields_of_gates("verdict", "outcome", "attempt", "judged") == [
        ("PASS", "passed", 2, True),
        ("ERROR", "rerun", 1, False),
    ]
    result.stdout.fnmatch_lines(
        ["*ERROR  OSError: busy · attempt 1, rerun: does not count", "1 gate: 1 PASS, 0 FAIL, *"]
    )
