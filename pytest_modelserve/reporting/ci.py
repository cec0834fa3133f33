"""Formats of code hosts and test dashboards: annotations of GitHub, code quality of GitLab, and CTRF."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from pytest_modelserve.evidence.failure_text import printable
from pytest_modelserve.reporting.entries import GROUPS, Entry, Group, entries_of, short

_MOST_ANNOTATIONS = 10
"""GitHub shows ten errors and ten warnings of a step."""


def github_annotations(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a workflow command for each gate that failed or decided nothing, at the line of its test.

    An INCONCLUSIVE gate whose test did not fail is a warning. Source: "Workflow commands for GitHub Actions".
    """
    shown = {"error": 0, "warning": 0}
    for entry in entries_of(document):
        if entry.group not in ("failed", "inconclusive"):
            continue
        level = "warning" if entry.group == "inconclusive" and entry.outcome != "failed" else "error"
        shown[level] += 1
        if shown[level] > _MOST_ANNOTATIONS:
            continue
        place = [f"file={_property(entry.file)}"] if entry.file else []
        place += [f"line={entry.line}"] if entry.line else []
        title = f"{entry.verdict}: {entry.gate} of {entry.subject}"
        message = f"{entry.summary}\n{entry.figures}\n{entry.node_id}"
        yield f"::{level} {','.join([*place, f'title={_property(short(title))}'])}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


_SEVERITIES: dict[Group, str] = {"failed": "major", "inconclusive": "minor"}


def code_quality_json(document: Mapping[str, Any]) -> str:
    """Return the gates that failed or decided nothing as a code-quality report of GitLab.

    A fingerprint depends on test, gate, label and models, so that a merge request shows which problems are new.
    """
    problems = [
        {
            "description": f"{entry.verdict}: {entry.gate} of {entry.subject}: {entry.summary} ({entry.figures})",
            "check_name": f"modelserve/{entry.gate if entry.evidence is None else entry.evidence.gate}",
            "fingerprint": entry.fingerprint,
            "severity": "critical" if entry.evidence is None else _SEVERITIES[entry.group],
            "location": {"path": entry.file, "lines": {"begin": entry.line or 1}},
        }
        for entry in entries_of(document)
        if entry.group in _SEVERITIES
    ]
    return json.dumps(problems, indent=1, ensure_ascii=False) + "\n"


_STATUSES: dict[Group, str] = {
    "failed": "failed",
    "inconclusive": "failed",
    "measured": "other",
    "passed": "passed",
    "expected": "passed",
}
_OUTCOMES = {"passed": "passed", "xfailed": "passed", "failed": "failed", "skipped": "skipped"}


def ctrf_json(document: Mapping[str, Any]) -> str:
    """Return the run in the Common Test Report Format: a test for each gate, and for each test without evidence.

    An INCONCLUSIVE gate has the status of its test. Attempts that were run again are left out. Source: specification
    of ctrf.io, version 0.0.0.
    """
    tests = [_ctrf_test(entry) for entry in entries_of(document) if entry.group in _STATUSES]
    errors = {entry["node_id"] for entry in document["gates"] if entry["evidence"] is None}
    for outcome, node_ids in document["without_evidence"].items():
        status = _OUTCOMES.get(outcome, "other")
        for node_id in node_ids:
            if node_id not in errors:
                reason = document["not_judged"].get(node_id)
                message = {} if reason is None else {"message": f"not judged: {printable(reason)}"}
                tests.append({"name": printable(node_id), "status": status, "duration": 0, **message})
    started = round(1000 * datetime.fromisoformat(document["started"]).timestamp())
    duration = round(1000 * document["duration_s"])
    statuses = [test["status"] for test in tests]
    names = ("passed", "failed", "skipped", "pending", "other")
    summary = {
        "tests": len(tests),
        **{name: statuses.count(name) for name in names},
        "start": started,
        "stop": started + duration,
        "duration": duration,
    }
    tool = {"name": "pytest-modelserve", "version": document["generator"].get("pytest-modelserve", "")}
    report = {
        "reportFormat": "CTRF",
        "specVersion": "0.0.0",
        "timestamp": document["started"],
        "generatedBy": "pytest-modelserve",
        "results": {"tool": tool, "summary": summary, "tests": tests},
    }
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"


def _ctrf_test(entry: Entry) -> dict[str, Any]:
    status = _STATUSES[entry.group]
    if entry.group == "inconclusive" and entry.outcome in _OUTCOMES:
        status = _OUTCOMES[entry.outcome]
    found: dict[str, Any] = {
        "name": f"{entry.gate}: {entry.subject}{f' vs {entry.against}' if entry.against else ''}",
        "status": status,
        "duration": 0 if entry.evidence is None else round(1000 * entry.evidence.duration_s),
        "suite": [entry.node_id],
        "rawStatus": entry.verdict,
        "filePath": entry.file,
        "message": f"{entry.summary}: {entry.figures}" if entry.evidence is not None else entry.error,
        "extra": {"group": GROUPS[entry.group]},
    }
    if entry.group in ("failed", "inconclusive"):
        found["trace"] = entry.text
    if entry.line:
        found["line"] = entry.line
    if entry.reruns:
        found |= {"retries": entry.reruns, "flaky": status == "passed"}
    return found
