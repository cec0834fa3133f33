"""Collect the evidence of a run from its test reports, and write it as one JSON document.

This module does not import pytest: the plugin passes plain values from its reports, whichever process made them.
"""

from __future__ import annotations

import json
import os
import posixpath
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pytest_modelserve.evidence import NOT_JUDGED, PROPERTY, SCHEMA_VERSION, Record, Verdict, package_versions
from pytest_modelserve.evidence.evidence import Environment, json_value
from pytest_modelserve.reporting.terminal import error_bound, failures_first

RowVerdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "ERROR", "CRASHED"] | None
Place = tuple[str, int | None]
"""The file of a test, relative to the root directory, and its line, from 1."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the gate table; `record` is None for a test that ended without a verdict, and `error` says why.

    `verdict` is None for a measurement, which has evidence and no budget.
    ERROR is a failure that is not the verdict of a gate, CRASHED a test that crashed its worker. `expected` marks a
    FAIL that the test expects: an xfail, or a failure that a passing test caught. `superseded` marks an attempt that
    was rerun; it is listed and does not count. `place` is the file and the line of the test.
    """

    node_id: str
    verdict: RowVerdict
    record: Record | None
    outcome: str
    expected: bool = False
    superseded: bool = False
    attempt: int = 1
    reruns: int = 0
    error: str = ""
    place: Place = ("", None)


class ReportCollector:
    """The evidence in the test reports of one run, as rows."""

    def __init__(self) -> None:
        self._records: dict[tuple[object, ...], dict[str, Record]] = {}
        self._errors: dict[tuple[str, int, str], None] = {}
        self._outcomes: dict[str, str] = {}
        self._uncollected: dict[str, str] = {}
        self._reruns: dict[str, int] = {}
        self._crashed: dict[str, None] = {}
        self._order: dict[str, int] = {}
        self._not_judged: dict[str, str] = {}
        self._places: dict[str, Place] = {}

    def expect(self, node_ids: Iterable[str]) -> None:
        """Set the order of the tests; rows follow it, whichever worker is first."""
        self._order = {node_id: position for position, node_id in enumerate(node_ids)}

    def add_report(
        self,
        node_id: str,
        *,
        when: str,
        outcome: str,
        xfail: bool = False,
        properties: Iterable[tuple[str, object]] = (),
        error: str = "",
        is_subtest: bool = False,
        place: Place | None = None,
    ) -> None:
        """Add the report of one phase of a test; a later phase repeats the records of the earlier ones.

        `error` is the reason of a failure that is not the verdict of a gate.
        """
        if place is not None:
            self._places[node_id] = place
        if error:
            self._errors[node_id, self._reruns.get(node_id, 0) + 1, error] = None
        if when == "collect":
            self._uncollected[node_id] = outcome
        elif outcome == "rerun":
            self._reruns[node_id] = self._reruns.get(node_id, 0) + 1
            self._outcomes.pop(node_id, None)
        elif outcome == "failed":
            self._outcomes[node_id] = outcome
        elif self._outcomes.get(node_id) != "failed" and not is_subtest and (when == "call" or outcome != "passed"):
            self._outcomes[node_id] = "xfailed" if xfail and outcome == "skipped" else outcome
        for name, value in properties:
            if name == PROPERTY:
                record = Record.from_json(str(value))
                self._records.setdefault((record.identity, record.attempt), {})[record.node_id] = record
            elif name == NOT_JUDGED:
                self._not_judged[node_id] = str(value)

    def add_crash(self, node_id: str) -> None:
        """Add a test that crashed its worker."""
        self._crashed[node_id] = None

    @property
    def node_ids(self) -> frozenset[str]:
        """The tests that ended; one that crashed its worker did not, whatever xdist reports."""
        return frozenset(self._outcomes) - frozenset(self._crashed)

    @property
    def is_collected(self) -> bool:
        """Whether no module failed or was skipped while tests were collected."""
        return not self._uncollected

    @property
    def expected_failures(self) -> int:
        """The number of tests that failed as expected by an xfail mark."""
        return sum(outcome == "xfailed" for outcome in self._outcomes.values())

    @property
    def not_judged(self) -> dict[str, str]:
        """The tests that could judge nothing, each with the reason."""
        return dict(sorted(self._not_judged.items(), key=lambda found: self._rank(found[0])))

    @property
    def without_evidence(self) -> dict[str, list[str]]:
        """The tests that ended without evidence of their own, and the modules that were not collected, by outcome."""
        own = {node_id for copies in self._records.values() for node_id in copies} | set(self._crashed)
        ended = {node_id: outcome for node_id, outcome in self._outcomes.items() if node_id not in own}
        listed: dict[str, list[str]] = {}
        for node_id, outcome in sorted((self._uncollected | ended).items(), key=lambda found: self._rank(found[0])):
            listed.setdefault(outcome, []).append(node_id)
        return listed

    def rows(self) -> tuple[Row, ...]:
        """Return each gate once: those of shared fixtures, then those of tests in order, then errors and crashes."""
        merged = [_merge(tuple(copies.values())) for copies in self._records.values()]
        last: dict[tuple[object, ...], int] = {}
        for record in merged:
            last[record.identity] = max(last.get(record.identity, 1), record.attempt)
        rows = [self._row(record, last[record.identity]) for record in sorted(merged, key=self._position)]
        errors = [
            self._error_row(node_id, attempt, error)
            for node_id, attempt, error in sorted(self._errors, key=lambda key: (self._rank(key[0]), key[1]))
            if node_id not in self._crashed
        ]
        crashes = [Row(node_id, "CRASHED", None, "crashed", error="its worker crashed") for node_id in self._crashed]
        return tuple(replace(row, place=self._places.get(row.node_id, row.place)) for row in rows + errors + crashes)

    def _rank(self, node_id: str) -> int:
        return self._order.get(node_id, len(self._order))

    def _error_row(self, node_id: str, attempt: int, error: str) -> Row:
        reruns = self._reruns.get(node_id, 0)
        superseded = attempt <= reruns
        outcome = "rerun" if superseded else self._outcomes.get(node_id, "failed")
        return Row(
            node_id, "ERROR", None, outcome, superseded=superseded, attempt=attempt, reruns=reruns, error=error
        )  # fmt: skip

    def _position(self, record: Record) -> tuple[bool, int, str, int, int]:
        """Return the sort key; that of a fixture must not depend on the test that needed it first."""
        of_test = record.owner == record.node_id
        position = self._rank(record.node_id) if of_test else 0
        return (of_test, position, record.owner, record.attempt, record.index)

    def _row(self, record: Record, last_attempt: int) -> Row:
        owned_by_test = record.owner == record.node_id
        attempts = self._reruns.get(record.node_id, 0) + 1 if owned_by_test else last_attempt
        superseded = record.attempt < attempts
        outcome = "rerun" if superseded else self._outcomes.get(record.node_id, "unknown")
        verdict = record.evidence.verdict
        return Row(
            node_id=record.node_id,
            verdict=None if verdict is None else verdict.value,
            record=record,
            outcome=outcome,
            expected=verdict is Verdict.FAIL and outcome in ("xfailed", "passed"),
            superseded=superseded,
            attempt=record.attempt,
            reruns=attempts - 1,
        )


def _merge(copies: tuple[Record, ...]) -> Record:
    """Return the worst record that several workers made for one fixture.

    Equal measurements count as one analysis of the data; the alphas of different ones are added.
    """
    worst = max(copies, key=lambda record: record.evidence.severity)
    analyses = {record.evidence.quantities: record.evidence.alpha for record in copies}
    return replace(worst, evidence=replace(worst.evidence, alpha=min(1.0, sum(analyses.values()))))


@dataclass(frozen=True, slots=True)
class RunCounts:
    """The numbers of tests that were selected, deselected, ended, and failed as expected."""

    selected: int = 0
    deselected: int = 0
    ended: int = 0
    expected_failures: int = 0


def as_json(document: dict[str, Any]) -> str:
    """Return the document as JSON text."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def run_document(
    rows: Sequence[Row],
    *,
    started: float,
    root: Path,
    counts: RunCounts,
    complete: bool,
    exit_status: int | None,
    without_evidence: Mapping[str, Sequence[str]] = MappingProxyType({}),
    not_judged: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the document as JSON builtins, with printable texts.

    `started` is the time of the start in seconds since 1970. `root` is pytest's root directory; the files of tests are
    named relative to the git tree around it, if there is one. `exit_status` is None until the run has ended.
    """
    tree = _git_tree(root)
    prefix = "" if tree is None else root.relative_to(tree).as_posix()
    document = {
        "schema_version": SCHEMA_VERSION,
        "generator": package_versions(("pytest-modelserve", "pytest")),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "duration_s": round(max(0.0, time.time() - started), 3),
        "commit": commit_of(root),
        "environment": asdict(Environment.current()),
        "complete": complete,
        "exit_status": exit_status,
        "counts": asdict(counts),
        "false_fail_probability_at_most": error_bound(rows),
        "gates": [_gate(row, prefix) for row in failures_first(rows)],
        "without_evidence": {outcome: list(node_ids) for outcome, node_ids in without_evidence.items()},
        "not_judged": dict(not_judged),
    }
    return dict(json_value(document))


def commit_of(folder: Path) -> str | None:
    """Return the commit that is checked out in the git tree around `folder`, or None outside git.

    The files of git are read: a git command would start a process, and may refuse a folder of another user.
    """
    tree = _git_tree(folder)
    if tree is None:
        return None
    found = tree / ".git"
    try:
        if found.is_file():  # of a worktree or a submodule: "gitdir: PATH"
            found = found.parent / found.read_text("utf-8").removeprefix("gitdir:").strip()
        head = (found / "HEAD").read_text("utf-8").strip()
        if not head.startswith("ref:"):
            return head or None
        branch = head.removeprefix("ref:").strip()
        common = found / "commondir"
        shared = found / common.read_text("utf-8").strip() if common.exists() else found
        for of_branch in (found / branch, shared / branch):
            if of_branch.exists():
                return of_branch.read_text("utf-8").strip()
        packed = (line.split() for line in (shared / "packed-refs").read_text("utf-8").splitlines())
        return next((line[0] for line in packed if line[1:] == [branch]), None)
    except (OSError, UnicodeDecodeError):
        return None


def _git_tree(folder: Path) -> Path | None:
    return next((each for each in (folder, *folder.parents) if (each / ".git").exists()), None)


def _gate(row: Row, prefix: str) -> dict[str, Any]:
    file, line = row.place
    file = file or row.node_id.partition("::")[0]
    common = {
        "node_id": row.node_id,
        "verdict": row.verdict,
        "outcome": row.outcome,
        "expected": row.expected,
        "judged": not row.superseded,
        "attempt": row.attempt,
        "reruns": row.reruns,
        "error": row.error or None,
        "file": posixpath.normpath(posixpath.join(prefix, file.replace(os.sep, "/"))),
        "line": line,
    }
    if row.record is None:
        return {**common, "owner": row.node_id, "index": 0, "examples": 0, "evidence": None}
    return {**json.loads(row.record.to_json()), **common}
