"""The hooks that turn the evidence of all tests into the table and the reports: run in the controlling process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import PROPERTY

if TYPE_CHECKING:
    from pytest_modelserve.reporting import Gathering


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
    """Gathers the rows of the whole run, writes the document and prints the table.

    The reporting room is loaded when there is something to report: most pytest runs of an environment have nothing.
    """

    def __init__(self, config: pytest.Config, paths: Mapping[str, Path]) -> None:
        self._config = config
        self._paths = paths
        self._gathering: Gathering | None = None
        self._order: Sequence[str] = ()
        self._deselected = 0
        if paths:
            # A run that is killed must not leave the report of an earlier run behind as if it were its own.
            self._write(complete=False, exit_status=None)

    def _gathered(self) -> Gathering:
        if self._gathering is None:
            from pytest_modelserve.reporting import Gathering

            self._gathering = Gathering()
            self._gathering.expect(self._order)
        return self._gathering

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self._deselected += len(items)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._expect([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self._expect(ids)

    def _expect(self, node_ids: Sequence[str]) -> None:
        self._order = node_ids
        if self._gathering is not None:
            self._gathering.expect(node_ids)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        counts = getattr(node, "workeroutput", {}).get(PROPERTY)
        if counts is not None:
            self._deselected = counts["deselected"]

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str) -> None:
        self._gathered().add_crash(crashitem)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome: str = report.outcome  # "rerun" is pytest-rerunfailures' own
        speaks = outcome == "rerun" or any(name == PROPERTY for name, _ in report.user_properties)
        if self._gathering is None and not speaks:
            return
        self._gathered().add_report(
            report.nodeid,
            when=report.when or "",
            outcome=outcome,
            xfail=hasattr(report, "wasxfail"),
            properties=report.user_properties,
        )

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if self._paths and not self._config.option.collectonly:
            self._write(complete=self._is_complete(exitstatus), exit_status=int(exitstatus))

    def _is_complete(self, exit_status: int) -> bool:
        """Whether every test that was collected was selected, and came to an end."""
        last_failed = self._config.getoption("lf", False)
        ran_through = exit_status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        ended = len(self._gathered().node_ids)
        return ran_through and ended == len(self._order) > 0 and not self._deselected and not last_failed

    def _write(self, *, complete: bool, exit_status: int | None) -> None:
        from pytest_modelserve.reporting import RunCounts, as_json, render_page, run_document, write_report

        gathering = self._gathered()
        counts = RunCounts(
            selected=len(self._order),
            deselected=self._deselected,
            ended=len(gathering.node_ids),
            expected_failures=gathering.expected_failures,
        )
        document = run_document(gathering.rows(), counts=counts, complete=complete, exit_status=exit_status)
        beside = self._paths["json"].parent if "json" in self._paths else None
        writers: dict[str, Callable[..., str]] = {
            "json": as_json,
            "html": partial(render_page, beside=beside),
        }
        try:
            for kind, path in self._paths.items():
                write_report(path, writers[kind](document), option=f"--modelserve-{kind}")
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        rows = () if self._gathering is None else self._gathering.rows()
        if not any(row.record for row in rows):
            return
        from pytest_modelserve.reporting import error_bound_line, summary_line, table_lines

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
