"""The pytest plugin: the `modelserve` fixture, and the hooks that record evidence and write reports.

pytest imports this module in every run of the environment. It imports nothing heavy, and has no visible effect until a
test records evidence or an option is given.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import pytest

from pytest_modelserve import settings
from pytest_modelserve.errors import ModelServeError, UsageError, unknown_choice
from pytest_modelserve.evidence import (
    INCONCLUSIVE_POLICIES,
    NOT_JUDGED,
    PROPERTY,
    GateFailure,
    GateInconclusive,
    InconclusivePolicy,
    Recorder,
    recording,
)
from pytest_modelserve.options import REPORTS, apply_settings, declare_options, path_setting, setting

if TYPE_CHECKING:
    from pytest_modelserve.pipeline import Pipeline
    from pytest_modelserve.reporting import History, ReportCollector
    from pytest_modelserve.serving import Predictor


_COLORS = {"PASS": "green", "INCONCLUSIVE": "yellow", "measured": "cyan"}
_FAILED_BY_GATE = "modelserve_failed_by_gate"


class RecordingHooks:
    """Hooks of every process that runs tests: each test and each wider fixture gets a recorder."""

    def __init__(self, inconclusive: InconclusivePolicy, samples: Path | None = None) -> None:
        self._recorder_of = partial(Recorder, inconclusive=inconclusive, samples=samples)
        self._inconclusive = inconclusive
        self._attempts: dict[str, int] = {}
        self._item: pytest.Item | None = None
        self._recorder: Recorder | None = None

    def keep_no_samples(self) -> None:
        """Keep no raw samples of the calls that follow."""
        self._recorder_of = partial(Recorder, inconclusive=self._inconclusive)

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
        # A session has no node id; a line that starts with "::" would be a command to a code host.
        owner = f"{request.node.nodeid}::fixture {fixturedef.argname}{case}".removeprefix("::")
        recorder = self._recorder_of(owner, item.nodeid, attempt=of_item.attempt)
        try:
            with recording(recorder):
                return (yield)
        finally:
            recorder.close()
            _attach(item, recorder)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        # Read after the inner hooks: only then has a unittest.TestCase handed over its exception.
        value = call.excinfo.value if call.excinfo else None
        if self._inconclusive == "skip" and isinstance(value, GateInconclusive):
            reason = str(value).partition("\n")[0]
            skipped = pytest.CallInfo.from_call(lambda: pytest.skip(reason), call.when)
            of_skip = pytest.TestReport.from_item_and_call(item, skipped)
            report.outcome, report.longrepr = of_skip.outcome, of_skip.longrepr
            report.__dict__.pop("wasxfail", None)
        elif value is not None and _is_verdict(value):
            report.__dict__[_FAILED_BY_GATE] = True  # an attribute, which xdist transports
            if not isinstance(value, BaseExceptionGroup):
                _summarize(report, str(value).partition("\n")[0])
        elif isinstance(value, ModelServeError):
            _summarize(report, f"{type(value).__name__}: {value}")
        return report


def _summarize(report: pytest.TestReport, sentence: str) -> None:
    """Set the line of the short summary and of the table, which has no room for the module of an exception."""
    crash = getattr(report.longrepr, "reprcrash", None)
    if crash is not None:
        crash.message = sentence


def _is_verdict(error: BaseException) -> bool:
    """Return whether `error` is the verdict of a gate, or a group of them, as hypothesis raises."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_verdict, error.exceptions))
    return isinstance(error, (GateFailure, GateInconclusive))


def _attach(item: pytest.Item, recorder: Recorder) -> None:
    """Add the records to the user properties of the test, as strings, which xdist and JUnit transport."""
    for record in recorder.records():
        entry = (PROPERTY, record.to_json())
        if entry not in item.user_properties:
            item.user_properties.append(entry)


class WorkerHooks:
    """Hooks of an xdist worker: they send what the controller, which collects and runs no test, does not know."""

    def __init__(self, config: pytest.Config) -> None:
        self._output: dict[str, Any] = cast(Any, config).workeroutput
        self._deselected = 0

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self._deselected += len(items)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        counts = {"selected": len(session.items), "deselected": self._deselected}
        self._output[PROPERTY] = {**counts, "names": sorted(settings.SEEN)}


class ReportingHooks:
    """Hooks of the controlling process: they collect the evidence of the run, write reports and print the table.

    The reporting subpackage is imported at the first record, because most pytest runs have none.
    """

    def __init__(
        self,
        config: pytest.Config,
        paths: Mapping[str, Path],
        history: Path | None = None,
        statement: tuple[Path, float, bytes] | None = None,
    ) -> None:
        self._config = config
        self._paths = paths
        self._history = history
        self._statement = statement
        self._writes = bool(paths) or history is not None or statement is not None
        self._collector: ReportCollector | None = None
        self._document: dict[str, Any] | None = None
        self._builds: History | None = None
        self._early: list[dict[str, Any]] = []
        self._order: Sequence[str] = ()
        self._deselected = 0
        self._failed_subtests: set[str] = set()
        self._runs_tests = False
        self._is_started = False
        self._started = time.time()

    def _reports(self) -> ReportCollector:
        if self._collector is None:
            from pytest_modelserve.reporting import ReportCollector

            self._collector = ReportCollector()
            self._collector.expect(self._order)
            for report in self._early:
                self._collector.add_report(**report)
        return self._collector

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self._deselected += len(items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.passed:
            error = f"collection: {_reason(report)}" if report.failed else ""
            self._add(report.nodeid, when="collect", outcome=report.outcome, error=error)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._expect([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self._expect(ids)
        self._start()

    def _expect(self, node_ids: Sequence[str]) -> None:
        self._order = node_ids
        if self._collector is not None:
            self._collector.expect(node_ids)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self) -> None:
        """Called by runs of tests, and not by --help, --markers and --fixtures."""
        option = self._config.getoption
        self._runs_tests = not (option("collectonly", False) or option("setuponly", False))
        self._start()

    def _start(self) -> None:
        """Replace the reports of an earlier run before the first test: if this run is killed, they must not remain."""
        if self._writes and self._runs_tests and self._order and not self._is_started:
            self._is_started = True
            self._write(complete=False, exit_status=None)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        counts = getattr(node, "workeroutput", {}).get(PROPERTY)
        if counts is not None:
            self._deselected = counts["deselected"]
            settings.saw_names(counts["names"])

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str) -> None:
        self._reports().add_crash(crashitem)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome: str = report.outcome  # "rerun" is pytest-rerunfailures' own
        context = getattr(report, "context", None)  # of a subtest, in pytest and in pytest-subtests
        failed = outcome in ("failed", "rerun")
        error = ""
        if context is not None and failed:
            self._failed_subtests.add(report.nodeid)
        is_summary = context is None and report.nodeid in self._failed_subtests and isinstance(report.longrepr, str)
        if failed and not is_summary and not hasattr(report, _FAILED_BY_GATE):
            where = "" if report.when == "call" else f"{report.when}: "
            error = f"{_subtest(context)}{where}{_reason(report)}"
        self._add(
            report.nodeid,
            when=report.when or "",
            outcome=outcome,
            xfail=hasattr(report, "wasxfail"),
            properties=report.user_properties,
            error=error,
            is_subtest=context is not None,
            place=_place(report),
        )

    def _add(self, node_id: str, *, outcome: str, properties: Sequence[tuple[str, object]] = (), **others: Any) -> None:
        """Pass a report on; without reports to write, keep those that did not pass until there is evidence."""
        report = {"node_id": node_id, "outcome": outcome, "properties": properties, **others}
        if self._collector is not None or any(name in (PROPERTY, NOT_JUDGED) for name, _ in properties):
            self._reports().add_report(**report)
        elif outcome != "passed" or self._writes:
            self._early.append(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if self._writes and self._runs_tests and (self._order or self._early):
            self._write(complete=self._is_complete(exitstatus), exit_status=int(exitstatus))

    def _is_complete(self, exit_status: int) -> bool:
        """Return whether every collected test was selected and ended."""
        last_failed = self._config.getoption("lf", False)
        ran_through = exit_status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        selected, ended = len(set(self._order)), len(self._reports().node_ids)
        everything = self._reports().is_collected and not self._deselected and not last_failed
        return ran_through and everything and ended == selected > 0

    def _write(self, *, complete: bool, exit_status: int | None) -> None:
        """Add a run that ended to the history, write every report that can be written, and raise for the others."""
        from pytest_modelserve.reporting import add_to_history, write_reports

        document = self._document = self._run_document(complete=complete, exit_status=exit_status)
        problems = []
        if self._history is not None:
            try:
                self._builds = add_to_history(self._history, document)
            except UsageError as error:
                problems.append(str(error))
        problems += write_reports(document, self._paths, self._builds)
        if self._statement is not None:
            problems += self._write_statement(document, *self._statement)
        if problems:
            raise pytest.UsageError("; ".join(problems))

    def _write_statement(self, document: dict[str, Any], path: Path, days: float, pem: bytes) -> list[str]:
        """Write the statement of a run that ended; before, remove that of an earlier run. Return what went wrong."""
        from pytest_modelserve._files import write_file
        from pytest_modelserve.contracts.release import data_of_contracts
        from pytest_modelserve.signing.statement import signed_statement, suite_files

        try:
            path.unlink(missing_ok=True)
            if document["exit_status"] is None:
                return []
            root = self._config.rootpath
            suite = suite_files(root, self._order, self._config.inipath, data_of_contracts(self._order, root))
            write_file(path, [signed_statement(document, suite=suite, days=days, key_pem=pem).encode()])
        except ModelServeError as error:
            return [f"--modelserve-statement: {error}"]
        except OSError as error:
            return [f"--modelserve-statement: cannot write {path}: {error.strerror or error}"]
        return []

    def _run_document(self, *, complete: bool, exit_status: int | None) -> dict[str, Any]:
        from pytest_modelserve.reporting import RunCounts, run_document

        collector = self._reports()
        counts = RunCounts(
            selected=len(set(self._order)),
            deselected=self._deselected,
            ended=len(collector.node_ids),
            expected_failures=collector.expected_failures,
        )
        return run_document(
            collector.rows(),
            started=self._started,
            root=self._config.rootpath,
            counts=counts,
            complete=complete,
            exit_status=exit_status,
            without_evidence=collector.without_evidence,
            not_judged=collector.not_judged,
        )

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
        unmatched = settings.unmatched_rules()
        if unmatched and self._is_complete(exitstatus):  # a part of the tests has a part of the names
            for message in unmatched:
                terminalreporter.write_line(message, yellow=True)
        collector = self._collector
        rows = () if collector is None else collector.rows()
        if collector is None or not (collector.not_judged or any(row.record or self._writes for row in rows)):
            return
        import textwrap

        from pytest_modelserve.reporting import (
            error_bound,
            error_bound_line,
            not_judged_lines,
            report_to_github,
            summary_line,
            table_lines,
        )

        terminalreporter.write_sep("=", "modelserve")
        # A file or a log has no width of its own.
        width = self._config.get_terminal_writer().fullwidth if terminalreporter.isatty() else None
        for line in table_lines(rows, width):
            terminalreporter.write(line.before)
            if line.verdict is not None:
                color = _COLORS.get(line.verdict, "red")
                terminalreporter.write(line.verdict, **{color: True})
            terminalreporter.write_line(line.after)
        for reason in not_judged_lines(collector.not_judged):
            terminalreporter.write_line(reason)
        reports = "".join(f" · {REPORTS[kind][0]} {self._relative(path)}" for kind, path in self._paths.items())
        reports += "" if self._history is None else f" · history {self._relative(self._history)}"
        reports += "" if self._statement is None else f" · statement {self._relative(self._statement[0])}"
        counts = summary_line(rows, collector.without_evidence, collector.not_judged)
        terminalreporter.write_line(counts + reports)
        if error_bound(rows):  # a gate that estimates nothing has no error rate
            sentence = error_bound_line(rows)
            terminalreporter.write_line(sentence if width is None else textwrap.fill(sentence, width))
        if os.environ.get("GITHUB_ACTIONS") == "true":
            complete = self._is_complete(exitstatus)
            document = self._document or self._run_document(complete=complete, exit_status=int(exitstatus))
            for command in report_to_github(document, os.environ.get("GITHUB_STEP_SUMMARY"), self._builds):
                terminalreporter.write_line(command)

    def _relative(self, path: Path) -> str:
        return os.path.relpath(path, self._config.invocation_params.dir)


def _place(report: pytest.TestReport) -> tuple[str, int | None] | None:
    """Return the file of a test, relative to the root directory, and its line; None for a report without them."""
    file, line, _ = getattr(report, "location", None) or ("", None, "")
    return (str(file), None if line is None else line + 1) if file else None


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return the failure of a report in one line: "FileNotFoundError: [Errno 2] No such file: 'm.onnx'"."""
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = str(report.longrepr or "").strip().splitlines()
    if crash is not None:
        return str(crash.message).strip().partition("\n")[0]
    if isinstance(report, pytest.CollectReport):  # of a module: the traceback, which ends with the exception
        return lines[-1].removeprefix("E ").strip() if lines else "failed"
    return lines[0] if lines else "failed"


def _subtest(context: Any) -> str:
    """Return the label of a subtest, "[msg] (day='tue'): ", or "" outside subtests."""
    if context is None:
        return ""
    values = ", ".join(f"{name}={value}" for name, value in context.kwargs.items())
    return " ".join([*([f"[{context.msg}]"] if context.msg else []), *([f"({values})"] if values else [])]) + ": "


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the command-line options and the settings of the plugin."""
    declare_options(parser)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect contracts, and model files that the command line names."""
    name = file_path.name.lower()
    if not name.endswith((".onnx", ".modelgate.toml")):
        return None
    if name.endswith(".onnx") and not parent.session.isinitpath(file_path):
        return None
    from pytest_modelserve.contracts.items import collect_file

    return collect_file(file_path, parent)


def pytest_configure(config: pytest.Config) -> None:
    """Check the settings and register the hooks for the role of this process."""
    policy = setting(config, "inconclusive")
    if policy not in INCONCLUSIVE_POLICIES:
        raise pytest.UsageError(unknown_choice("--modelserve-inconclusive", policy, INCONCLUSIVE_POLICIES))
    seed = setting(config, "seed")
    if not seed.isdecimal():
        raise pytest.UsageError(f"--modelserve-seed must be an integer of at least 0, got {seed!r}")
    if config.getoption("--modelserve-update") and os.environ.get("CI", "") not in ("", "0", "false"):
        raise pytest.UsageError(
            "--modelserve-update: refused because the environment variable CI is set, and CI compares against these "
            "baselines; run it on your machine and commit the files"
        )
    _check_model_options(config)
    apply_settings(config)
    _check_endpoint(config)
    config._modelserve_terminal = _terminal  # type: ignore[attr-defined]
    samples = path_setting(config, "json").parent / "samples" if setting(config, "json") else None
    config.addinivalue_line(
        "markers",
        "modelserve_slow: a test whose gates take long, such as latency, leaks or searches; leave such tests out with "
        '-m "not modelserve_slow"',
    )
    recording_hooks = RecordingHooks(policy, samples)
    config.pluginmanager.register(recording_hooks, "modelserve-recording")
    if config.getoption("--modelserve-selftest") or config.getoption("--modelserve-aa"):
        from pytest_modelserve.selftest.hooks import register

        register(config, recording_hooks)
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(WorkerHooks(config), "modelserve-worker")
    else:
        paths = {kind: path_setting(config, kind) for kind in REPORTS if setting(config, kind)}
        history = path_setting(config, "history") if setting(config, "history") else None
        hooks = ReportingHooks(config, paths, history, _statement_settings(config))
        config.pluginmanager.register(hooks, "modelserve-reporting")


def _statement_settings(config: pytest.Config) -> tuple[Path, float, bytes] | None:
    """Return the path of the statement, its days and the private key, which is checked; None if none is written."""
    if not setting(config, "statement"):
        return None
    from pytest_modelserve.signing import private_key, private_pem

    text = setting(config, "statement-days")
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if not 0 < days < 36500:
        raise pytest.UsageError(f"--modelserve-statement-days must be a number of days above 0, got {text!r}")
    try:
        pem = private_pem(path_setting(config, "sign-key") if setting(config, "sign-key") else None)
        private_key(pem)
    except ModelServeError as error:
        raise pytest.UsageError(f"--modelserve-statement: {error}") from None
    path = path_setting(config, "statement")
    if path.exists() and not (path.is_file() and path.read_bytes()[:1] == b"{"):
        raise pytest.UsageError(
            f"--modelserve-statement: {path} is no statement and would be removed: give another path"
        )
    return path, days, pem


def _check_model_options(config: pytest.Config) -> None:
    """Raise UsageError for options of model files that no model file is named for, or that are wrong."""
    given = [name for name in ("inputs", "against", "labels", "set") if config.getoption(f"--modelserve-{name}")]
    if not given:
        return
    if not any(str(argument).partition("::")[0].lower().endswith(".onnx") for argument in config.args):
        option = f"--modelserve-{given[0]}"
        raise pytest.UsageError(f"{option} is for model files: name one, as in pytest candidate.onnx {option} …")
    from pytest_modelserve.contracts.items import file_options

    file_options(config)


def _check_endpoint(config: pytest.Config) -> None:
    """Raise UsageError for an --modelserve-endpoint that is no address of a model."""
    if url := setting(config, "endpoint"):
        from pytest_modelserve.serving import Endpoint

        try:
            Endpoint(url)
        except UsageError as error:
            raise pytest.UsageError(f"--modelserve-endpoint: {error}") from None


# Without -v, `pytest --fixtures` shows the first paragraph of the docstring alone.
@pytest.fixture(scope="session")
def modelserve(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """Return the pipeline of this run; it keeps results in the cache, and closes its predictors at the end.
    modelserve.train(source)                 train a ms.ModelSource with the seed of the run
    modelserve.prune(trained, amount=)       remove channels, heads or weights, and fine-tune
    modelserve.distill(teacher, student)     train a smaller model on the outputs of a larger one
    modelserve.quantization_aware(trained)   train with the rounding of int8 or int4 files
    modelserve.export(model, example_inputs) export a torch module or trained model to ONNX, and check the result
    modelserve.compress(artifact, recipe)    convert an artifact, for example by "int8-dynamic"
    modelserve.tune(model, inputs, gates=)   choose the best variant that passes the gates
    modelserve.compose(artifact, ...)        put preprocessing and postprocessing into the graph
    modelserve.prepare(steps, rows)          preprocess training data with the same steps
    modelserve.open_artifact(path)           open an ONNX file
    modelserve.serve(model)                  return a predictor of an artifact, a path, a module or a function
    modelserve.baseline(name, candidate)     return the stored model of this name
    modelserve.close()                       close the predictors before the end of the run
    """
    from pytest_modelserve.pipeline import Pipeline
    from pytest_modelserve.progress import progress_to

    config = request.config
    store = path_setting(config, "cache")
    pipeline = Pipeline(
        store,
        seed=int(setting(config, "seed")),
        baselines=path_setting(config, "baselines"),
        update=config.getoption("--modelserve-update"),
        root=config.rootpath,
    )
    with _terminal(config) as terminal, progress_to(terminal), pipeline:
        yield pipeline


@pytest.fixture(scope="session")
def modelserve_endpoint_settings() -> Mapping[str, Any]:
    """Return the settings of ms.Endpoint for `modelserve_endpoint`; override it to set headers or time limits."""
    return {}


@pytest.fixture(scope="session")
def modelserve_endpoint(
    request: pytest.FixtureRequest, modelserve: Pipeline, modelserve_endpoint_settings: Mapping[str, Any]
) -> Predictor:
    """Return the predictor of the model that --modelserve-endpoint names; without it the test is skipped."""
    url = setting(request.config, "endpoint")
    if not url:
        pytest.skip("--modelserve-endpoint names no model")
    from pytest_modelserve.serving import Endpoint

    return modelserve.serve(Endpoint(url, **modelserve_endpoint_settings))


@contextmanager
def _terminal(config: pytest.Config) -> Iterator[TextIO]:
    """Give standard error outside pytest's capture, for progress bars.

    It is a duplicate of the file descriptor. Suspending the capture for each write would undo every redirection of
    standard output that a test has made since, such as `contextlib.redirect_stdout`.
    """
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    uncaptured = nullcontext if capture is None else capture.global_and_fixture_disabled
    silent = io.StringIO()
    if hasattr(config, "workerinput") or config.get_verbosity() <= -2:
        yield silent
        return
    with uncaptured():
        try:
            descriptor = os.dup(sys.stderr.fileno())
        except (OSError, ValueError, AttributeError):  # standard error is closed, or is no file
            descriptor = None
        encoding = getattr(sys.stderr, "encoding", None)
    if descriptor is None:
        yield silent
        return
    with open(descriptor, "w", encoding=encoding, errors="replace", buffering=1) as stream:
        yield stream
