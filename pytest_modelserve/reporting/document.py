"""The one JSON document of a run, from which every other report is made."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import SCHEMA_VERSION, package_versions
from pytest_modelserve.reporting.gathering import Row
from pytest_modelserve.reporting.table import error_bound


@dataclass(frozen=True, slots=True)
class RunCounts:
    """How much of the suite this run is: what was selected, left out, came to an end, and failed as expected."""

    selected: int = 0
    deselected: int = 0
    ended: int = 0
    expected_failures: int = 0


def as_json(document: dict[str, Any]) -> str:
    """The document as text."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def run_document(rows: Sequence[Row], *, counts: RunCounts, complete: bool, exit_status: int | None) -> dict[str, Any]:
    """The document as JSON builtins; `exit_status` is None while the run has not ended."""
    return {
        "schema_version": SCHEMA_VERSION,
        "generator": package_versions(("pytest-modelserve", "pytest")),
        "complete": complete,
        "exit_status": exit_status,
        "counts": asdict(counts),
        "false_fail_probability_at_most": error_bound(rows),
        "gates": [_gate(row) for row in rows],
    }


def write_report(path: Path, text: str, *, option: str) -> None:
    """Replace `path` by `text` in one step: a reader sees the old report or the new one, never half of one.

    Raises UsageError that names the path and the `option` that chose it where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"the report cannot be written to {path}: {reason}; give {option} a writable path") from error


def _gate(row: Row) -> dict[str, Any]:
    common = {
        "node_id": row.node_id,
        "verdict": row.verdict,
        "outcome": row.outcome,
        "expected": row.expected,
        "judged": not row.superseded,
        "reruns": row.reruns,
    }
    if row.record is None:
        return {**common, "owner": row.node_id, "index": 0, "attempt": 1, "examples": 0, "evidence": None}
    return {**json.loads(row.record.to_json()), **common}
