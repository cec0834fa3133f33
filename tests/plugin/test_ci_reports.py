"""Reports for code hosts: annotations, the summary of a job, and the files that options write."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from pytest_modelserve.__main__ import main

EXAMPLE = """
    from gates import gate

    def test_good(): gate(100)
    def test_bad(): gate(600)
    def test_open(): gate(200)
"""


@pytest.fixture
def on_github(monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> Path:
    """The file of the job's summary, in the environment of a job."""
    summary = Path(pytester.path, "summary.md")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    return summary


def test_every_option_writes_its_report(project: pytest.Pytester, processes: tuple[str, ...]) -> None:
    project.makepyfile(test_x=EXAMPLE)
    kinds = ("json", "html", "markdown", "code-quality", "ctrf", "prometheus", "otlp")
    result = project.runpytest_inprocess(*(f"--modelserve-{kind}=out/{kind}" for kind in kinds), *processes)
    assert {path.name for path in Path(project.path, "out").iterdir()} == {*kinds}
    result.stdout.fnmatch_lines(["3 gates: * evidence out/json * page out/html * markdown out/markdown *"])


def test_test_is_found_at_its_line_with_and_without_workers(
    project: pytest.Pytester, document: Callable[[], Any], processes: tuple[str, ...]
) -> None:
    project.makepyfile(test_x=EXAMPLE)
    project.runpytest_inprocess(*processes)
    assert {(gate["node_id"], gate["file"], gate["line"]) for gate in document()["gates"]} == {
        ("test_x.py::test_good", "test_x.py", 3),
        ("test_x.py::test_bad", "test_x.py", 4),
        ("test_x.py::test_open", "test_x.py", 5),
    }


def test_file_is_named_from_the_top_of_the_git_tree(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    project.mkdir(".git")
    models = project.mkdir("models")
    for name in ("gates.py", "tox.ini"):
        (project.path / name).rename(models / name)
    (models / "test_x.py").write_text("from gates import gate\ndef test_good(): gate(100)\n")
    monkeypatch.chdir(models)
    project.runpytest_inprocess()
    (gate,) = json.loads((models / "evidence.json").read_text())["gates"]
    assert (gate["node_id"], gate["file"], gate["line"]) == ("test_x.py::test_good", "models/test_x.py", 2)


def test_job_gets_annotations_and_a_summary(project: pytest.Pytester, on_github: Path) -> None:
    project.makepyfile(test_x=EXAMPLE)
    on_github.write_text("of an earlier step")
    result = project.runpytest_inprocess("-o", "addopts=")
    assert [line.partition(",title=")[0] for line in result.outlines if line.startswith("::")] == [
        "::error file=test_x.py,line=4",
        "::error file=test_x.py,line=5",
    ]
    assert on_github.read_text().startswith("of an earlier step\n## ❌ Model gates: 1 PASS, 1 FAIL, 1 INCONCLUSIVE\n")


def test_annotations_are_printed_in_jobs_of_github_alone(
    project: pytest.Pytester, on_github: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS")
    project.makepyfile(test_x=EXAMPLE)
    result = project.runpytest_inprocess()
    assert not [line for line in result.outlines if line.startswith("::")]
    assert not on_github.exists()


def test_job_without_gates_gets_nothing(pytester: pytest.Pytester, on_github: Path) -> None:
    pytester.makepyfile("def test_plain(): assert False")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.stdout.no_fnmatch_line("::*")
    assert not on_github.exists()


def test_summary_that_cannot_be_written_is_a_line_and_no_failure(
    project: pytest.Pytester, on_github: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(on_github.parent / "gates.py" / "summary.md"))
    project.makepyfile("from gates import gate\ndef test_good(): gate(100)")
    result = project.runpytest_inprocess()
    result.stdout.fnmatch_lines(["modelserve: cannot write the job summary to *: Not a directory"])
    assert result.ret == 0


def test_report_that_cannot_be_written_keeps_no_other_from_being_written(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import os
        from gates import gate
        def test_good():
            os.remove("page.html")
            os.mkdir("page.html")
            gate(100)
        """
    )
    result = project.runpytest_inprocess("--modelserve-html=page.html", "--modelserve-ctrf=ctrf.json")
    assert "--modelserve-html: cannot write the report to" in result.stdout.str() + result.stderr.str()
    assert json.loads(Path(project.path, "ctrf.json").read_text())["results"]["summary"]["passed"] == 1


def test_names_from_outside_command_neither_terminal_nor_code_host(project: pytest.Pytester, on_github: Path) -> None:
    project.makepyfile(
        r"""
        import numpy as np
        import pytest
        import pytest_modelserve as ms
        NAME = "::error::pwned ##[error]pwned \x1b[2J\n::warning::</script>"
        @pytest.mark.parametrize("name", [NAME])
        def test_bad(name):
            model = ms.serve(lambda x: np.eye(2, dtype=np.float32)[[0] * 600], name=name)
            ms.assert_accuracy(model, np.zeros((600, 1), np.float32), [1] * 600, min_value=0.9, label=name)
        """
    )
    result = project.runpytest_inprocess("--tb=no", "--junit-xml=junit.xml", "--modelserve-html=page.html")
    text = result.stdout.str()
    commands = [line for line in text.splitlines() if line.lstrip().startswith("::")]
    assert len(commands) == 1
    assert commands[0].startswith("::error file=test_names_from_outside")
    ours = text.partition(" modelserve ===")[2].partition(" short test summary info ")[0]
    assert "pwned" in ours
    assert "##[" not in ours
    assert "\x1b" not in text
    assert "</script>" not in Path(project.path, "page.html").read_text().replace("</script>\n", "", 1)
    assert "::" not in [line.strip()[:2] for line in on_github.read_text().splitlines()]
    ElementTree.parse(project.path / "junit.xml")


def test_every_run_joins_the_history_and_the_command_draws_it(
    project: pytest.Pytester, processes: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    project.makepyfile(test_x=EXAMPLE)
    for arguments in ((), processes):
        result = project.runpytest_inprocess("--modelserve-history=history", *arguments)
    result.stdout.fnmatch_lines(["3 gates: * evidence evidence.json * history history"])
    files = list(Path(project.path, "history").iterdir())
    assert {path.suffix for path in files} == {".json"}
    assert len(files) == 2
    capsys.readouterr()
    assert main(["history", str(project.path / "history")]) == 0
    shown = capsys.readouterr().out
    assert "2 builds from" in shown
    assert "wrong600" in shown


def test_interrupted_run_does_not_join_the_history(project: pytest.Pytester) -> None:
    project.makepyfile("from gates import gate\ndef test_it():\n    gate(100)\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        project.runpytest_inprocess("--modelserve-history=history")
    assert list(Path(project.path, "history").iterdir()) == []


def test_history_that_cannot_be_written_ends_the_run_before_its_first_test(project: pytest.Pytester) -> None:
    project.makepyfile(test_x=EXAMPLE)
    result = project.runpytest_inprocess("--modelserve-history=gates.py/history", "-o", "addopts=")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --modelserve-history: cannot write to *gates.py/history: *use a writable folder"]
    )


def test_name_that_utf8_cannot_hold_is_in_every_report(project: pytest.Pytester) -> None:
    project.makepyfile(
        """
        import numpy as np
        import pytest_modelserve as ms
        def test_good():
            labels = np.arange(600) % 2
            model = ms.serve(lambda x: np.eye(2, dtype=np.float32)[labels], name="a\\udcffb")
            ms.assert_accuracy(model, np.zeros((600, 1), np.float32), labels, min_value=0.9)
        """
    )
    kinds = ("json", "html", "markdown", "code-quality", "ctrf", "prometheus", "otlp")
    options = [f"--modelserve-{kind}=out/{kind}" for kind in kinds]
    assert project.runpytest_inprocess(*options, "--modelserve-history=history").ret == 0
    for kind in ("json", "html", "markdown", "ctrf", "prometheus", "otlp"):
        assert "a\\udcffb" in Path(project.path, "out", kind).read_text("utf-8").replace("\\\\", "\\"), kind
