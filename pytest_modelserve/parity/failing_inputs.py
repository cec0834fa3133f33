"""The smallest input on which two predictors were found not to agree: saved, and told with what replays it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.artifacts import digest_of
from pytest_modelserve.errors import ArtifactError
from pytest_modelserve.metrics import OutputComparison, Tolerance, compare_outputs, pair_outputs
from pytest_modelserve.metrics.elementwise import is_numpys_own
from pytest_modelserve.parity.recordings.exchange import Exchange, Outputs
from pytest_modelserve.parity.recordings.npz import write_npz
from pytest_modelserve.parity.recordings.recording import answer_key, request_key
from pytest_modelserve.serving.inputs import Inputs, batch_size, slice_rows

if TYPE_CHECKING:
    from pytest_modelserve.evidence import Subject
    from pytest_modelserve.metrics.tolerance import Feed
    from pytest_modelserve.serving import Predictor

# The fewest neighbouring rows that still fail together.


def smallest_failing_rows(rows: int, row: int, fails: Callable[[int, int], bool]) -> tuple[int, int] | None:
    """The first row and the one behind the last of the fewest neighbours among `rows` rows for which `fails` is true.

    `row` alone is tried first. Where it does not fail alone (rows influence each other, or the model takes one batch
    size only) ends of the whole are left out as long as the rest fails, the larger ones first: no end of what comes
    back can be left out. About 4 log2(rows) attempts. None where the whole does not fail.
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


FOLDER_VARIABLE = "MODELSERVE_FAILURES"
_FOLDER = Path(".modelserve", "failures")
# As long as a person waits for the reason of a failure; then the smallest input found so far is taken.
_TIME_LIMIT_S = 30.0
# One row of any model is far below it, and a disk that fills up with whole batches helps nobody.
_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Failing:
    """The batch on which two predictors differ most, the row of it where they do, and that error.

    `error` is a multiple of the tolerance, infinite where outputs differ in kind. `call` counts batches, and `before`
    the rows of those before this one, from 0; `before` is None where batches have no rows.
    """

    batch: Inputs
    row: int
    error: float
    call: int
    before: int | None

    @property
    def rows(self) -> int | None:
        """How many rows the batch has, None for none."""
        return batch_size(self.batch)


@dataclass(frozen=True, slots=True)
class FailingTold:
    """A sentence and the same as values."""

    finding: str = ""
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)


def worst_row(part: OutputComparison, rows: int | None) -> tuple[int, float]:
    """The row of a batch of `rows` with the largest error, and that error; row 0 where nothing tells the row."""
    row, error = 0, 0.0
    for tensor in part.tensors:
        found = [(kind.first, math.inf) for kind in (tensor.nan, tensor.inf) if kind is not None]
        if tensor.beyond and tensor.worst is not None:
            found.append((tensor.worst, tensor.worst_multiple or 0.0))
        for place, multiple in found:
            if multiple > error:
                error = multiple
                row = place.index[0] if tensor.reference_shape[:1] == (rows,) else 0
    return row, math.inf if part.structural_problems else error


def tell_failing(
    candidate: Predictor, reference: Predictor, failing: Failing, *, rtol: Tolerance, atol: Tolerance
) -> FailingTold:
    """Save the fewest rows of `failing.batch` on which the two differ, with the reference's answers, and say where.

    The row with the largest error alone, where that fails; else the fewest neighbours that fail together, searched for
    30 s at most; else the whole batch. The file is a recording, `<digest>.npz` in the folder that the environment
    variable MODELSERVE_FAILURES names, `.modelserve/failures` of the working directory without it; the same input has
    the same name. Raises nothing: what cannot be saved is told in the finding, because the gate that asks has a verdict
    to tell already.
    """
    try:
        reduced = _Reducing(candidate, reference, failing, rtol, atol).smallest()
        path = _saved(reduced.exchange, reference)
        return _told(candidate, reduced, path, rtol, atol)
    except Exception as error:  # a disk's, a runtime's or our own: none of them changes the verdict
        return FailingTold(f"could not save the failing input: {error}")


@dataclass(frozen=True, slots=True, eq=False)
class _Reduced:
    """What is saved, and in words which rows it is; `rows` are those of all batches."""

    exchange: Exchange
    words: str
    rows: tuple[int, int] | None


class _Reducing:
    """Runs parts of the failing batch through both sides."""

    def __init__(
        self, candidate: Predictor, reference: Predictor, failing: Failing, rtol: Tolerance, atol: Tolerance
    ) -> None:
        self.candidate = candidate
        self.reference = reference
        self.failing = failing
        self.tolerances = rtol, atol
        self.until = time.perf_counter() + _TIME_LIMIT_S
        # A recording knows whole requests only: the answer to some rows is a part of the answer to all.
        self.recorded = reference.predict(failing.batch) if reference.transport == "recorded" else None

    def smallest(self) -> _Reduced:
        rows = self.failing.rows
        found = None if rows is None else smallest_failing_rows(rows, self.failing.row, self.fails)
        if found is None:
            batch = self.failing.batch
            answers = self.reference.predict(batch) if self.recorded is None else self.recorded
            again = "" if rows is None else ", which did not fail a second time"
            return _Reduced(Exchange(batch, answers), f"batch {self.failing.call}{again}", None)
        start, stop = found
        before = self.failing.before or 0
        first, last = before + start, before + stop - 1
        words = f"row {first} alone" if first == last else f"rows {first} to {last} together"
        return _Reduced(Exchange(self.part(start, stop), self.answers(start, stop)), words, (first, last + 1))

    def fails(self, start: int, stop: int) -> bool:
        if time.perf_counter() > self.until and stop - start not in (1, self.failing.rows):
            return False  # what fails so far is small enough
        try:
            answers = self.answers(start, stop)
            found = pair_outputs(self.candidate.predict(self.part(start, stop)), answers)
            if self.recorded is not None and stop - start != self.failing.rows and _differ_in_shape(found, answers):
                return False  # an output whose first axis is not its rows, the keys of a map say, was cut
            rtol, atol = self.tolerances
            return not compare_outputs(found, answers, rtol=rtol, atol=atol).agrees
        except Exception:  # so few rows fit no fixed batch size: no failure of the kind that is looked for
            return False

    def part(self, start: int, stop: int) -> Inputs:
        return slice_rows(self.failing.batch, stop - start, first=start)

    def answers(self, start: int, stop: int) -> Outputs:
        if self.recorded is None:
            return self.reference.predict(self.part(start, stop))
        rows = self.failing.rows
        return {
            name: array[start:stop] if array.shape[:1] == (rows,) else array for name, array in self.recorded.items()
        }


def _differ_in_shape(candidate: Outputs, reference: Outputs) -> bool:
    return any(name in candidate and candidate[name].shape != array.shape for name, array in reference.items())


def _saved(exchange: Exchange, reference: Predictor) -> Path:
    given = list(exchange.inputs.values()) if isinstance(exchange.inputs, Mapping) else [exchange.inputs]
    size = sum(array.nbytes for array in (*given, *exchange.outputs.values()))
    if size > _MOST_BYTES:
        raise ArtifactError(f"nothing smaller than {size / 2**20:.0f} MiB fails")
    # Absolute, so that the command that is told works from every folder.
    folder = Path(os.environ.get(FOLDER_VARIABLE) or _FOLDER).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), open(folder / ".gitignore", "x", encoding="utf-8") as ignore:
        ignore.write("*\n")
    digest = digest_of((str(reference.subject), request_key(exchange.inputs), answer_key(exchange.outputs)))
    path = folder / f"{digest[:16]}.npz"
    write_npz(path, [exchange], _answered_by(reference))
    return path


def _answered_by(reference: Predictor) -> Subject:
    """The model whose answers these are: of a recording the one that was recorded."""
    if reference.transport != "recorded":
        return reference.subject
    variant = reference.subject.variant.removesuffix("recorded").removesuffix(", ")
    return replace(reference.subject, variant=variant)


def _told(candidate: Predictor, reduced: _Reduced, path: Path, rtol: Tolerance, atol: Tolerance) -> FailingTold:
    details: dict[str, Any] = {"path": str(path)}
    if reduced.rows is not None:
        details["rows"] = list(reduced.rows)
    saved = f"the smallest failing input, {reduced.words}, is saved"
    if candidate.artifact is None:
        told = (
            f"{saved} with the reference's answer in {path}, which ms.open_recording reads; the candidate has no file "
            "that a command could replay"
        )
    else:
        details["command"] = command = _command(candidate.artifact.path, path, rtol, atol)
        told = f"{saved}; replay it by: {command}"
    return FailingTold(told, {"failing_input": details})


def _command(candidate: Path, recording: Path, rtol: Tolerance, atol: Tolerance) -> str:
    words = ["python", "-m", "pytest_modelserve.parity.replay", str(candidate), str(recording)]
    for option, given in (("--rtol", rtol), ("--atol", atol)):
        told = [f"{name}={value!r}" for name, value in given.items()] if isinstance(given, Mapping) else [f"{given!r}"]
        words += [word for value in told for word in (option, value)]
    return shlex.join(words)


# Counterexamples on disk: inputs of any dtype in one .npz, without pickles.


FOLDER = Path(".modelserve", "counterexamples")
"""Beside the store's default place, in the working directory."""


def save_inputs(inputs: Mapping[str, NDArray[Any]], folder: Path, *, about: tuple[str, ...]) -> Path:
    """The file that now holds `inputs`, written in one step.

    It is called after `about` and after the test that runs, so that the same failure replaces its file: a search under
    hypothesis fails many times before it ends. OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n", encoding="utf-8")
    words = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(about)).strip("-").lower()[:60]
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    path = folder / f"{words}-{hashlib.sha256('|'.join((*about, test)).encode()).hexdigest()[:8]}.npz"
    described = json.dumps([{"name": name, "dtype": array.dtype.name} for name, array in inputs.items()])
    arrays = {f"input_{index}": _stored(array) for index, array in enumerate(inputs.values())}
    draft = path.with_suffix(f".{os.getpid()}.tmp.npz")
    try:
        np.savez_compressed(draft, allow_pickle=False, described=np.array(described), **arrays)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def saved(path: str | os.PathLike[str]) -> Feed:
    """The inputs of a counterexample, by name, as they were saved: for `@example` and for asking once more.

    Raises ArtifactError for a file that cannot be read or that this package did not write.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            described = json.loads(str(file["described"]))
            return {
                entry["name"]: _restored(file[f"input_{index}"], entry["dtype"])
                for index, entry in enumerate(described)
            }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is no saved counterexample: {error}") from error


def _stored(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind in "OT":
        return array.astype(str)
    return array if is_numpys_own(array.dtype) else array.view(f"u{array.dtype.itemsize}")


def _restored(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.name == dtype:
        return array
    import ml_dtypes

    return array.view(getattr(ml_dtypes, dtype))
