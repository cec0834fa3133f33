"""Options, their ini twins, and what a wrong one says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

UNDECIDED = """
    from gates import gate
    def test_undecided(): gate(200)
"""


@pytest.mark.parametrize(
    ("policy", "outcomes"), [("fail", {"failed": 1}), ("skip", {"skipped": 1}), ("warn", {"passed": 1, "warnings": 1})]
)
def test_inconclusive_policy(project: pytest.Pytester, policy: str, outcomes: dict[str, int]) -> None:
    project.makepyfile(UNDECIDED)
    result = project.runpytest_inprocess(f"--modelserve-inconclusive={policy}", "-W", "default")
    result.assert_outcomes(**outcomes)
    result.stdout.fnmatch_lines(["1 gate: 0 PASS, 0 FAIL, 1 INCONCLUSIVE*"])


def test_policy_of_the_ini_file_reaches_the_workers(project: pytest.Pytester) -> None:
    project.makepyfile(UNDECIDED)
    result = project.runpytest_inprocess("-o", "modelserve_inconclusive=skip", "-n", "1")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["1 gate: 0 PASS, 0 FAIL, 1 INCONCLUSIVE*"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modelserve-inconclusive=skp"], "unknown --modelserve-inconclusive 'skp': did you mean 'skip'? *"),
        (
            ["--modelserve-endpoint=127.0.0.1:80"],
            "--modelserve-endpoint: url '127.0.0.1:80' is no address of a model *",
        ),
        (["--modelserve-seed=-1"], "--modelserve-seed must be an integer of at least 0, got '-1'"),
        (
            ["--modelserve-json=gates.py/e.json"],
            "--modelserve-json: cannot write the report to *gates.py/e.json: *writable path",
        ),
    ],
)
def test_wrong_setting_ends_the_run_at_once(project: pytest.Pytester, arguments: list[str], message: str) -> None:
    project.makepyfile(UNDECIDED)
    result = project.runpytest_inprocess(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])


def test_rule_of_redaction_that_names_nothing_of_the_run_is_said_once(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import numpy as np
        import pytest_modelserve as ms

        def test_named_inputs():
            rows = {"ssn": np.ones((3, 1)), "age": np.ones((3, 2))}
            ms.assert_relation(lambda feed: feed["age"], rows, ms.relations.finite_outputs(), candidates=0)

        def test_features():
            finite = ms.relations.finite_outputs()
            ms.assert_relation(lambda x: x, np.ones((3, 2)), finite, candidates=0, feature_names=["income", "town"])
    """)
    project.makeini("[pytest]\nmodelserve_redact =\n    snn\n    age[1]\n    inc*: hash\n    id_*\n")
    lines = [line for line in project.runpytest_inprocess().outlines if line.startswith("modelserve_redact")]
    assert lines == [
        "modelserve_redact: unknown input or column of this run 'snn': did you mean 'ssn'? Known: 'age', 'income', "
        "'input', 'ssn', 'town'",
        "modelserve_redact: unknown input or column of this run 'id_*': known: 'age', 'income', 'input', 'ssn', 'town'",
    ]
    project.runpytest_inprocess("-k", "named_inputs").stdout.no_fnmatch_line("modelserve_redact*")


def test_help_states_the_defaults(pytester: pytest.Pytester) -> None:
    text = " ".join(pytester.runpytest_inprocess("--help").stdout.str().split())
    for option, default in (
        ("json=PATH", "not written"),
        ("html=PATH", "not written"),
        ("inconclusive=fail|skip|warn", "fail"),
        ("cache=DIR", ".modelserve/cache in the root directory"),
        ("seed=N", "0"),
    ):
        help_text = text.partition(f"--modelserve-{option}")[2]
        assert help_text.partition("(default: ")[2].startswith(f"{default})"), option


def test_cache_and_seed_reach_the_pipeline(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        from pathlib import Path
        def test_it(modelserve, request):
            assert modelserve.seed == 7
            assert modelserve.store.root == Path(request.config.rootpath, "elsewhere")
    """)
    settings = ("-o", "modelserve_cache=elsewhere", "-o", "modelserve_seed=7")
    pytester.runpytest_inprocess(*settings).assert_outcomes(passed=1)
    overruled = ("--modelserve-cache", "nowhere", "--modelserve-seed", "8")
    pytester.runpytest_inprocess(*settings, *overruled).assert_outcomes(failed=1)


def test_ini_twin_of_the_document_starts_at_the_root(project: pytest.Pytester, document: Callable[[], Any]) -> None:
    project.makeini("[pytest]\npythonpath = .\nmodelserve_json = evidence.json\n")
    project.makepyfile(UNDECIDED)
    Path(project.path, "below").mkdir()
    project.runpytest_inprocess("--rootdir", ".", project.path)
    assert document()["counts"]["selected"] == 1
