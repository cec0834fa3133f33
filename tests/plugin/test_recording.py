"""Whose evidence it is and how often it is told: the same with and without xdist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Fields = Callable[..., list[tuple[Any, ...]]]
Document = Callable[[], dict[str, Any]]


def test_each_verdict_reaches_the_document(
    project: pytest.Pytester, processes: tuple[str, ...], fields_of_gates: Fields, document: Document
) -> None:
    project.makepyfile("""
        from gates import gate
        def test_good(): gate(100)
        def test_undecided(): gate(200)
        def test_bad(): gate(600)
    """)
    result = project.runpytest_inprocess(*processes)
    result.assert_outcomes(passed=1, failed=2)
    assert fields_of_gates("verdict", "outcome", "expected") == [
        ("FAIL", "failed", False),
        ("INCONCLUSIVE", "failed", False),
        ("PASS", "passed", False),
    ]
    assert document()["complete"] is True
    assert document()["exit_status"] == 1
    assert document()["counts"] == {"selected": 3, "deselected": 0, "ended": 3, "expected_failures": 0}
    assert document()["false_fail_probability_at_most"] == pytest.approx(0.003)


@pytest.mark.parametrize("processes", [(), ("-n", "2")], ids=["one process", "two workers"])
def test_session_fixture_evidence_is_told_once_and_is_the_fixtures(
    project: pytest.Pytester, processes: tuple[str, ...], fields_of_gates: Fields
) -> None:
    project.makepyfile("""
        import pytest
        from gates import gate
        @pytest.fixture(scope="session")
        def accepted():
            return gate(100)
        @pytest.mark.parametrize("case", range(6))
        def test_uses_it(accepted, case): pass
    """)
    project.runpytest_inprocess(*processes).assert_outcomes(passed=6)
    assert fields_of_gates("owner", "verdict") == [("fixture accepted", "PASS")]


def test_function_fixture_evidence_belongs_to_each_test(project: pytest.Pytester, fields_of_gates: Fields) -> None:
    project.makepyfile("""
        import pytest
        from gates import gate
        @pytest.fixture
        def accepted(): return gate(100)
        def test_a(accepted): pass
        def test_b(accepted): pass
    """)
    project.runpytest_inprocess().assert_outcomes(passed=2)
    assert [owner.split("::")[1] for (owner,) in fields_of_gates("owner")] == ["test_a", "test_b"]


def test_failing_session_fixture_is_told_once(project: pytest.Pytester, fields_of_gates: Fields) -> None:
    project.makepyfile("""
        import pytest
        from gates import gate
        @pytest.fixture(scope="session")
        def accepted(): return gate(600)
        def test_a(accepted): pass
        def test_b(accepted): pass
    """)
    project.runpytest_inprocess().assert_outcomes(errors=2)
    assert fields_of_gates("verdict", "expected") == [("FAIL", False)]


def test_given_leaves_the_worst_example_with_their_number(project: pytest.Pytester, fields_of_gates: Fields) -> None:
    project.makepyfile("""
        from gates import LABELS, ROWS, model, ms
        from hypothesis import given, settings, strategies as st
        @settings(max_examples=10, database=None, deadline=None, derandomize=True)
        @given(st.sampled_from([0.5, 0.6, 0.7]))
        def test_for_all(floor):
            ms.assert_accuracy(model(100), ROWS, LABELS, min_value=floor)
    """)
    project.runpytest_inprocess().assert_outcomes(passed=1)
    ((verdict, examples),) = fields_of_gates("verdict", "examples")
    assert verdict == "PASS"
    assert examples == 3  # hypothesis tries each of three values once


def test_given_that_fails_leaves_the_failure(project: pytest.Pytester, fields_of_gates: Fields) -> None:
    project.makepyfile("""
        from gates import LABELS, ROWS, model, ms
        from hypothesis import given, settings, strategies as st
        @settings(max_examples=30, database=None, deadline=None, derandomize=True)
        @given(st.integers(1, 99))
        def test_for_all(percent):
            ms.assert_accuracy(model(600), ROWS, LABELS, min_value=percent / 100)
    """)
    project.runpytest_inprocess().assert_outcomes(failed=1)
    assert fields_of_gates("verdict") == [("FAIL",)]


def test_rerun_judges_the_last_attempt_and_tells_the_first(
    project: pytest.Pytester, processes: tuple[str, ...], fields_of_gates: Fields
) -> None:
    pytest.importorskip("pytest_rerunfailures")
    project.makepyfile("""
        from pathlib import Path
        from gates import gate
        def test_flaky():
            seen = Path("seen")
            first, _ = not seen.exists(), seen.touch()
            gate(600 if first else 100)
    """)
    result = project.runpytest_inprocess("--reruns", "1", *processes)
    result.assert_outcomes(passed=1)
    assert fields_of_gates("verdict", "attempt", "judged") == [("FAIL", 1, False), ("PASS", 2, True)]
    result.stdout.fnmatch_lines(
        [
            "*attempt 1, rerun: does not count *",
            "*attempt 2: error rates do not hold under reruns *",
            "1 gate: 1 PASS, *",
        ]
    )


@pytest.mark.parametrize("how", ["contextvars.copy_context().run", "lambda f: f()"], ids=["copy_context", "plain"])
def test_threads_keep_their_evidence(project: pytest.Pytester, fields_of_gates: Fields, how: str) -> None:
    project.makepyfile(f"""
        import contextvars, threading
        from gates import gate, model
        def test_threads():
            run = {how}
            contexts = [{how} for _ in range(3)]
            threads = [threading.Thread(target=run, args=(lambda: gate(100),)) for run in contexts]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
    """)
    project.runpytest_inprocess().assert_outcomes(passed=1)
    assert fields_of_gates("verdict") == [("PASS",)] * 3


def test_strict_xfail_is_an_expected_catch(
    project: pytest.Pytester, fields_of_gates: Fields, document: Document
) -> None:
    project.makepyfile("""
        import pytest, pytest_modelserve as ms
        from gates import gate
        @pytest.mark.xfail(strict=True, raises=ms.GateFailure)
        def test_bad_candidate(): gate(600)
    """)
    result = project.runpytest_inprocess()
    result.assert_outcomes(xfailed=1)
    assert fields_of_gates("verdict", "outcome", "expected") == [("FAIL", "xfailed", True)]
    assert document()["counts"]["expected_failures"] == 1
    result.stdout.fnmatch_lines(["1 gate: 0 PASS, 1 FAIL (all expected), 0 INCONCLUSIVE*"])


def test_inconclusive_is_not_the_expected_failure(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import pytest, pytest_modelserve as ms
        from gates import gate
        @pytest.mark.xfail(strict=True, raises=ms.GateFailure)
        def test_bad_candidate(): gate(200)
    """)
    project.runpytest_inprocess().assert_outcomes(failed=1)


@pytest.mark.parametrize("arguments", [("-x",), ("-k", "good"), ("--maxfail=1",)])
def test_partial_run_never_looks_complete(
    project: pytest.Pytester, document: Document, arguments: tuple[str, ...]
) -> None:
    project.makepyfile("""
        from gates import gate
        def test_bad(): gate(600)
        def test_good(): gate(100)
        def test_more(): gate(100)
    """)
    project.runpytest_inprocess(*arguments)
    assert document()["complete"] is False


def test_last_failed_run_never_looks_complete(project: pytest.Pytester, document: Document) -> None:
    project.makepyfile(test_one="from gates import gate\ndef test_bad(): gate(600)\n")
    project.makepyfile(test_two="from gates import gate\ndef test_good(): gate(100)\n")
    project.makeini("[pytest]\npythonpath = .\nmodelserve_json = evidence.json\n")
    project.runpytest_inprocess()
    assert document()["complete"] is True
    project.runpytest_inprocess("--lf")
    assert document()["complete"] is False
    assert document()["counts"]["selected"] == 1


def test_lost_worker_leaves_a_row(project: pytest.Pytester, fields_of_gates: Fields, document: Document) -> None:
    project.makepyfile("""
        import os
        from gates import gate
        def test_good(): gate(100)
        def test_gone(): os._exit(1)
    """)
    result = project.runpytest_inprocess("-n", "1")
    assert ("test_lost_worker_leaves_a_row.py::test_gone", "CRASHED", None) in fields_of_gates(
        "node_id", "verdict", "evidence"
    )
    assert document()["complete"] is False
    result.stdout.fnmatch_lines(["*test_gone* CRASHED *its worker crashed", "1 gate:*1 CRASHED*"])


def test_killed_run_leaves_a_document_that_says_so(project: pytest.Pytester, document: Document) -> None:
    project.makepyfile(test_first="from gates import gate\ndef test_good(): gate(100)\n")
    project.runpytest_inprocess()
    assert document()["complete"] is True
    project.makepyfile(test_second="import os\ndef test_gone(): os._exit(1)\n")
    project.runpytest_subprocess()
    assert document()["complete"] is False
    assert document()["exit_status"] is None
    assert document()["gates"] == []
