"""Write the reports of a run: each file is replaced atomically, and one that cannot be written keeps no other away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_modelserve._files import write_file
from pytest_modelserve.errors import UsageError
from pytest_modelserve.reporting.ci import code_quality_json, ctrf_json, github_annotations
from pytest_modelserve.reporting.collector import as_json
from pytest_modelserve.reporting.exports import otlp_json, prometheus_text
from pytest_modelserve.reporting.history import append_run, check_folder, read_history
from pytest_modelserve.reporting.html_report import render_page
from pytest_modelserve.reporting.markdown import markdown_report

Document = dict[str, Any]
_DRAWN_BUILDS = 60
_RAN_THROUGH = (0, 1)
"""The exit statuses of pytest for a run that was not interrupted: all passed, and some failed."""


def write_reports(document: Document, paths: Mapping[str, Path], history: Path | None = None) -> list[str]:
    """Write the document as each kind of `paths`, and add a run that ended to the folder `history`.

    The page draws samples beside the JSON document and the builds of the history. Returns one sentence for each file or
    folder that cannot be written.
    """

    def page(document: Document) -> str:
        builds = None
        if history is not None and history.is_dir() and document["gates"]:
            builds = read_history(history, last=_DRAWN_BUILDS).with_changes()
        return render_page(document, folder=paths["json"].parent if "json" in paths else None, history=builds)

    writers: dict[str, Callable[[Document], str]] = {
        "json": as_json,
        "html": page,
        "markdown": markdown_report,
        "code-quality": code_quality_json,
        "ctrf": ctrf_json,
        "prometheus": prometheus_text,
        "otlp": otlp_json,
    }
    problems = [] if history is None else list(_add_to_history(history, document))
    for kind, path in paths.items():
        try:
            # A name from a file system may hold lone surrogates, which UTF-8 cannot hold.
            write_file(path, [writers[kind](document).encode("utf-8", "backslashreplace")])
        except OSError as error:
            reason = error.strerror or error
            problems.append(f"--modelserve-{kind}: cannot write the report to {path}: {reason}; use a writable path")
    return problems


def _add_to_history(folder: Path, document: Document) -> Iterator[str]:
    try:
        check_folder(folder)
        if document["exit_status"] in _RAN_THROUGH and document["gates"]:
            append_run(folder, document)
    except UsageError as error:
        yield str(error)


def report_to_github(document: Document, summary: str | None) -> Iterator[str]:
    """Add the run to the file of the job's summary, and yield the lines to print: annotations, or why it was not added.

    Args:
        document: The JSON document of the run.
        summary: The value of GITHUB_STEP_SUMMARY, if it is set.
    """
    yield from github_annotations(document)
    if summary:
        try:
            with open(summary, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"\n{markdown_report(document)}")
        except OSError as error:
            yield f"modelserve: cannot write the job summary to {summary}: {error.strerror or error}"
