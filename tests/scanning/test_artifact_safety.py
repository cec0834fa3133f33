"""The gate on the scan, and who calls it: serve, the command, the settings of a project."""

import json
import os

import pytest

import pytest_modelserve as ms
from fixtures.bad_models import bad_files
from fixtures.onnx_parts import const, good, make_node, model, saved, vector
from pytest_modelserve.__main__ import main
from pytest_modelserve.scanning import check_unchanged, scan, scan_file
from pytest_modelserve.scanning.sandbox import SandboxResult
from tests.plugin.conftest import installed_modules_stay_loaded  # noqa: F401 (an automatic fixture)

INT64 = 7


@pytest.fixture
def divides(tmp_path):
    nodes = [make_node("Div", ["x", "b"], ["y"], name="per_item")]
    inputs = [vector("x", INT64), vector("b", INT64)]
    return saved(model(nodes, inputs=inputs, outputs=[vector("y", INT64)]), "candidate.onnx")(tmp_path)


def test_safe_file_passes_and_is_opened_once(tmp_path):
    evidence = ms.assert_artifact_safe(saved(good())(tmp_path))
    assert (evidence.value, evidence.details["findings"], evidence.details["opened"]) == (0, [], True)


def test_unsafe_file_fails_with_rule_place_and_advice(divides):
    with pytest.raises(ms.GateFailure, match=r"the file is refused: compute\.integer-division") as failure:
        ms.assert_artifact_safe(divides)
    (found,) = failure.value.evidence.details["findings"]
    assert (found["rule"], found["place"]) == ("compute.integer-division", "node 'per_item' (Div)")
    assert "cast to float" in str(failure.value)


def test_allowed_rule_stands_in_the_report_with_its_reason(divides):
    evidence = ms.assert_artifact_safe(
        divides, allow={"compute.integer-division": "the caller checks b"}, scan="static"
    )
    assert "allowed (the caller checks b): compute.integer-division" in evidence.findings[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"allow": {"compute.integer-divison": "r"}}, "did you mean 'compute.integer-division'"),
        ({"allow": {"file.link": " "}}, "needs a reason"),
        ({"scan": "strictly"}, "did you mean 'strict'"),
    ],
)
def test_wrong_setting_is_a_usage_error(divides, settings, message):
    with pytest.raises(ms.UsageError, match=message):
        ms.assert_artifact_safe(divides, **settings)


@pytest.mark.parametrize("path", ["nowhere.onnx", "a\0b.onnx"])
def test_file_that_does_not_exist_is_an_artifact_error(path):
    with pytest.raises(ms.ArtifactError, match="cannot scan"):
        ms.assert_artifact_safe(path)


def test_strict_scan_refuses_where_a_limit_cannot_be_set(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "run_in_sandbox", lambda *_, **__: SandboxResult({}, missing=("reading", "network")))
    path = saved(good())(tmp_path)
    with pytest.raises(ms.GateFailure, match=r"limits that could not be set: reading, network"):
        ms.assert_artifact_safe(path)
    assert ms.assert_artifact_safe(path, allow={"trial.limits": "no Landlock on this host"}).passed


@pytest.mark.parametrize(
    ("result", "rule", "message"),
    [
        (
            SandboxResult(events=("opening",), timed_out=True),
            "trial.deadline",
            "opening takes more than 1.2 s of processor time",
        ),
        (
            SandboxResult(events=("opening",), signal=8),
            "compute.integer-division",
            "opening ends the process by SIGFPE",
        ),
        (SandboxResult(events=("opening", "running"), signal=11), "trial.crash", "running ends the process by SIGSEGV"),
        (
            SandboxResult(events=("running",), error="MemoryError: bad_alloc"),
            "trial.memory",
            "running takes more memory",
        ),
        (
            SandboxResult(events=({"opened_bytes": 1 << 30},)),
            "compute.amplification",
            "opening takes 1,073,741,824 bytes",
        ),
        (
            SandboxResult(error="the process of the scanner ended"),
            "trial.refused",
            "starting: the process of the scanner",
        ),
    ],
)
def test_end_of_a_trial_has_a_rule(tmp_path, monkeypatch, result, rule, message):
    monkeypatch.setattr(scan, "run_in_sandbox", lambda *_, **__: result)
    (found,) = scan_file(saved(good())(tmp_path)).findings
    assert (found.rule, found.severity) == (rule, "error")
    assert found.message.startswith(message)


def test_long_run_of_a_large_model_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "run_in_sandbox", lambda *_, **__: SandboxResult(events=("running",), timed_out=True))
    monkeypatch.setattr(scan, "_SMALL_BYTES", 10)
    report = scan_file(saved(good())(tmp_path))
    assert (report.is_safe, [each.rule for each in report.findings]) == (True, ["trial.deadline"])


def test_serve_scans_first_and_notices_an_exchanged_file(tmp_path, divides):
    path = saved(good())(tmp_path)
    with ms.serve(path, scan="strict") as model_:
        assert model_.signature.inputs[0].name == "x"
    with pytest.raises(ms.ArtifactError, match=r"the scan refuses .*candidate.onnx, which is not opened: compute"):
        ms.serve(divides, scan="strict")
    with pytest.raises(ms.UsageError, match="scan='static' applies to files only"):
        ms.serve(lambda x: x, scan="static")
    report = scan_file(path, mode="static")
    os.utime(path)
    with pytest.raises(ms.ArtifactError, match="has changed since it was scanned"):
        check_unchanged(report)


def test_command_prints_findings_and_writes_sarif(tmp_path, divides, capsys):
    safe = saved(good())(tmp_path)
    assert main(["scan", str(safe)]) == 0
    assert main(["scan", str(safe), str(divides), "--sarif", str(tmp_path / "s.sarif")]) == 1
    assert "error: compute.integer-division: node 'per_item' (Div)" in capsys.readouterr().out
    log = json.loads((tmp_path / "s.sarif").read_text())
    (result,) = log["runs"][0]["results"]
    assert (result["ruleId"], result["level"]) == ("compute.integer-division", "error")
    assert log["runs"][0]["tool"]["driver"]["rules"][0]["id"] == "compute.integer-division"
    allow = "compute.integer-division=the caller checks"
    assert main(["scan", "--static", str(divides), "--allow", allow, "--sarif", str(tmp_path / "s.sarif")]) == 0
    (result,) = json.loads((tmp_path / "s.sarif").read_text())["runs"][0]["results"]
    assert result["suppressions"][0]["justification"] == "the caller checks"


@pytest.mark.parametrize("arguments", [["nowhere.onnx"], ["a.onnx", "--allow", "file.link"]])
def test_wrong_call_of_the_command_has_status_2(arguments, capsys):
    assert main(["scan", *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_names_of_a_file_reach_no_terminal_as_they_are(tmp_path, capsys):
    (bad,) = (each for each in bad_files() if str(each) == "control-characters/ansi")
    assert main(["scan", str(bad.write(tmp_path))]) == 1
    shown = capsys.readouterr().out
    assert r"\x1b[31mred" in shown
    assert "\x1b" not in shown


def test_project_allows_rules_in_its_settings(pytester, divides):
    pytester.makeini("[pytest]\nmodelserve_scan_allow =\n    compute.integer-division: b is never 0\n")
    pytester.makepyfile(f"""
        import pytest_modelserve as ms

        def test_safe():
            evidence = ms.assert_artifact_safe({str(divides)!r}, scan="static")
            assert "allowed (b is never 0)" in evidence.findings[0]
    """)
    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
    pytester.makeini("[pytest]\nmodelserve_scan_allow = compute.integer-division\n")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.stderr.fnmatch_lines(["*expected 'rule: reason', got 'compute.integer-division'*"])


def test_output_of_the_page_is_what_the_command_prints(divides, monkeypatch, capsys):
    monkeypatch.chdir(divides.parent)
    assert main(["scan", "candidate.onnx"]) == 1
    page = (ms.__file__.rpartition("pytest_modelserve")[0]) + "docs/safety.md"
    with open(page, encoding="utf-8") as file:
        assert capsys.readouterr().out in file.read()


def test_constant_that_is_folded_into_a_trap_is_named_without_opening(tmp_path):
    nodes = [const("a", [-(2**63)]), const("b", [-1]), make_node("Div", ["a", "b"], ["c"]), make_node("Add", ["x", "c"], ["y"])]  # fmt: skip
    path = saved(model(nodes, inputs=[vector("x", INT64)], outputs=[vector("y", INT64)]))(tmp_path)
    assert not scan_file(path).opened
