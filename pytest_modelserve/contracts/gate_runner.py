"""The gates of one contract, run: its models are served once, its files read once."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest_modelserve as ms
from pytest_modelserve.artifacts import Artifact, open_artifact
from pytest_modelserve.contracts.annotations import hints_of, subject_of
from pytest_modelserve.contracts.contract import GateCall, Model
from pytest_modelserve.contracts.gate_arguments import (
    FUNCTION,
    Key,
    imported_function,
    realized,
)
from pytest_modelserve.contracts.rows import Rows
from pytest_modelserve.errors import InputError, unknown_choice
from pytest_modelserve.evidence import Evidence
from pytest_modelserve.serving import Predictor, serve
from pytest_modelserve.serving.predictor import is_url
from pytest_modelserve.serving.ready_outputs import FILE_SUFFIXES, ReadyOutputs
from pytest_modelserve.signing import CheckedCopy, checked_copy


class GateRunner:
    """Calls the assertions of gates, as a test in Python does; `close` closes the models that it served."""

    def __init__(self) -> None:
        self._models: dict[tuple[Any, ...], Predictor] = {}
        self._served: list[Predictor | CheckedCopy] = []
        self._rows: dict[Path, Rows] = {}

    def run(self, call: GateCall) -> Evidence:
        """Call the assertion of a gate and return its evidence.

        Raises:
            GateFailure: The verdict is FAIL.
            GateInconclusive: The data do not decide.
            ModelServeError: A file cannot be read, or does not fit the gate.
        """
        assertion = getattr(ms, call.assertion)
        evidence: Evidence = assertion(**self.arguments(call))
        return evidence

    def arguments(self, call: GateCall) -> dict[str, Any]:
        """Return the keyword arguments of a gate: models served, files read."""
        source, key = call.source, call.place
        assertion = getattr(ms, call.assertion)
        parameters = hints_of(assertion)
        found: dict[str, Any] = {}
        if call.assertion == "assert_artifact_safe":  # scans the file, which is not opened
            found["artifact"] = str(key.child("subject").file(str(getattr(source.subject, "path", source.subject))))
        elif (subject := subject_of(assertion)) is not None:
            found[subject] = self.model(source.subject, key.child("subject"))
        if "reference" in parameters and source.reference is not None:
            found["reference"] = self.model(source.reference, key.child("reference"))
        if "profile" in parameters:
            found["profile"] = str(key.file(str(source.profile)))
        if "data" in parameters:
            found["data"] = str(key.file(str(source.data), "pattern"))
        scope = _Scope(self, call, None)
        if "inputs" in parameters:
            rows = self._selected(call)
            models = [value for value in found.values() if isinstance(value, Predictor)]
            ready = bool(models) and all(isinstance(model, ReadyOutputs) for model in models)
            scope = _Scope(self, call, rows)
            if rows is not None and not (ready and source.columns is None):
                found["inputs"] = inputs = self._inputs(call, rows, models)
                scope = replace(scope, inputs=tuple(inputs) if isinstance(inputs, Mapping) else ())
            if "labels" in parameters and source.labels is not None:
                found["labels"] = self._labels(call, rows)
        return {**found, **realized(dict(call.arguments), scope)}

    def model(self, model: str | Model | None, key: Key) -> Predictor:
        """Return the predictor of a model, served once."""
        settings: Mapping[str, Any] = {}
        if isinstance(model, Model):
            given = {name: getattr(model, name) for name in ("name", "variant", "providers", "threads")}
            if model.interpreter is not None:
                # Not checked as a file: the Python of an environment is a link to one outside the project.
                beside = key.file(".") / model.interpreter
                given["interpreter"] = str(beside) if beside.exists() else model.interpreter
            settings, model = {name: value for name, value in given.items() if value is not None}, model.path
        text = str(model)
        is_function = FUNCTION.fullmatch(text) is not None
        target: Any = text if is_function or is_url(text) else str(key.file(text))
        identity = (target, *((name, str(value)) for name, value in settings.items()))
        if identity not in self._models:
            if is_function:
                target = imported_function(text, key)
            if not isinstance(target, Predictor):
                is_file = not is_function and not is_url(target) and Path(target).suffix.lower() == ".onnx"
                if is_file and "interpreter" not in settings:
                    target = self._opened(target)
                target = serve(target, **settings)
                self._served.append(target)
            self._models[identity] = target
        return self._models[identity]

    def close(self) -> None:
        """Close the models that were served here."""
        self._models.clear()
        while self._served:
            self._served.pop().close()

    def _opened(self, path: str) -> Artifact:
        """Scan and open a model file, first in another process; ModelServeError if it is unsafe, crashes or hangs.

        What was scanned is what is opened. Where signatures are asked for it is a private copy.
        """
        from pytest_modelserve.scanning import WITHOUT_LIMITS, check_unchanged, refuse_unsafe
        from pytest_modelserve.serving.subprocess_predictor import TIME_LIMIT_S, SubprocessPredictor

        report = refuse_unsafe(path, "strict", allow=WITHOUT_LIMITS)
        copy = checked_copy(path, None)
        if copy is not None:
            self._served.append(copy)
        artifact = open_artifact(path) if copy is None else copy.artifact
        check_unchanged(report)
        if artifact.sha256 not in _opened_before:
            with SubprocessPredictor(artifact, time_limit_s=TIME_LIMIT_S) as child:
                child.start()
            _opened_before.add(artifact.sha256)
        return artifact

    def _read(self, path: Path) -> Rows:
        if path not in self._rows:
            self._rows[path] = Rows.read(path)
        return self._rows[path]

    def _selected(self, call: GateCall) -> Rows | None:
        """Return the rows that the gate is about."""
        source = call.source
        if source.data is None:
            return None
        path = call.place.child("data").file(source.data)
        if path.suffix.lower() not in FILE_SUFFIXES:
            raise InputError(f"data: {unknown_choice('kind of file', path.suffix, FILE_SUFFIXES)}")
        rows = self._read(path)
        if source.where:
            rows = rows.where(source.where)
        if source.rows is None:
            return rows
        if source.rows > rows.n:
            raise InputError(f"rows = {source.rows:,}, and {source.data} has {rows.n:,} of them: give at most as many")
        return rows.take(slice(0, source.rows))

    def _inputs(self, call: GateCall, rows: Rows, models: list[Predictor]) -> Any:
        signature = next((model.signature for model in models if model.signature is not None), None)
        return rows.inputs(signature, call.source.columns, call.no_inputs)

    def _labels(self, call: GateCall, rows: Rows | None) -> Any:
        labels = str(call.source.labels)
        if not labels.lower().endswith(FILE_SUFFIXES):
            if rows is None:
                raise InputError(f"labels: {labels!r} is a column, and there is no data: give data")
            return rows.column(labels)
        path = call.place.child("labels").file(labels)
        if call.source.where or call.source.rows is not None:
            raise InputError("labels: where and rows need the labels as a column of the data")
        return str(path)


# Digests of files that opened in another process before.
_opened_before: set[str] = set()


@dataclass(frozen=True, slots=True)
class _Scope:
    """What the late values of one gate are read from."""

    runner: GateRunner
    call: GateCall
    rows: Rows | None
    inputs: Collection[str] = ()

    def column(self, name: str) -> Any:
        if self.rows is None:
            raise InputError(f"{name!r} is a column, and the gate has no data: give data")
        return self.rows.column(name)

    def feature(self, name: str) -> int | str:
        """Return the number of a column among those of the model's one input, or the name of one of its inputs."""
        if name in self.inputs:
            return name
        columns = self.call.source.columns
        if columns is None and self.rows is not None:
            columns = [each for each in self.rows.columns if each not in self.call.no_inputs]
        if not isinstance(columns, list) or name not in columns:
            known = columns if isinstance(columns, list) else []
            raise InputError(
                f"{unknown_choice('column of the model', name, known)}; give it by number, or give columns"
            )
        return columns.index(name)

    def model(self, path: str) -> Predictor:
        return self.runner.model(os.path.relpath(path, self.call.place.document.path.parent), self.call.place)
