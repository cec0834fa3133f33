"""Write the reports of a run: each file is replaced atomically, and the others are written if one cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pytest_modelserve._files import write_file
from pytest_modelserve.reporting.ci import code_quality_json, ctrf_json, github_annotations
from pytest_modelserve.reporting.collector import as_json
from pytest_modelserve.reporting.exports import otlp_json, prometheus_text
from pytest_modelserve.reporting.history import History, append_run, check_folder, read_history
from pytest_modelserve.reporting.html_report import render_page
from pytest_modelserve.reporting.markdown import markdown_report

Document = dict[str, Any]
_DRAWN_BUILDS = 60
_RAN_THROUGH = (0, 1)
"""The exit statuses of pytest for a run that was not interrupted: all passed, and some failed."""


def add_to_history(folder: Path, document: Document) -> History | None:
    """Add a run that ended to the folder, and return its last builds; None for a run that judged nothing.

    Raises UsageError if the folder cannot be written.
    """
    check_folder(folder)
    if document["exit_status"] not in _RAN_THROUGH or not document["gates"]:
        return None
    append_run(folder, document)
    return read_history(folder, last=_DRAWN_BUILDS).with_changes()


def write_reports(document: Document, paths: Mapping[str, Path], history: History | None = None) -> list[str]:
    """Write the document as each kind of `paths`; return one sentence for each file that cannot be written.

    The page draws samples beside the JSON document. Page and Markdown show the builds of the history.
    """
    folder = paths["json"].parent if "json" in paths else None
    writers: dict[str, Callable[[Document], str]] = {
        "json": as_json,
        "html": partial(render_page, folder=folder, history=history),
        "markdown": partial(markdown_report, history=history),
        "code-quality": code_quality_json,
        "ctrf": ctrf_json,
        "prometheus": prometheus_text,
        "otlp": otlp_json,
    }
    problems = []
    for kind, path in paths.items():
        try:
            # A name from a file system may hold lone surrogates, which UTF-8 cannot hold.
            write_file(path, [writers[kind](document).encode("utf-8", "backslashreplace")])
        except OSError as error:
            reason = error.strerror or error
            problems.append(f"--modelserve-{kind}: cannot write the report to {path}: {reason}; use a writable path")
    return problems


def report_to_github(document: Document, summary: str | None, history: History | None = None) -> Iterator[str]:
    """Add the run to the file of the job's summary, and yield the lines to print: annotations, or why it was not added.

    Args:
        document: The JSON document of the run.
        summary: The value of GITHUB_STEP_SUMMARY, if it is set.
        history: The builds up to this run.
    """
    yield from github_annotations(document)
    if summary:
        try:
            with open(summary, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"\n{markdown_report(document, history=history)}")
        except OSError as error:
            yield f"modelserve: cannot write the job summary to {summary}: {error.strerror or error}"
