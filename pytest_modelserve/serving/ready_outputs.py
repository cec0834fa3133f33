"""Ready outputs in place of a model: arrays in memory, or columns of a file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import ArtifactError, InputError, UsageError, require
from pytest_modelserve.evidence import Subject
from pytest_modelserve.serving.conversion import Frame, as_array, is_frame
from pytest_modelserve.serving.inputs import Inputs, count_rows
from pytest_modelserve.serving.predictor import Predictor

FILE_SUFFIXES = (".npy", ".npz", ".csv", ".parquet")
_NUMBERED = re.compile(r"(.+?)[_.]?(\d+)")


class ReadyOutputs(Predictor):
    """Outputs that were computed elsewhere, one row for each row of the data.

    Its input is an array of row numbers: `predict(np.array([0, 2]))` returns rows 0 and 2. Gates that take ready
    outputs call it so.

    Raises:
        InputError: The outputs have no rows, or different numbers of them.
        ArtifactError: The file cannot be read.
    """

    transport = "recorded"

    def __init__(self, outputs: object, *, name: str | None = None, variant: str | None = None) -> None:
        if isinstance(outputs, (str, os.PathLike)):
            path = Path(outputs)
            found = read_outputs(path)
            default = path.name
        else:
            found = _named(outputs)
            default = "ready outputs"
        super().__init__(Subject(default if name is None else name, variant or ""))
        self.n = count_rows(found)
        self.outputs = found

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the outputs of the rows whose numbers are `inputs`; InputError for anything else."""
        if self.closed:
            raise self._closed_error()
        if not isinstance(inputs, np.ndarray) or inputs.ndim != 1 or inputs.dtype.kind not in "iu":
            raise InputError(f"{self.subject} holds ready outputs: its input is an array of row numbers")
        return {name: array[inputs] for name, array in self.outputs.items()}

    def describe(self) -> str:
        """Return one line: the subject and the number of rows."""
        return f"{self.subject}, ready outputs of {self.n:,} rows"


class RowPredictor(Predictor):
    """A model over the rows of `inputs`: its input is an array of row numbers, as that of ReadyOutputs."""

    def __init__(self, model: Predictor, inputs: Inputs) -> None:
        super().__init__(model.subject)
        self.transport, self.aliases = model.transport, model.aliases
        self._model, self._inputs = model, inputs

    def predict(self, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Return the model's outputs of the rows whose numbers are `inputs`."""
        assert isinstance(inputs, np.ndarray)
        if isinstance(self._inputs, Frame):
            return self._model.predict(self._inputs.take(inputs))
        if isinstance(self._inputs, Mapping):
            return self._model.predict({name: array[inputs] for name, array in self._inputs.items()})
        return self._model.predict(self._inputs[inputs])

    def describe(self) -> str:
        """Return the model's line."""
        return self._model.describe()


def is_ready(target: object) -> bool:
    """Return True for arrays, tensors, frames, lists, mappings of them, and paths of files with outputs."""
    if isinstance(target, (str, os.PathLike)):
        return Path(target).suffix.lower() in FILE_SUFFIXES
    if isinstance(target, (np.ndarray, Mapping, list)) or is_frame(target):
        return True
    library = type(target).__module__.partition(".")[0]
    return library in ("torch", "pandas", "polars") and (hasattr(target, "detach") or hasattr(target, "to_numpy"))


def _named(outputs: object) -> dict[str, NDArray[Any]]:
    if is_frame(outputs):
        return _columns(Frame(outputs))
    if isinstance(outputs, Mapping):
        return {name: as_array(f"output {name!r}", value) for name, value in outputs.items()}
    return {"output": as_array("the ready outputs", outputs)}


def read_outputs(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays or columns of a file by name; ArtifactError for a file that cannot be read."""
    found = read_columns(path, what="the file of outputs")
    return _columns(found) if isinstance(found, Frame) else dict(found)


def read_columns(path: Path, *, what: str) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of a .npy or .npz file by name, or the columns of a .csv or .parquet file as a Frame.

    The array of a .npy file is called "output". Raises ArtifactError for a file that cannot be read; `what` begins its
    message.
    """
    if not path.is_file():
        raise ArtifactError(f"{what} {path} does not exist")
    kind = path.suffix.lower()
    try:
        if kind == ".npy":
            return {"output": np.load(path, allow_pickle=False)}
        if kind == ".npz":
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        polars = require("polars", f"reading {path.name}", extra="data")
        return Frame(_without_index(polars.read_csv(path)) if kind == ".csv" else polars.read_parquet(path))
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise ArtifactError(f"{what} {path} cannot be read: {error}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "polars":
            raise
        raise ArtifactError(f"{what} {path} cannot be read: {error}") from error


def _without_index(table: Any) -> Any:
    """Return a Polars frame without the row numbers that pandas writes as a first column without a name."""
    first = table.columns[0] if table.columns else None
    numbers = first == "" and len(table.columns) > 1 and table[first].to_list() == list(range(len(table)))
    return table[:, 1:] if numbers else table


def check_same_order(served: Sequence[Predictor]) -> None:
    """Raise InputError if ready outputs with ids hold the same ids in another order: they are compared row by row."""
    ready = [each.outputs for each in served if isinstance(each, ReadyOutputs) and len(each.outputs) > 1]
    for other in ready[1:]:
        shared = [name for name in ready[0] if name in other and _are_same_ids(ready[0][name], other[name])]
        if shared and not any(np.array_equal(ready[0][name], other[name]) for name in shared):
            ours, theirs = ready[0][shared[0]], other[shared[0]]
            row = int(np.flatnonzero(ours != theirs)[0])
            raise InputError(
                f"the ready outputs have the same rows in another order: column {shared[0]!r} is {ours[row]!r} and "
                f"{theirs[row]!r} in row {row}; sort both by {shared[0]!r}, and the labels with them"
            )


def _are_same_ids(ours: NDArray[Any], theirs: NDArray[Any]) -> bool:
    """Return whether two columns hold the same values, each once."""
    if ours.ndim != 1 or ours.dtype.kind not in "iuO" or ours.shape != theirs.shape:
        return False
    ids = set(ours.tolist())
    return len(ids) == len(ours) and ids == set(theirs.tolist())


def _columns(frame: Frame) -> dict[str, NDArray[Any]]:
    """Return the columns; those numbered from 0 (`score_0`, `score_1`) as one output (rows, columns)."""
    groups: dict[str, dict[int, str]] = {}
    for column in frame:
        found = _NUMBERED.fullmatch(column)
        if found:
            groups.setdefault(found[1], {})[int(found[2])] = column
    joined = {name: parts for name, parts in groups.items() if len(parts) > 1 and set(parts) == set(range(len(parts)))}
    used = {column for parts in joined.values() for column in parts.values()}
    outputs = {column: frame[column] for column in frame if column not in used}
    for name, parts in joined.items():
        if name in outputs:
            raise UsageError(f"columns {name!r} and {parts[0]!r} cannot both be output {name!r}: rename one")
        outputs[name] = np.stack([frame[parts[index]] for index in range(len(parts))], axis=1)
    return outputs
