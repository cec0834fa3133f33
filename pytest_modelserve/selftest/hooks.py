"""The hooks of a self-test: they note what each test serves, and run tests again with other models and data."""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.runner import runtestprotocol

from pytest_modelserve.evidence import PROPERTY, Record
from pytest_modelserve.selftest.observation import Observer, TestRun
from pytest_modelserve.serving.substitution import Substitution, substituting

if TYPE_CHECKING:
    from pytest_modelserve.selftest.false_alarms import GateRepeats
    from pytest_modelserve.selftest.mutation_test import MutationTest


def register(config: pytest.Config, recording: Any) -> None:
    """Register the hooks of the self-test that the options ask for; `recording` are the hooks that record evidence.

    Raises pytest.UsageError for options out of range, and for what a self-test cannot run with.
    """
    mutants, repeats = config.getoption("--modelserve-selftest"), config.getoption("--modelserve-aa")
    minutes = config.getoption("--modelserve-selftest-minutes")
    option = "--modelserve-selftest" if mutants else "--modelserve-aa"
    if repeats < 0:
        raise pytest.UsageError(f"--modelserve-aa must be a number of repeats, got {repeats}")
    if not 0 < minutes < float("inf"):
        raise pytest.UsageError(f"--modelserve-selftest-minutes must be a positive number, got {minutes:g}")
    if hasattr(config, "workerinput") or config.getoption("numprocesses", None) or config.getoption("tx", None):
        raise pytest.UsageError(f"{option} runs the tests again in this process: add -n 0")
    if config.getoption("usepdb", False):
        raise pytest.UsageError(f"{option} makes tests fail on purpose: remove --pdb")
    hooks = SelfTestHooks(config, recording, mutants=mutants, repeats=repeats, minutes=minutes)
    config.pluginmanager.register(hooks, "modelserve-selftest")


class _Sibling:
    """A next item that shares all fixtures of `item` but those of the function, which pytest then keeps."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._item, name)

    def listchain(self) -> list[Any]:
        """Return the nodes above the item."""
        return self._item.listchain()[:-1]


class SelfTestHooks:
    """The first pass is the normal run of the suite; the self-test follows in the same session."""

    def __init__(self, config: pytest.Config, recording: Any, *, mutants: bool, repeats: int, minutes: float) -> None:
        self._config = config
        self._recording = recording
        self._mutants, self._repeats, self._minutes = mutants, repeats, minutes
        self.observer = Observer()
        self._substitution: Substitution | None = self.observer
        self.items: dict[str, pytest.Item] = {}
        self.first: dict[str, TestRun] = {}
        self._passed: dict[str, bool] = {}
        self._seconds: dict[str, float] = {}
        self.mutation_test: MutationTest | None = None
        self.gate_repeats: GateRepeats | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        """Substitute during the call alone: fixtures outlive a mutant."""
        with substituting(self._substitution):
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Note the evidence of a test in the first pass."""
        self.observer.node_id = item.nodeid
        result = yield
        if self._passed.get(item.nodeid):
            self.items[item.nodeid] = item
            self.first[item.nodeid] = TestRun(_records(item, 0), False, "", self._seconds[item.nodeid])
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note whether the last attempt of a test passed; one that is expected to fail did not."""
        if report.when == "call":
            self._passed[report.nodeid] = report.outcome == "passed" and not hasattr(report, "wasxfail")
            self._seconds[report.nodeid] = report.duration
        elif report.failed:
            self._passed[report.nodeid] = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Run the self-test behind the suite; survivors and false alarms fail the run."""
        result = yield
        if session.config.option.collectonly or session.shouldstop or session.shouldfail:
            return result
        self._recording.keep_no_samples()
        try:
            if self._mutants:
                session.testsfailed += self._test_mutants()
            if self._repeats:
                session.testsfailed += self._repeat_gates()
        finally:
            self._substitution = None
        return result

    def _test_mutants(self) -> int:
        from pytest_modelserve.selftest.mutation_test import MutationTest

        self.mutation_test = MutationTest(self, time.monotonic() + 60 * self._minutes)
        self.mutation_test.run()
        return self.mutation_test.survivors or int(not self.mutation_test.tried)

    def _repeat_gates(self) -> int:
        from pytest_modelserve.selftest.false_alarms import GateRepeats

        self.gate_repeats = GateRepeats(self, self._repeats, time.monotonic() + 60 * self._minutes)
        self.gate_repeats.run()
        return self.gate_repeats.false_alarms

    def rerun(self, item: pytest.Item, substitution: Substitution) -> TestRun:
        """Run a test again with a substitution, and keep the fixtures that it shares with others."""
        # pytest has no public way: pytest-rerunfailures does the same.
        state: Any = item.session._setupstate
        state.teardown_exact(item)
        before = len(item.user_properties)
        self._substitution = substitution
        began = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sibling: Any = _Sibling(item)
                reports = runtestprotocol(item, log=False, nextitem=sibling)
        finally:
            self._substitution = None
        records = _records(item, before)
        del item.user_properties[before:], item._report_sections[:]
        failed = [report for report in reports if report.failed]
        error = str(failed[0].longreprtext).strip().splitlines()[-1:] if failed else []
        crash = getattr(failed[0].longrepr, "reprcrash", None) if failed else None
        line = crash.message.partition("\n")[0] if crash is not None else "".join(error)
        return TestRun(records, bool(failed), line, time.perf_counter() - began)

    def progress(self, text: str) -> None:
        """Show a line on a terminal, and nothing elsewhere."""
        reporter: Any = self._config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None and reporter.isatty() and self._config.get_verbosity() > -2:
            reporter.rewrite(text[: reporter._tw.fullwidth - 2], erase=True)

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the tables."""
        from pytest_modelserve.selftest.report import alarm_lines, mutation_lines

        if self.mutation_test is None and self.gate_repeats is None:
            terminalreporter.write_line("modelserve self-test: not run, because the run of the suite was stopped")
            return
        terminalreporter.write_sep("=", "modelserve self-test")
        lines: Sequence[str] = []
        if self.mutation_test is not None:
            lines = mutation_lines(self.mutation_test)
        if self.gate_repeats is not None:
            lines = [*lines, *alarm_lines(self.gate_repeats)]
        for line in lines:
            terminalreporter.write_line(line)


def _records(item: pytest.Item, first: int) -> tuple[Record, ...]:
    texts = [str(value) for name, value in item.user_properties[first:] if name == PROPERTY]
    records = [Record.from_json(text) for text in texts]
    last = max((record.attempt for record in records), default=1)
    return tuple(record for record in records if record.attempt == last)
