"""The checks of `pytest model.onnx`: verdicts and measurements of a model file without tests.

Each check is one call of a gate. A check with a definition (equal on a repeated call, finite) has a verdict. One that
needs a budget is a measurement, unless the caller gives the budget. A check without a result raises `NotJudgedError`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest_modelserve as ms
from pytest_modelserve._onnx.graph import node_counts
from pytest_modelserve.artifacts import Artifact, Store, open_artifact, read_graph
from pytest_modelserve.compression import compress
from pytest_modelserve.contracts.annotations import budgets_of
from pytest_modelserve.contracts.gate_arguments import columns_in, realized
from pytest_modelserve.contracts.rows import Rows
from pytest_modelserve.errors import (
    ArtifactError,
    InputError,
    ModelServeError,
    RecipeError,
    UsageError,
    VerificationError,
)
from pytest_modelserve.evidence import Budget, Evidence, GateFailure, Method, Quantity, Subject, Verdict, record
from pytest_modelserve.evidence.failure_text import failure_message, printable
from pytest_modelserve.parity.accuracy.metrics import METRICS
from pytest_modelserve.performance.operator_costs import measure_operator_costs
from pytest_modelserve.robustness import relations
from pytest_modelserve.robustness.base_rows import may_be_parameter
from pytest_modelserve.robustness.strategies import GeneratedInputs, input_source
from pytest_modelserve.scanning import WITHOUT_LIMITS, check_unchanged, refuse_unsafe
from pytest_modelserve.serving import Predictor, serve
from pytest_modelserve.serving.inputs import slice_rows
from pytest_modelserve.serving.onnx_predictor import check_loadable
from pytest_modelserve.serving.predictor import ProcessCrashError
from pytest_modelserve.serving.ready_outputs import FILE_SUFFIXES
from pytest_modelserve.serving.subprocess_predictor import TIME_LIMIT_S, SubprocessPredictor
from pytest_modelserve.signing import CheckedCopy, checked_copy

if TYPE_CHECKING:
    from pytest_modelserve.serving import Inputs

# Rows of the search, and of the comparison with a compressed variant: few enough for a large model.
_SEARCH_ROWS = 64
_COMPARED_ROWS = 1000
_GENERATED_ROWS = 8
# A search may take about this long; a slow model gets fewer candidates.
_SEARCH_S = 10.0
_CANDIDATES = 1000
_GENERATED_CANDIDATES = 100
# Names of a first axis that holds steps of a sequence, and no rows.
_STEPS = ("seq", "time", "step", "token", "len", "frame")
# Budgets that no model exceeds: a gate decides on them at once, and they are removed from its evidence.
_LOOSE: Mapping[str, float] = {
    "max_ms": 1e9,
    "max_mib": 2.0**40,
    "max_bytes": 2**62,
    "max_ratio": 1e6,
    "min_sqnr_db": -1e4,
    "min_value": 1e-9,
    "max_drop": 1 - 1e-9,
    "max_value": 1e30,
    "max_rise": 1e30,
}


class UnreadableFileError(InputError):
    """A file of the command line, other than the model, that cannot be read: an error of every check that needs it."""


class NotJudgedError(Exception):
    """A check without a result; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the command line for model files.

    Attributes:
        inputs: File of rows; without it inputs are generated from the signature.
        against: The model to compare with.
        labels: Column of the inputs, or file of one column.
        settings: Arguments of a check by its name, budgets among them.
        time_limit_s: The longest that opening the file, and one call, may take in seconds.
        cache: Folder of compressed variants.
        counterexamples: Folder of counterexamples.
        seed: Seed of the inputs and searches.
    """

    inputs: Path | None = None
    against: Path | None = None
    labels: str | None = None
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    time_limit_s: float = 120.0
    cache: Path = Path(".modelserve/cache")
    counterexamples: Path = Path(".modelserve/counterexamples")
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    """One check: the assertion that it calls, "" if it calls none, and the options that it needs."""

    name: str
    assertion: str = ""
    needs: tuple[str, ...] = ()


CHECKS = (
    Check("safe", "assert_artifact_safe"),
    Check("opens"),
    Check("deterministic", "assert_relation"),
    Check("finite", "assert_relation"),
    Check("batch_invariance", "assert_relation"),
    Check("row_permutation", "assert_relation"),
    Check("malformed_inputs", "assert_relation"),
    Check("simplify", "assert_output_parity"),
    Check("optimize", "assert_output_parity"),
    Check("int8_dynamic", "assert_output_fidelity"),
    Check("latency", "assert_latency"),
    Check("memory", "assert_memory"),
    Check("size", "assert_size"),
    Check("operators"),
    Check("providers"),
    Check("parity", "assert_output_fidelity", ("against",)),
    Check("slowdown", "assert_not_slower", ("against",)),
    Check("accuracy", "assert_accuracy", ("labels",)),
    Check("accuracy_parity", "assert_accuracy_parity", ("against", "labels")),
)
"""Every check in order; those that need an option exist only with it."""

RELATIONS: Mapping[str, Callable[[], relations.Relation]] = {
    "deterministic": relations.determinism,
    "finite": relations.finite_outputs,
    "batch_invariance": relations.batch_invariance,
    "row_permutation": relations.row_permutation,
    "malformed_inputs": relations.clean_rejection,
}
"""The relation of each check that has one."""
RECIPES = {"simplify": "simplify", "optimize": "optimize", "int8_dynamic": "int8-dynamic"}
"""The recipe of each check that compares a compressed variant."""


def checks_for(options: Options) -> tuple[Check, ...]:
    """Return the checks that the options allow."""
    return tuple(check for check in CHECKS if all(getattr(options, need) is not None for need in check.needs))


class ModelFile:
    """One model file and its checks. It is opened when a check first needs it, in a process of its own.

    `run` calls one check. `close` ends the process and closes the models.
    """

    def __init__(self, path: Path, options: Options) -> None:
        self.path = path
        self.options = options
        self._opened: list[Predictor | CheckedCopy] = []

    def run(self, check: Check) -> None:
        """Call a check; its evidence goes to the current recorder.

        Raises:
            GateFailure: The verdict is FAIL.
            GateInconclusive: The data do not decide.
            NotJudgedError: The check has no result; the message says why.
            InputError: The inputs or labels of the command line cannot be read or do not fit.
        """
        if check.name == "safe":
            return self._assert_safe(self._set(check))
        if not self.safety.passed:
            raise NotJudgedError(f"the scan refuses the file: {self.safety.summary.partition(': ')[2]}")
        if self._unsupported:
            raise NotJudgedError(self._unsupported)
        if check.name == "opens":
            return self._assert_opens()
        if self.opening.verdict is not Verdict.PASS:
            raise NotJudgedError(f"the file does not open: {self.opening.summary}")
        if check.assertion and self._inputs_error is not None and check.name != "size":
            raise NotJudgedError(f"there are no inputs: {self._inputs_error}")
        try:
            if check.name in RELATIONS:
                return self._assert_relation(check)
            if not check.assertion:
                return record(self._operators() if check.name == "operators" else self._providers())
            return self._assert_or_measure(check)
        except UnreadableFileError:
            raise
        except ModelServeError as error:
            if self._depends_on_options(check) and not isinstance(error, RecipeError):
                raise
            raise NotJudgedError(str(error)) from error

    def close(self) -> None:
        """End the process, close the models and remove the private copy."""
        while self._opened:
            self._opened.pop().close()

    # The file and its inputs

    @cached_property
    def safety(self) -> Evidence:
        """The evidence of the scan, before anything opens the file."""
        return ms.measure_artifact_safety(self.path, allow=WITHOUT_LIMITS)

    @cached_property
    def artifact(self) -> Artifact:
        """The file, read without its weights; ArtifactError if it is no model, or not signed where it should be.

        Where signatures are asked for it is a private copy: what was verified is what is opened.
        """
        copy = checked_copy(self.path, None)
        if copy is None:
            return open_artifact(self.path)
        self._opened.append(copy)
        return copy.artifact

    @cached_property
    def opening(self) -> Evidence:
        """The evidence of opening the file and predicting one batch in another process."""
        began = time.perf_counter()
        error: Exception | None = None
        subject, findings = Subject(self.path.stem), [""]
        try:
            subject, findings = self.artifact.subject, [str(self.artifact.signature)]
            self._child.start()
            if self._inputs_error is None:
                self._child.predict(self._batch)
                self._child.time_limit_s = min(self.options.time_limit_s, TIME_LIMIT_S)  # of rows in a search
                findings.append(self._where_inputs_come_from)
        except InputError as found:
            if self.options.inputs is not None:
                raise
            self._inputs_error = f"the model rejects inputs that were generated from its signature: {found}"
            findings.append(self._inputs_error)
        except ModelServeError as found:
            error = found
        else:
            findings += filter(None, [self._inputs_error])
        return Evidence(
            gate="opens",
            subject=subject,
            quantities=(Quantity("failures", int(error is not None), "count", budget=Budget("at_most", 0)),),
            n=1,
            n_unit="files",
            method=Method("the file is opened, and one batch predicted, in a process of its own"),
            summary="the file opens and serves" if error is None else printable(str(error).partition("\n")[0]),
            findings=tuple(filter(None, map(printable, findings))),
            advice=""
            if error is None
            else "take the file from the one who signed it, or sign it"
            if isinstance(error, VerificationError)
            else "export the model again, or serve it with the runtime that it was made for",
            duration_s=time.perf_counter() - began,
        )

    @cached_property
    def _unsupported(self) -> str:
        """Why no array can represent an input or output of the model; "" if arrays can, or if it is no model."""
        try:
            signature = self.artifact.signature
        except ArtifactError:
            return ""
        try:
            check_loadable(self.path.name, signature)
        except ArtifactError as error:
            return str(error)
        return ""

    @cached_property
    def _child(self) -> SubprocessPredictor:
        limit = self.options.time_limit_s
        child = SubprocessPredictor(self.artifact, time_limit_s=limit, start_limit_s=limit, guarded=True)
        self._opened.append(child)
        return child

    @cached_property
    def _model(self) -> Predictor:
        """The model in this process, for what is timed; it has opened and predicted in another one."""
        model = serve(self.artifact)
        self._opened.append(model)
        return model

    @cached_property
    def _champion(self) -> Predictor:
        try:
            report = refuse_unsafe(str(self.options.against), "strict", allow=WITHOUT_LIMITS)
            champion = serve(str(self.options.against))
            self._opened.append(champion)
            check_unchanged(report)
        except ArtifactError as error:
            raise UnreadableFileError(f"--modelserve-against: {error}") from error
        return champion

    @cached_property
    def _rows(self) -> Rows | None:
        """The rows of the command line."""
        try:
            return None if self.options.inputs is None else Rows.read(self.options.inputs)
        except ArtifactError as error:
            raise UnreadableFileError(f"--modelserve-inputs: {error}") from error

    @cached_property
    def _labels_column(self) -> str | None:
        labels = self.options.labels
        return None if labels is None or labels.lower().endswith(FILE_SUFFIXES) else labels

    @cached_property
    def _given(self) -> Inputs | None:
        """The rows of the command line as inputs of the model."""
        others = columns_in({name: dict(table) for name, table in self.options.settings.items()})
        others |= set() if self._labels_column is None else {self._labels_column}
        return None if self._rows is None else self._rows.inputs(self.artifact.signature, None, others)

    @cached_property
    def _generated(self) -> GeneratedInputs:
        model = _UntilCrash(self._child)
        source = input_source(model, like=None, max_batch=8, domain=("like", "edges"), empty=False)
        if isinstance(source.batch_size, int) and source.batch_size:
            # Nothing says that a fixed first axis holds rows, so that all inputs together are one.
            source = replace(source, batch_size=0, accepts=None, _spaces={})
            if any(map(may_be_parameter, source.specs)):
                source = replace(source, accepts=source.generator.rejection_filter(model, {}))
        if model.crash is not None:
            raise model.crash
        return source.at(rows=_GENERATED_ROWS, edits=0, seed=self.options.seed)

    @cached_property
    def _inputs_error(self) -> str | None:
        """Why there are no inputs; None if there are. Rows of the command line that do not fit raise their error."""
        if self._given is not None:
            return None
        try:
            return None if self._generated else "the model has no inputs"
        except (UsageError, InputError) as error:
            return f"none can be generated from the signature ({error}); give rows with --modelserve-inputs"

    @property
    def _where_inputs_come_from(self) -> str:
        if self._rows is not None:
            return f"inputs: {self._rows.n:,} rows of {self._rows.source}"
        return f"inputs: generated from the signature, seed {self.options.seed}"

    @property
    def _batch(self) -> Inputs:
        """The first rows, as the search gets them."""
        if self._given is None:
            return dict(self._generated)
        return slice_rows(self._given, _SEARCH_ROWS)

    @cached_property
    def _has_rows(self) -> bool:
        return self._given is not None or self._generated.source.batch_size != 0

    @property
    def _one_row(self) -> Inputs:
        """One row, or the fixed batch of the model: what is timed."""
        free = all(spec.shape and not isinstance(spec.shape[0], int) for spec in self.artifact.signature.inputs)
        return slice_rows(self._batch, 1) if free and self._has_rows else self._batch

    def _depends_on_options(self, check: Check) -> bool:
        """Return whether the command line can cause an error of the check: by a setting, labels or another model."""
        return check.name in self.options.settings or check.name == "parity" or "labels" in check.needs

    # The checks

    def _assert_safe(self, settings: dict[str, Any]) -> None:
        if settings:
            allow = {**WITHOUT_LIMITS, **settings.pop("allow", {})}
            self.safety = ms.measure_artifact_safety(self.path, allow=allow, **settings)
        record(self.safety)
        if not self.safety.passed:
            raise GateFailure(failure_message(self.safety), self.safety)

    def _assert_opens(self) -> None:
        record(self.opening)
        if self.opening.verdict is Verdict.FAIL:
            raise GateFailure(failure_message(self.opening), self.opening)

    def _assert_relation(self, check: Check) -> None:
        if check.name in ("batch_invariance", "row_permutation"):
            self._check_batch_axis()
        given = self._generated if self._given is None else self._batch
        settings = {"candidates": self._candidates} if check.name != "malformed_inputs" else {}
        call = ms.measure_relation if self._given is None else ms.assert_relation
        evidence = call(
            self._child,
            given,
            RELATIONS[check.name](),
            **{"seed": self.options.seed, "save_to": self.options.counterexamples, **settings, **self._set(check)},
        )
        if self._given is not None:
            return
        if evidence.verdict is Verdict.FAIL and check.name == "finite":
            raise NotJudgedError(
                "generated inputs may lie outside the range that the model is made for, and some have NaN or infinite "
                "outputs: give rows with --modelserve-inputs"
            )
        if evidence.verdict is Verdict.FAIL and evidence.summary.startswith("the model "):  # crashes, or hangs
            what = f"{evidence.summary} on inputs that were generated from the signature ({evidence.findings[1]})"
            raise NotJudgedError(f"{what}: give rows with --modelserve-inputs")
        record(evidence)
        if evidence.verdict is Verdict.FAIL:
            raise GateFailure(failure_message(evidence), evidence)

    @cached_property
    def _candidates(self) -> int:
        """Return as many candidates as a search of some seconds takes."""
        began = time.perf_counter()
        self._child.predict(self._batch)
        rows = len(next(iter(self._rows_by_name(self._batch).values()), [0])) if self._has_rows else 1
        seconds = (time.perf_counter() - began) / max(rows, 1)
        most = _GENERATED_CANDIDATES if self._given is None else _CANDIDATES
        return int(min(most, max(_SEARCH_S / max(seconds, 1e-9) / 4, 1)))

    @staticmethod
    def _rows_by_name(inputs: Inputs) -> Mapping[str, Any]:
        return inputs if isinstance(inputs, Mapping) else {"": inputs}

    def _check_batch_axis(self) -> None:
        """Raise NotJudgedError unless every input and output has a free first axis, and nothing says it holds steps."""
        signature = self.artifact.signature
        firsts = {spec.shape[0] if spec.shape else 1 for spec in (*signature.inputs, *signature.outputs)}
        fixed = [first for first in firsts if isinstance(first, int)]
        if fixed:
            raise NotJudgedError("the signature has no batch: not every input and output has a free first axis")
        steps = [first for first in firsts if any(part in str(first).lower() for part in _STEPS)]
        if steps:
            raise NotJudgedError(f"the first axis is called {steps[0]!r}, which need not be a batch")

    def _assert_or_measure(self, check: Check) -> None:
        """Call the assertion with the budget that was given, or record a measurement without one."""
        settings = self._set(check)
        arguments = self._arguments(check)
        assertion = getattr(ms, check.assertion)
        budgets = budgets_of(assertion)
        if any(name in settings for name in budgets) or {"rtol", "atol"} & settings.keys():
            assertion(*arguments, **settings)
            return
        loose = {name: _LOOSE[name] for name in self._loose_budgets(check, budgets, settings)}
        record(assertion.__wrapped__(*arguments, **loose, **settings).without_budgets())

    def _loose_budgets(self, check: Check, budgets: list[str], settings: Mapping[str, Any]) -> Iterator[str]:
        if check.assertion == "assert_output_fidelity":
            yield "min_sqnr_db"
        elif check.name == "size":
            yield from ("max_bytes", "max_ratio") if self.options.against else ("max_bytes",)
        elif check.name in ("accuracy", "accuracy_parity"):
            metric = METRICS.get(str(settings.get("metric", "accuracy")))
            yield budgets[0] if metric is None or metric.higher_is_better else budgets[1]
        else:
            yield from budgets[:1]

    def _arguments(self, check: Check) -> tuple[Any, ...]:
        if check.name in RECIPES:
            compressed = compress(self.artifact, RECIPES[check.name], store=Store(self.options.cache))
            with_rows = self._batch if self._given is None else slice_rows(self._given, _COMPARED_ROWS)
            return self._served(compressed), self._model, with_rows
        if check.name in ("latency", "memory"):
            return self._model, self._one_row
        if check.name == "size":
            return (self._model, self._champion) if self.options.against else (self._model,)
        if check.name == "slowdown":
            return self._model, self._champion, self._one_row
        rows = self._batch if self._given is None else self._given
        models = (self._model, self._champion) if "against" in check.needs else (self._model,)
        return (*models, rows, self._labels) if "labels" in check.needs else (*models, rows)

    def _served(self, artifact: Artifact) -> Predictor:
        served = serve(artifact)
        self._opened.append(served)
        return served

    @property
    def _labels(self) -> Any:
        if self._labels_column is None:
            return self.options.labels
        if self._rows is None:
            raise InputError(f"--modelserve-labels {self._labels_column!r} is a column: give --modelserve-inputs, too")
        return self._rows.column(self._labels_column)

    def _set(self, check: Check) -> dict[str, Any]:
        """Return the arguments of the command line for one check."""
        scope = _Scope(self._rows, self._opened)
        return {name: realized(value, scope) for name, value in self.options.settings.get(check.name, {}).items()}

    def _operators(self) -> Evidence:
        counts = node_counts(read_graph(self.artifact.path))
        costs = None if self._inputs_error else measure_operator_costs(self._model, self._one_row)
        listed = ", ".join(f"{name} {number}" for name, number in counts.items())
        return self._measurement(
            "operators",
            (Quantity("nodes", sum(counts.values()), "count"), Quantity("kinds", len(counts), "count")),
            (listed, *([str(costs)] if costs else [])),
            {"operators": dict(counts)},
        )

    def _providers(self) -> Evidence:
        import onnxruntime

        available = onnxruntime.get_available_providers()
        return self._measurement(
            "providers",
            (Quantity("providers", len(available), "count"),),
            (f"served by CPUExecutionProvider; onnxruntime {onnxruntime.__version__} has {', '.join(available)}",),
            {"available": list(available)},
        )

    def _measurement(
        self, gate: str, quantities: tuple[Quantity, ...], findings: tuple[str, ...], details: Mapping[str, Any]
    ) -> Evidence:
        return Evidence(
            gate=gate,
            subject=self.artifact.subject,
            quantities=quantities,
            n=1,
            n_unit="files",
            method=Method("count"),
            summary="measured, without a budget",
            findings=findings,
            details=details,
        )


class _UntilCrash(Predictor):
    """A model that is not called again after it crashed or hung: many inputs are tried where some are rejected."""

    transport = "own process"

    def __init__(self, child: SubprocessPredictor) -> None:
        super().__init__(child.subject, child.signature)
        self.artifact = child.artifact
        self.crash: ProcessCrashError | None = None
        self._child = child

    def predict(self, inputs: Inputs) -> dict[str, Any]:
        if self.crash is not None:
            raise self.crash
        try:
            return self._child.predict(inputs)
        except ProcessCrashError as error:
            self.crash = error
            raise

    def describe(self) -> str:
        return self._child.describe()


@dataclass(frozen=True, slots=True)
class _Scope:
    """What values of the command line are read from: the rows, and other models."""

    rows: Rows | None
    opened: list[Predictor | CheckedCopy]

    def column(self, name: str) -> Any:
        if self.rows is None:
            raise InputError(f"{name!r} is a column: give --modelserve-inputs, too")
        return self.rows.column(name)

    def feature(self, name: str) -> int:
        raise UsageError(f"{name!r}: give the number of the feature")

    def model(self, path: str) -> Predictor:
        model = serve(path)
        self.opened.append(model)
        return model
