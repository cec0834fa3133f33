"""The hooks that give evidence its owner: run in every process that runs tests."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from pathlib import Path

import pytest

from pytest_modelserve.evidence import PROPERTY, GateInconclusive, InconclusivePolicy, Recorder, recording


class RecordingHooks:
    """Gives each test, and each fixture wider than a test, a recorder; hands what it holds to the test's reports."""

    def __init__(self, inconclusive: InconclusivePolicy, samples: Path | None = None) -> None:
        self._recorder_of = partial(Recorder, inconclusive=inconclusive, samples=samples)
        self._inconclusive = inconclusive
        self._attempts: dict[str, int] = {}
        self._item: pytest.Item | None = None
        self._recorder: Recorder | None = None

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        attempt = self._attempts[item.nodeid] = self._attempts.get(item.nodeid, 0) + 1
        self._item = item
        self._recorder = self._recorder_of(item.nodeid, item.nodeid, attempt=attempt)
        return (yield from self._phase(item))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        return (yield from self._phase(item))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        result = yield from self._phase(item)
        if self._recorder is not None:
            self._recorder.close()
        return result

    def _phase(self, item: pytest.Item) -> Generator[None, object, object]:
        recorder = self._recorder
        assert recorder is not None
        try:
            with recording(recorder):
                return (yield)
        finally:
            _attach(item, recorder)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        item, of_item = self._item, self._recorder
        if fixturedef.scope == "function" or item is None or of_item is None:
            return (yield)
        case = f"[{getattr(request, 'param_index', 0)}]" if hasattr(request, "param") else ""
        owner = f"{request.node.nodeid}::fixture {fixturedef.argname}{case}"
        recorder = self._recorder_of(owner, item.nodeid, attempt=of_item.attempt)
        try:
            with recording(recorder):
                return (yield)
        finally:
            recorder.close()
            _attach(item, recorder)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        value = call.excinfo.value if call.excinfo else None
        if self._inconclusive == "skip" and isinstance(value, GateInconclusive):
            reason = str(value).partition("\n")[0]
            call.excinfo = pytest.CallInfo.from_call(lambda: pytest.skip(reason), call.when).excinfo
        return (yield)


def _attach(item: pytest.Item, recorder: Recorder) -> None:
    """Put the recorder's records among the test's user properties, as strings: xdist and JUnit carry those."""
    for record in recorder.records():
        entry = (PROPERTY, record.to_json())
        if entry not in item.user_properties:
            item.user_properties.append(entry)
