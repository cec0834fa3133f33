"""Items of pytest: the gates of a contract, and the checks of a model file named on the command line."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pytest
from _pytest._code.code import ExceptionInfo, ReprExceptionInfo, ReprFileLocation, ReprTracebackNative

from pytest_modelserve.contracts.contract import GateCall, read_contract
from pytest_modelserve.errors import ModelServeError, UsageError, unknown_choice
from pytest_modelserve.evidence import NOT_JUDGED, GateFailure, GateInconclusive
from pytest_modelserve.evidence.failure_text import printable
from pytest_modelserve.options import path_setting, setting

if TYPE_CHECKING:
    from _pytest._code.code import TerminalRepr

    from pytest_modelserve.contracts.gate_runner import GateRunner
    from pytest_modelserve.contracts.model_file import Check, ModelFile

Terminal = Callable[[pytest.Config], AbstractContextManager[TextIO]]


class _Item(pytest.Item):
    """A gate that shows its progress on the terminal, and reports a failure at the line of its file."""

    line = 1

    def runtest(self) -> None:
        from pytest_modelserve.progress import progress_to

        terminal: Terminal = self.config._modelserve_terminal  # type: ignore[attr-defined]
        with terminal(self.config) as stream, progress_to(stream):
            self.run_gate()

    def run_gate(self) -> None:
        """Run the gate; raise unless it passes."""
        raise NotImplementedError

    def skip(self, reason: str) -> None:
        """End as skipped, with the reason in every report."""
        self.user_properties.append((NOT_JUDGED, printable(reason)))
        pytest.skip(f"not judged: {printable(reason)}")

    def repr_failure(self, excinfo: ExceptionInfo[BaseException], style: Any = None) -> str | TerminalRepr:
        if not isinstance(excinfo.value, (GateFailure, GateInconclusive, ModelServeError)):
            return super().repr_failure(excinfo, style)
        text = str(excinfo.value)
        crash = ReprFileLocation(str(self.path), self.line, text.partition("\n")[0])
        where = f"{printable(self.path.name)}:{self.line}: {type(excinfo.value).__name__}"
        return ReprExceptionInfo(reprtraceback=ReprTracebackNative([f"{text}\n", "\n", f"{where}\n"]), reprcrash=crash)

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        return self.path, self.line - 1, self.name


class ContractItem(_Item):
    """One gate of a contract, as an item of pytest."""

    def __init__(self, *, call: GateCall, **others: Any) -> None:
        super().__init__(**others)
        self.call = call
        self.line = call.place.line

    def run_gate(self) -> None:
        if self.call.inactive:
            self.skip(self.call.inactive)
        assert isinstance(self.parent, ContractFile)
        self.parent.runner.run(self.call)


class ContractFile(pytest.File):
    """A contract file, whose gates are collected as items."""

    _runner: GateRunner | None = None

    @property
    def runner(self) -> GateRunner:
        """The runner of the gates, which holds the served models."""
        if self._runner is None:
            from pytest_modelserve.contracts.gate_runner import GateRunner

            self._runner = GateRunner()
        return self._runner

    def collect(self) -> Iterator[pytest.Item]:
        try:
            calls = read_contract(self.path, root=self.config.rootpath)
        except UsageError as error:
            raise self.CollectError(str(error)) from error
        for call in calls:
            item: pytest.Item = ContractItem.from_parent(self, name=call.name, call=call)
            if call.is_slow:
                item.add_marker("modelserve_slow")
            yield item

    def teardown(self) -> None:
        if self._runner is not None:
            self._runner.close()


class CheckItem(_Item):
    """One check of a model file."""

    def __init__(self, *, check: Check, **others: Any) -> None:
        super().__init__(**others)
        self.check = check

    def run_gate(self) -> None:
        from pytest_modelserve.contracts.model_file import NotJudgedError

        assert isinstance(self.parent, CheckedFile)
        try:
            self.parent.model.run(self.check)
        except NotJudgedError as reason:
            self.skip(str(reason))


class CheckedFile(pytest.File):
    """A model file that the command line names."""

    _model: ModelFile | None = None

    @property
    def model(self) -> ModelFile:
        """The file, opened when a check needs it."""
        if self._model is None:
            from pytest_modelserve.contracts.model_file import ModelFile

            self._model = ModelFile(self.path, file_options(self.config))
        return self._model

    def collect(self) -> Iterator[pytest.Item]:
        from pytest_modelserve.contracts.model_file import checks_for

        options = file_options(self.config)
        for check in checks_for(options):
            item = CheckItem.from_parent(self, name=check.name, check=check)
            if check.name in ("latency", "memory", "slowdown"):
                item.add_marker("modelserve_slow")
            yield item

    def teardown(self) -> None:
        if self._model is not None:
            self._model.close()
            self._model = None  # a self-test runs the checks again


def collect_file(path: Path, parent: pytest.Collector) -> pytest.File:
    """Return the collector of a contract or of a model file."""
    kind: type[pytest.File] = ContractFile if path.name.lower().endswith(".toml") else CheckedFile
    shown = printable(path.name)
    named: dict[str, Any] = (
        {} if shown == path.name else {"name": shown, "nodeid": f"{parent.nodeid}/{shown}".lstrip("/.")}
    )
    found: pytest.File = kind.from_parent(parent, path=path, **named)
    return found


def file_options(config: pytest.Config) -> Any:
    """Return the options of a model file; UsageError for an invalid one."""
    from pytest_modelserve.contracts.model_file import CHECKS, Options, checks_for

    def path(name: str) -> Path | None:
        given = config.getoption(f"--modelserve-{name}")
        found = None if given is None else Path(config.invocation_params.dir, given)
        if found is not None and not found.is_file():
            raise pytest.UsageError(f"--modelserve-{name}: {printable(given)!r} is not a file")
        return found

    labels = config.getoption("--modelserve-labels")
    is_file = labels is not None and Path(config.invocation_params.dir, labels).is_file()
    options = Options(
        inputs=path("inputs"),
        against=path("against"),
        labels=str(path("labels")) if is_file else labels,
        time_limit_s=config.getoption("--modelserve-time-limit"),
        cache=path_setting(config, "cache"),
        counterexamples=Path(config.rootpath, ".modelserve", "counterexamples"),
        seed=int(setting(config, "seed")),
        settings=_settings(config.getoption("--modelserve-set"), {check.name: check.assertion for check in CHECKS}),
    )
    unused = options.settings.keys() - {check.name for check in checks_for(options)}
    if unused:
        name = min(unused)
        needs = next(check.needs for check in CHECKS if check.name == name)
        raise pytest.UsageError(f"--modelserve-set {name}: needs --modelserve-{' and --modelserve-'.join(needs)}")
    return options


def _settings(given: list[str], assertions: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the arguments of each check, from settings such as "latency.max_ms=2"."""
    import pytest_modelserve as ms
    from pytest_modelserve.contracts.gate_arguments import convert_arguments

    tables: dict[str, dict[str, Any]] = {}
    for assignment in given:
        target, equals, text = assignment.partition("=")
        name, dot, argument = target.strip().partition(".")
        if not (equals and dot):
            raise pytest.UsageError(f"--modelserve-set {printable(assignment)!r}: expected CHECK.ARGUMENT=VALUE")
        known = [check for check, assertion in assertions.items() if assertion]
        if name not in known:
            raise pytest.UsageError(f"--modelserve-set: {printable(unknown_choice('check', name, known))}")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        tables.setdefault(name, {})[argument] = value
    found = {}
    for name, table in tables.items():
        try:
            function = getattr(ms, assertions[name])
            found[name] = convert_arguments(function, table, OptionKey(f"--modelserve-set {name}"), "argument")
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error
    return found


class OptionKey:
    """The place of a value on the command line."""

    def __init__(self, text: str) -> None:
        self.text = text

    def child(self, name: str | int) -> OptionKey:
        """Return the place of an argument."""
        return OptionKey(f"{self.text}.{name}")

    def error(self, message: str) -> UsageError:
        """Return the error that names the option."""
        return UsageError(printable(f"{self.text}: {message}"))

    def file(self, text: str, kind: str = "file") -> Path:
        """Return the path; UsageError if it does not exist."""
        if kind != "new" and not Path(text).exists():
            raise self.error(f"{text!r} does not exist")
        return Path(text)
