"""Failing inputs on disk: the smallest input on which two models differ, and counterexamples of relations."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve._files import new_file
from pytest_modelserve.artifacts import digest_of
from pytest_modelserve.errors import ArtifactError
from pytest_modelserve.evidence import Subject
from pytest_modelserve.metrics import (
    CalibratedTolerance,
    OutputComparison,
    OutputNames,
    Outputs,
    Tolerance,
    align_values,
    choose_outputs,
    compare_outputs,
    output_names,
    pair_outputs,
)
from pytest_modelserve.parity.diagnosis import Diagnosis
from pytest_modelserve.parity.recordings.exchange import Exchange
from pytest_modelserve.parity.recordings.npz import write_npz
from pytest_modelserve.parity.recordings.recording import outputs_key, request_key
from pytest_modelserve.parity.recordings.redaction import Redaction
from pytest_modelserve.serving.conversion import Frame
from pytest_modelserve.serving.inputs import Inputs, batch_size, checked_feed, slice_rows
from pytest_modelserve.serving.substitution import is_replacing

if TYPE_CHECKING:
    from pytest_modelserve.serving import Predictor

_FAILURES_VARIABLE = "MODELSERVE_FAILURES"
_FAILURES_FOLDER = Path(".modelserve", "failures")
# As long as a person waits for the reason of a failure; then the smallest input found so far is saved.
_TIME_LIMIT_S = 30.0
# One row of any model is far below it, and nobody needs a disk full of whole batches.
_MAX_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Criterion:
    """When two outputs agree: within the tolerances, given or `calibrated`, and whether NaN equals NaN.

    `by_value` compares other dtypes, and shapes that differ by axes of length 1; `aliases` are names of the candidate's
    outputs, mapped to the reference's. `outputs` are the names of the reference's that are compared, None for all.
    """

    rtol: Tolerance = 0.0
    atol: Tolerance = 0.0
    equal_nan: bool = True
    calibrated: tuple[CalibratedTolerance, ...] = ()
    by_value: bool = False
    aliases: Mapping[str, str] = field(default_factory=dict)
    outputs: OutputNames | None = None

    def chosen(self, reference: Outputs, model: object = "") -> Outputs:
        """Return those outputs of the reference that are compared; UsageError for an unknown name."""
        return choose_outputs(reference, self.outputs, aliases=self.aliases, model=model)

    def compare(self, candidate: Outputs, reference: Outputs) -> OutputComparison:
        """Return the comparison of the outputs of one call."""
        reference = self.chosen(reference)
        candidate = pair_outputs(candidate, reference, self.aliases)
        if self.outputs is not None:
            candidate = {name: array for name, array in candidate.items() if name in reference}
        if self.by_value:
            candidate, reference = align_values(candidate, reference)
        rtol, atol = self.tolerances(reference)
        return compare_outputs(candidate, reference, rtol=rtol, atol=atol, equal_nan=self.equal_nan)

    def tolerances(self, reference: Outputs) -> tuple[Tolerance, Tolerance]:
        """Return the relative and the absolute tolerances for outputs of the shapes of `reference`."""
        if not self.calibrated:
            return self.rtol, self.atol
        shapes = {each: reference[each.output].shape for each in self.calibrated if each.output in reference}
        return (
            {each.output: each.rtol(shape) for each, shape in shapes.items()},
            {each.output: each.atol(shape) for each, shape in shapes.items()},
        )

    def __str__(self) -> str:
        by_value = ", dtypes and axes of length 1 by value" if self.by_value else ""
        return f"rtol {self.rtol:g}, atol {self.atol:g}{'' if self.equal_nan else ', no NaN allowed'}{by_value}"


@dataclass(frozen=True, slots=True, eq=False)
class FailingBatch:
    """The batch on which two predictors differ most, and its worst row.

    `error` is a multiple of the tolerance, infinite for a difference in kind. `call` is the batch's number and
    `rows_before` the number of rows before it, both from 0; `rows_before` is None if batches have no rows.
    """

    batch: Inputs
    row: int
    error: float
    call: int
    rows_before: int | None

    @property
    def rows(self) -> int | None:
        """The number of rows of the batch, None if it has none."""
        return batch_size(self.batch)


def save_failing_input(
    candidate: Predictor, reference: Predictor, failing: FailingBatch, criterion: Criterion
) -> Diagnosis:
    """Save the fewest rows of `failing` on which the two differ, with the reference's outputs.

    That is the worst row if it fails alone, else the fewest neighboring rows that fail together, else the whole batch.
    The file is a recording named by its content, in the folder of MODELSERVE_FAILURES or in `.modelserve/failures`.
    Never raises: the gate already has a verdict, so an error is reported in the finding.
    """
    if is_replacing():
        return Diagnosis()
    try:
        reduced = _Reduction(candidate, reference, failing, criterion).smallest()
        exchange = Redaction.of().exchange(reduced.exchange)
        path = _save(exchange, reference)
        if criterion.calibrated:
            save_tolerances(_tolerance_file(path), *criterion.tolerances(reduced.exchange.outputs))
    except Exception as error:  # a disk's, a runtime's or our own: none of them changes the verdict
        return Diagnosis(f"could not save the failing input: {error}")
    details: dict[str, Any] = {"path": str(path)}
    if reduced.rows is not None:
        details["rows"] = list(reduced.rows)
    finding = f"smallest failing input ({reduced.description}) saved"
    if exchange.redacted:
        finding += f" in {path} without {', '.join(exchange.redacted)} (modelserve_redact): it cannot be replayed"
    elif candidate.artifact is None:
        finding += f" with the reference's outputs in {path}: read it with ms.open_recording"
    else:
        details["command"] = command = _replay_command(candidate, path, criterion)
        finding += f"; replay it with: {command}"
    return Diagnosis(finding, details={"failing_input": details})


def worst_row(part: OutputComparison, rows: int | None) -> tuple[int, float]:
    """Return the row with the largest error in a batch of `rows`, and that error; row 0 if it belongs to no row."""
    row, error = 0, 0.0
    for tensor in part.tensors:
        found = [(kind.first, inf) for kind in (tensor.nan, tensor.inf) if kind is not None]
        if tensor.beyond and tensor.worst is not None:
            found.append((tensor.worst, tensor.worst_multiple or 0.0))
        for place, multiple in found:
            if multiple > error:
                error = multiple
                row = place.index[0] if tensor.reference_shape[:1] == (rows,) else 0
    return row, inf if part.structural_problems else error


def smallest_failing_rows(rows: int, row: int, fails: Callable[[int, int], bool]) -> tuple[int, int] | None:
    """Return the smallest range `[start, stop)` of `rows` rows for which `fails(start, stop)` is true.

    `row` alone is tried first. If it does not fail alone (rows influence each other, or the batch size is fixed), ends
    of the whole are removed while the rest fails, larger ones first; no end of the result can be removed. This takes
    about 4 log2(rows) attempts. None if the whole does not fail.
    """
    if fails(row, row + 1):
        return row, row + 1
    if not fails(0, rows):
        return None
    start, stop = 0, rows
    size = rows // 2
    while size:
        if fails(start + size, stop):
            start += size
        elif fails(start, stop - size):
            stop -= size
        else:
            size //= 2
        size = min(size, (stop - start) // 2)
    return start, stop


@dataclass(frozen=True, slots=True, eq=False)
class _Reduced:
    """What is saved, and which rows of all batches it is."""

    exchange: Exchange
    description: str
    rows: tuple[int, int] | None


class _Reduction:
    """Runs parts of the failing batch through both models."""

    def __init__(self, candidate: Predictor, reference: Predictor, failing: FailingBatch, criterion: Criterion) -> None:
        self._candidate = candidate
        self._reference = reference
        self._failing = failing
        self._criterion = criterion
        self._deadline = time.perf_counter() + _TIME_LIMIT_S
        # A recording knows whole requests only: the outputs of some rows are a part of the outputs of all.
        is_recorded = reference.transport == "recorded"
        self._recorded = criterion.chosen(reference.predict(failing.batch)) if is_recorded else None

    def smallest(self) -> _Reduced:
        rows = self._failing.rows
        found = None if rows is None else smallest_failing_rows(rows, self._failing.row, self._fails)
        if found is None:
            batch = self._failing.batch
            outputs = (
                self._criterion.chosen(self._reference.predict(batch)) if self._recorded is None else self._recorded
            )
            again = "" if rows is None else ", which did not fail a second time"
            return _Reduced(Exchange(self._arrays(batch), outputs), f"batch {self._failing.call}{again}", None)
        start, stop = found
        before = self._failing.rows_before or 0
        first, last = before + start, before + stop - 1
        description = f"row {first}" if first == last else f"rows {first} to {last}"
        return _Reduced(
            Exchange(self._arrays(self._part(start, stop)), self._expected(start, stop)), description, (first, last + 1)
        )

    def _fails(self, start: int, stop: int) -> bool:
        is_part = stop - start != self._failing.rows
        if time.perf_counter() > self._deadline and is_part and stop - start != 1:
            return False  # what fails so far is small enough
        try:
            expected = self._expected(start, stop)
            outputs = pair_outputs(self._candidate.predict(self._part(start, stop)), expected, self._criterion.aliases)
            if self._recorded is not None and is_part and _shapes_differ(outputs, expected):
                return False  # an output whose first axis is not its rows, the keys of a map for example, was cut
            return not self._criterion.compare(outputs, expected).agrees
        except Exception:  # the model has a fixed batch size: not the failure that is reduced
            return False

    def _part(self, start: int, stop: int) -> Inputs:
        return slice_rows(self._failing.batch, stop - start, first=start)

    def _arrays(self, batch: Inputs) -> Inputs:
        """Return a frame as the arrays that the candidate takes, so that the saved input can be replayed."""
        signature = self._candidate.signature
        return checked_feed(batch, signature) if isinstance(batch, Frame) and signature is not None else batch

    def _expected(self, start: int, stop: int) -> Outputs:
        if self._recorded is None:
            return self._criterion.chosen(self._reference.predict(self._part(start, stop)))
        rows = self._failing.rows
        return {
            name: array[start:stop] if array.shape[:1] == (rows,) else array for name, array in self._recorded.items()
        }


def _shapes_differ(candidate: Outputs, reference: Outputs) -> bool:
    return any(name in candidate and candidate[name].shape != array.shape for name, array in reference.items())


def _save(exchange: Exchange, reference: Predictor) -> Path:
    inputs = list(exchange.inputs.values()) if isinstance(exchange.inputs, Mapping) else [exchange.inputs]
    size = sum(array.nbytes for array in (*inputs, *exchange.outputs.values()))
    if size > _MAX_BYTES:
        raise ArtifactError(f"nothing smaller than {size / 2**20:.0f} MiB fails")
    # Absolute, so that the replay command works in every folder.
    folder = git_ignored_folder(Path(os.environ.get(_FAILURES_VARIABLE) or _FAILURES_FOLDER).absolute())
    digest = digest_of((str(reference.subject), request_key(exchange.inputs), outputs_key(exchange.outputs)))
    path = folder / f"{digest[:16]}.npz"
    write_npz(path, [exchange], _recorded_model(reference))
    return path


def git_ignored_folder(folder: Path) -> Path:
    """Create `folder` with a `.gitignore` of all its files, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), open(folder / ".gitignore", "x", encoding="utf-8") as ignore:
        ignore.write("*\n")
    return folder


def _recorded_model(reference: Predictor) -> Subject:
    """Return the model that computed the outputs: for a recording, the one that was recorded."""
    if reference.transport != "recorded":
        return reference.subject
    variant = reference.subject.variant.removesuffix("recorded").removesuffix(", ")
    return replace(reference.subject, variant=variant)


def _tolerance_file(recording: Path) -> Path:
    return recording.with_name(f"{recording.stem}-tolerances.npz")


def save_tolerances(path: Path, rtol: Tolerance, atol: Tolerance) -> None:
    """Write the tolerances of each output to `path`."""
    assert isinstance(rtol, Mapping)
    assert isinstance(atol, Mapping)
    arrays = {f"{kind}:{name}": bound for kind, of in (("rtol", rtol), ("atol", atol)) for name, bound in of.items()}
    with new_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_tolerances(path: Path) -> tuple[Tolerance, Tolerance]:
    """Return the tolerances that `save_tolerances` wrote; ArtifactError for another file."""
    found: dict[str, dict[str, NDArray[np.float64]]] = {"rtol": {}, "atol": {}}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for member in archive.files:
                kind, _, name = member.partition(":")
                found[kind][name] = archive[member]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ArtifactError(f"{path} holds no tolerances of a failing input: {error}") from error
    return found["rtol"], found["atol"]


def _replay_command(candidate: Predictor, recording: Path, criterion: Criterion) -> str:
    assert candidate.artifact is not None
    words = ["python", "-m", "pytest_modelserve.parity.replay", str(candidate.artifact.path), str(recording)]
    interpreter = getattr(getattr(candidate, "process", None), "interpreter", None)
    words += [] if interpreter is None else ["--interpreter", interpreter]
    if criterion.calibrated:
        words += ["--tolerances", str(_tolerance_file(recording))]
    else:
        words += ["--rtol", f"{criterion.rtol!r}", "--atol", f"{criterion.atol!r}"]
    for name in output_names(criterion.outputs) or ():
        words += ["--output", name]
    return shlex.join(words if criterion.equal_nan else [*words, "--no-equal-nan"])
