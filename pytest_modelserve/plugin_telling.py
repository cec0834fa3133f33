"""The hooks that turn the evidence of all tests into the table and the reports: run in the controlling process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.reporting import (
    PROPERTY,
    Gathering,
    RunCounts,
    as_json,
    error_bound_line,
    render_page,
    run_document,
    summary_line,
    table_lines,
    write_report,
)


class WorkerHooks:
    """Tells xdist's controller what a worker selected: the controller itself collects nothing."""

    def __init__(self, config: pytest.Config) -> None:
        self._output: dict[str, Any] = cast(Any, config).workeroutput
        self._deselected = 0

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self._deselected += len(items)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self._output[PROPERTY] = {"selected": len(session.items), "deselected": self._deselected}


class TellingHooks:
    """Gathers the rows of the whole run, writes the document and prints the table."""

    def __init__(self, config: pytest.Config, paths: Mapping[str, Path]) -> None:
        self._config = config
        self._paths = paths
        self._gathering = Gathering()
        self._selected = 0
        self._deselected = 0
        # A run that is killed must not leave the report of an earlier run behind as if it were its own.
        self._write(complete=False, exit_status=None)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self._deselected += len(items)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._expect([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self._expect(ids)

    def _expect(self, node_ids: Sequence[str]) -> None:
        self._selected = len(node_ids)
        self._gathering.expect(node_ids)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        counts = getattr(node, "workeroutput", {}).get(PROPERTY)
        if counts is not None:
            self._deselected = counts["deselected"]

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str) -> None:
        self._gathering.add_crash(crashitem)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._gathering.add_report(
            report.nodeid,
            when=report.when or "",
            outcome=report.outcome,
            xfail=hasattr(report, "wasxfail"),
            properties=report.user_properties,
        )

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if not self._config.option.collectonly:
            self._write(complete=self._is_complete(exitstatus), exit_status=int(exitstatus))

    def _is_complete(self, exit_status: int) -> bool:
        """Whether every test that was collected was selected, and came to an end."""
        last_failed = self._config.getoption("lf", False)
        ran_through = exit_status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        ended = len(self._gathering.node_ids)
        return ran_through and ended == self._selected > 0 and not self._deselected and not last_failed

    def _write(self, *, complete: bool, exit_status: int | None) -> None:
        if not self._paths:
            return
        gathering = self._gathering
        counts = RunCounts(
            selected=self._selected,
            deselected=self._deselected,
            ended=len(gathering.node_ids),
            expected_failures=gathering.expected_failures,
        )
        document = run_document(gathering.rows(), counts=counts, complete=complete, exit_status=exit_status)
        writers = {"json": as_json, "html": render_page}
        try:
            for kind, path in self._paths.items():
                write_report(path, writers[kind](document), option=f"--modelserve-{kind}")
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        rows = self._gathering.rows()
        if not any(row.record for row in rows):
            return
        terminalreporter.write_sep("=", "modelserve")
        for line in table_lines(rows):
            terminalreporter.write(line.before)
            if line.verdict is not None:
                colour = {"PASS": "green", "FAIL": "red"}.get(line.verdict, "yellow")
                terminalreporter.write(line.verdict, **{colour: True})
            terminalreporter.write_line(line.after)
        names = {"json": "evidence", "html": "page"}
        reports = "".join(f" · {names[kind]} {self._relative(path)}" for kind, path in self._paths.items())
        terminalreporter.write_line(summary_line(rows) + reports)
        terminalreporter.write_line(error_bound_line(rows))

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self._config.invocation_params.dir)
