"""Rows with labels of a privacy gate: read from what a user holds, and checked for copies and for a shift."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics import class_labels
from pytest_modelserve.serving.conversion import Frame, as_array, is_frame
from pytest_modelserve.serving.inputs import Inputs, as_batch, count_rows, is_one_batch
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.ready_outputs import FILE_SUFFIXES, read_columns
from pytest_modelserve.stats.two_sample_tests import feature_blocks, held_out_scores, permutation_p_value
from pytest_modelserve.training.train import ModelSource
from pytest_modelserve.training.train_spec import TrainSpec

if TYPE_CHECKING:
    from pytest_modelserve.artifacts import Signature

_LISTED = 5
_SHIFT_ROWS, _SHIFT_COLUMNS, _SHIFT_CLASSES = 2_000, 4_096, 50
"""Of larger data the classifier that looks for a shift gets a random sample of rows and columns."""
_SHIFT_PERMUTATIONS, _SHIFT_LEVEL = 1_999, 0.001
_FEWEST_ROWS = 20


@dataclass(frozen=True, slots=True, eq=False)
class LabeledRows:
    """Inputs of a model and the class labels (n,) of the rows."""

    inputs: Inputs
    labels: NDArray[Any]

    @classmethod
    def of(cls, given: Any, label_column: str | None, what: str) -> LabeledRows:
        """Return the rows of a pair (inputs, labels), of a mapping, frame or file with a column of labels, or of a
        DataLoader; `what` is the argument's name. UsageError for missing labels, InputError for what does not fit."""
        pair = isinstance(given, (tuple, list)) and len(given) == 2 and all(map(is_one_batch, given))
        if label_column is None and not pair and (isinstance(given, (str, os.PathLike)) or is_one_batch(given)):
            raise UsageError(
                f"label_column is missing: name the column of {what} that holds the labels, or pass "
                f"{what}=(inputs, labels)"
            )
        if pair and label_column is not None:
            raise UsageError(f"label_column is for {what} with a column of labels; got a pair of inputs and labels")
        try:
            inputs, labels = labeled_rows(*given) if pair else labeled_rows(_read(given, what), label_column)
            batch = as_batch(inputs)
            n = count_rows(batch)
        except InputError as error:
            raise InputError(f"{what}: {error}") from error
        if len(labels) != n:
            raise InputError(f"{what} have {n} rows and {len(labels)} labels: pass one label for each row")
        return cls(batch, class_labels(labels, what=f"labels of {what}"))

    @property
    def n(self) -> int:
        """The number of rows."""
        return len(self.labels)

    def feed(self, signature: Signature | None) -> Inputs:
        """Return the inputs as a model takes them.

        Of named arrays and columns those of its inputs; else, for a model of one input, the one array, or all columns
        of numbers side by side. Numbers are rounded to floats of the model's dtype.
        """
        if not isinstance(self.inputs, Mapping):
            return self.inputs
        columns: Mapping[str, NDArray[Any]] = self.inputs
        specs = () if signature is None else signature.inputs
        if specs and all(spec.name in columns for spec in specs):
            return {spec.name: _as_column(_rounded(columns[spec.name], spec.dtype), spec.shape) for spec in specs}
        if len(specs) > 1 or (not specs and len(columns) > 1):
            return self.inputs
        numbers = [columns[name] for name in columns if columns[name].dtype.kind in "biuf" or len(columns) == 1]
        if not numbers or (len(numbers) > 1 and any(column.ndim > 1 for column in numbers)):
            return self.inputs
        whole = np.stack(numbers, axis=1) if len(numbers) > 1 else numbers[0]
        return _rounded(whole, specs[0].dtype) if specs else whole

    def in_order_of(self, others: LabeledRows) -> LabeledRows:
        """Return the rows with their columns in the order of `others`, which has the same: a model may take them all
        side by side."""
        if not isinstance(self.inputs, Mapping) or not isinstance(others.inputs, Mapping):
            return self
        names = list(others.inputs)
        if isinstance(self.inputs, Frame):
            return LabeledRows(Frame(self.inputs.native[names]), self.labels)
        return LabeledRows({name: self.inputs[name] for name in names}, self.labels)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the inputs by name, and the labels as the last column."""
        inputs = dict(self.inputs) if isinstance(self.inputs, Mapping) else {"inputs": self.inputs}
        return {**inputs, "labels": self.labels}


def _as_column(values: NDArray[Any], shape: Sequence[Any] | None) -> NDArray[Any]:
    """Return a column of a table as an input of one column, as converters of scikit-learn write it."""
    return values[:, np.newaxis] if values.ndim == 1 and shape is not None and len(shape) == 2 else values


def _rounded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    return values.astype(dtype) if dtype.startswith("float") and values.dtype.kind in "fiub" else values


def _read(given: Any, what: str) -> Any:
    if not isinstance(given, (str, os.PathLike)):
        return given
    path = Path(given)
    if path.suffix.lower() not in FILE_SUFFIXES:
        raise UsageError(f"{what}: {unknown_choice('kind of file', path.suffix, FILE_SUFFIXES)}")
    columns = read_columns(path, what=what)
    return columns.native if isinstance(columns, Frame) else columns


def label_name(source: ModelSource, label_column: str | None) -> str:
    """Return the name of the labels in the data of a source; UsageError if it is not known."""
    name = label_column
    if name is None and isinstance(source.fit, TrainSpec) and isinstance(source.fit.labels, str):
        name = source.fit.labels
    if name is None:
        names = ", ".join(map(repr, source.data))
        raise UsageError(f"label_column is missing: which of the data of source {source.name!r} ({names}) are labels?")
    if name not in source.data:
        raise UsageError(f"label_column: {unknown_choice('name in the data of the source', name, source.data)}")
    return name


def source_data(source: ModelSource, given: Any, what: str) -> dict[str, NDArray[Any]]:
    """Return rows as arrays by the names of the data of a source, in their dtypes.

    `given` is a mapping or frame with these names, the path of such a file, or a pair of inputs and labels for a
    TrainSpec with one input. InputError for anything else.
    """
    names = list(source.data)
    if isinstance(given, (tuple, list)) and len(given) == 2 and isinstance(source.fit, TrainSpec):
        pair = (*source.fit.input_names, *source.fit.label_names)
        if len(pair) == 2:
            given = dict(zip(pair, given, strict=True))
    given = _read(given, what)
    if is_frame(given):
        given = Frame(given)
    if not isinstance(given, Mapping) or (missing := [name for name in names if name not in given]):
        got = f"it lacks {missing[0]!r}" if isinstance(given, Mapping) else f"got {type(given).__name__}"
        raise InputError(
            f"{what} must hold the data of source {source.name!r} by name ({', '.join(map(repr, names))}), because "
            f"shadow models are trained on them: {got}"
        )
    data = {name: as_array(f"{what}: {name!r}", given[name]) for name in names}
    try:
        count_rows(data)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    for name, array in data.items():
        of_source = source.data[name]
        if array.shape[1:] != of_source.shape[1:]:
            raise InputError(
                f"{what}: {name!r} has rows of shape {array.shape[1:]}, and the source {of_source.shape[1:]}"
            )
        if len(of_source) != len(source.data[names[0]]):
            raise UsageError(
                f"data of source {source.name!r}: {name!r} has {len(of_source)} rows and {names[0]!r} has "
                f"{len(source.data[names[0]])}: shadow models are trained on some of the rows, so bind what is not a "
                "row to the functions with functools.partial"
            )
        data[name] = _of_dtype(array, of_source.dtype, f"{what}: {name!r}")
    return data


def _of_dtype(values: NDArray[Any], dtype: np.dtype[Any], what: str) -> NDArray[Any]:
    """Return numbers in the dtype of the source; InputError for text, and for numbers that integers do not hold."""
    kinds = values.dtype.kind + dtype.kind
    if kinds in ("UU", "OU", "TU"):
        return values.astype(str)  # of its own length, which a dtype of the source's would cut
    with np.errstate(invalid="ignore"):
        converted = values.astype(dtype, copy=False) if set(kinds) <= set("biuf") or kinds in ("OO", "TT") else None
    if converted is None or (dtype.kind in "biu" and not np.array_equal(converted, values)):
        raise InputError(
            f"{what} has dtype {values.dtype}, and the source {dtype}, which does not hold all of its values: convert "
            "both in the same way"
        )
    return converted


def module_inputs(source: ModelSource, data: Mapping[str, NDArray[Any]], labels: str) -> Inputs:
    """Return the arrays of `data` that the module of a source takes: one, or several by the names of its parameters."""
    if isinstance(source.fit, TrainSpec):
        given = source.fit.inputs
        if isinstance(given, str):
            return data[given]
        if isinstance(given, Mapping):
            return {parameter: data[name] for parameter, name in given.items()}
        if len(given) == 1:
            return data[given[0]]
        raise UsageError(
            f"inputs of the TrainSpec of {source.name!r} are given by position: give them by the names of forward's "
            "parameters, such as inputs={'image': 'x', 'age': 'a'}"
        )
    inputs = {name: array for name, array in data.items() if name != labels}
    if not inputs:
        raise UsageError(f"data of source {source.name!r} have no inputs beside the labels {labels!r}")
    return next(iter(inputs.values())) if len(inputs) == 1 else inputs


def row_numbers(*parts: Mapping[str, NDArray[Any]]) -> list[NDArray[np.intp]]:
    """Return a number for each row of several data sets with the same columns; equal rows have equal numbers.

    Floats are compared in the shortest dtype that a data set has them in.
    """
    coded = []
    for name in parts[0]:
        columns = [np.asarray(part[name]) for part in parts]
        if all(column.dtype.kind == "f" for column in columns):
            shortest = min((column.dtype for column in columns), key=lambda dtype: dtype.itemsize)
            columns = [column.astype(shortest) + 0.0 for column in columns]  # of -0.0 and 0.0 one
        whole = np.concatenate(columns)
        if whole.dtype.kind in "OTU":
            whole = np.unique(whole.astype(str), return_inverse=True)[1]
        flat = np.ascontiguousarray(whole.reshape(len(whole), -1))
        coded.append(flat.view(np.uint8).reshape(len(flat), -1))
    bytes_ = np.ascontiguousarray(np.hstack(coded))
    numbers = np.unique(bytes_.view(np.dtype((np.void, bytes_.shape[1])))[:, 0], return_inverse=True)[1].reshape(-1)
    ends = np.cumsum([len(next(iter(part.values()))) for part in parts])[:-1]
    return list(np.split(numbers, ends))


def check_no_copies(members: Mapping[str, NDArray[Any]], non_members: Mapping[str, NDArray[Any]]) -> None:
    """Raise InputError for non-members that are rows of the training: equal in every column."""
    ours, others = row_numbers(members, non_members)
    copies = np.flatnonzero(np.isin(others, ours))
    if not copies.size:
        return
    first = [(int(row), int(np.flatnonzero(ours == others[row])[0])) for row in copies[:_LISTED]]
    listed = ", ".join(f"{row} equals member {member}" for row, member in first)
    raise InputError(
        f"non_members holds {copies.size} of {len(others)} rows that are members, too ({listed}"
        f"{', …' if copies.size > _LISTED else ''}): remove them, or pass rows that the training has not seen"
    )


def check_no_shift(
    members: Mapping[str, NDArray[Any]], non_members: Mapping[str, NDArray[Any]], labels: str, *, seed: int
) -> None:
    """Raise InputError if a classifier tells members from non-members by the data alone.

    A kernel discriminant of numbers and classes, by permutation at 0.001; text is not compared. Blind baselines reach
    high true positive rates on such data: Das, Zhang and Tramèr (2024), arXiv:2406.16201.
    """
    rng = np.random.default_rng([seed, 7])
    chosen = []
    for part in (members, non_members):
        n = len(part[labels])
        chosen.append(np.sort(rng.choice(n, min(n, _SHIFT_ROWS), replace=False)))
    if min(map(len, chosen)) < _FEWEST_ROWS:
        return
    blocks: list[NDArray[np.float64]] = []
    for name in members:
        both = [np.asarray(part[name])[rows] for part, rows in zip((members, non_members), chosen, strict=True)]
        blocks += _features(np.concatenate(both), is_label=name == labels, rng=rng)
    if not blocks:
        return
    rows = np.hstack(blocks)
    current = np.arange(len(rows)) >= len(chosen[0])
    features = feature_blocks(rows, rng=rng)
    p_value = permutation_p_value(features, current, most=_SHIFT_PERMUTATIONS, rng=rng)
    if p_value > _SHIFT_LEVEL:
        return
    distance = held_out_scores(features, current, rng=rng).distance
    raise InputError(
        "members and non_members come from different distributions: a classifier that never sees the model tells them "
        f"apart (Kolmogorov-Smirnov distance {distance:.2f} of held-out scores, p = {p_value:.2g}), so the gate would "
        "measure that shift: take both from one random split of the same rows, before the training"
    )


def _features(values: NDArray[Any], *, is_label: bool, rng: np.random.Generator) -> Sequence[NDArray[np.float64]]:
    """Return standardized numbers (n, columns), a column for each class of labels, and nothing for text."""
    if is_label:
        classes, codes = np.unique(values.astype(str), return_inverse=True)
        if not 1 < len(classes) <= _SHIFT_CLASSES:
            return []
        return [np.eye(len(classes))[codes.reshape(-1)] - 1 / len(classes)]
    if values.dtype.kind not in "fiub":
        return []
    flat = values.reshape(len(values), -1)
    if flat.shape[1] > _SHIFT_COLUMNS:
        flat = flat[:, np.sort(rng.choice(flat.shape[1], _SHIFT_COLUMNS, replace=False))]
    numbers = flat.astype(np.float64)
    missing = ~np.isfinite(numbers)
    numbers[missing] = 0.0
    scales = numbers.std(axis=0)
    standard = (numbers - numbers.mean(axis=0)) / np.where(scales > 0, scales, 1.0)
    return [standard, missing[:, missing.any(axis=0)].astype(np.float64)]
