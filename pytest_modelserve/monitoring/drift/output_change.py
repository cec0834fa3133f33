"""The effect of drift on a model's outputs: columns of the data are moved back to the profile's distribution."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Interval, Unit, check_error_rates
from pytest_modelserve.evidence.failure_text import format_in_words, format_interval, printable
from pytest_modelserve.metrics import Output, decode
from pytest_modelserve.monitoring.column_profile import CategoricalColumn
from pytest_modelserve.monitoring.columns import Column
from pytest_modelserve.monitoring.decision import Blocks
from pytest_modelserve.monitoring.drift.column_tests import compare_column
from pytest_modelserve.monitoring.profile import ReferenceProfile, array_names, as_profile
from pytest_modelserve.monitoring.readers import Data, is_lazy, read_table
from pytest_modelserve.monitoring.schema import choose_columns, match_columns
from pytest_modelserve.monitoring.sketch import spread
from pytest_modelserve.monitoring.window import RowsColumn
from pytest_modelserve.serving.conversion import Frame
from pytest_modelserve.serving.inputs import as_batch, count_rows, select_output
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.stats import mean_bounds
from pytest_modelserve.stats.intervals import check_count

if TYPE_CHECKING:
    from pytest_modelserve.serving import Predictor, Servable

_DRAWS = 8
"""Samples of unchanged data that measure what chance alone changes."""
_CHANCE_LOW, _CHANCE_HIGH = 4.0, 2.0
"""Standard deviations by which the allowance of each end for chance is above its mean: simulated for 1 % and 5 %."""
_SHOWN = 12
_TOLD = 3
_MOVED = 0.05
"""Distance from which on a column without effect is named."""

Values = NDArray[Any]
Floats = NDArray[np.float64]


def output_drift(
    predictor: Servable,
    data: Data,
    profile: ReferenceProfile | str | os.PathLike[str],
    *,
    output: Output | str | None = None,
    columns: Collection[str] | None = None,
    exclude: Collection[str] = (),
    max_rows: int = 2000,
    confidence: float = 0.95,
    alpha: float = 0.01,
    seed: int = 0,
) -> OutputDrift:
    """Return how much the drifted columns of data change a model's outputs, column by column and together.

    Each column is moved back to the distribution of the profile's kept rows by the optimal coupling of both
    distributions. A number becomes the number of the same rank there, and as few rows as possible change category. The
    change of a row is the difference of its outputs: of labels 0 or 1, of numbers the largest absolute difference. A
    column that drifted without an effect on the model changes nothing.

    The interval is that of the mean change of a row (Student's t and Hall), with an allowance for chance on both
    sides. The allowance is the change if a column is replaced by a sample of itself, of the effective size of both
    samples. Only single columns are moved back: the effect of a changed correlation is not measured.

    Args:
        predictor: The model: whatever `ms.serve` takes, but not ready outputs.
        data: The model's inputs in memory: an array, a mapping of columns, or a pandas or Polars frame.
        profile: The profile of the training data, made with `sketch_rows=` (2,000, for example), or its path.
        output: The output to read, by name or as `ms.Output`; with `decode=` its labels are compared.
        columns: Names of the columns to move back. By default all.
        exclude: Names of columns to leave as they are.
        max_rows: The number of rows that are predicted, spread evenly over the data.
        confidence: The level of the high end of the intervals.
        alpha: The error rate of their low end.
        seed: The seed of the samples.

    Returns:
        The changes, largest first. `print` shows a table.

    Raises:
        UsageError: For a profile without kept rows, and data that are not in memory.
        InputError: For data without any column of the profile, and outputs that are NaN.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rng = np.random.default_rng(0)
        >>> profile = ms.reference_profile(rng.normal(size=(5000, 2)), sketch_rows=2000)
        >>> moved = rng.normal(size=(3000, 2)) + 1
        >>> drift = ms.output_drift(lambda x: x[:, 0], moved, profile)
        >>> [(each.name, round(each.change, 1)) for each in drift.columns]
        [('column_0', 1.0), ('column_1', 0.0)]
    """
    check_error_rates(confidence=confidence, alpha=alpha)
    check_count("max_rows", max_rows, minimum=1)
    check_count("seed", seed)
    profile = choose_columns(as_profile(profile, data), columns, exclude)
    if profile.sketch is None:
        raise UsageError(
            f"the profile {profile.name!r} has no rows: make it with reference_profile(..., sketch_rows=2000)"
        )
    if isinstance(data, (str, os.PathLike, ReferenceProfile)) or is_lazy(data):
        raise UsageError("data must be the model's inputs in memory: an array, a mapping of columns, or a frame")
    inputs = _spread_rows(as_batch(data), max_rows)
    native = inputs.native if isinstance(inputs, Frame) else inputs
    table = read_table(native, names=array_names(profile), options=profile.reading, kinds=profile.kinds)
    kept = dict(zip(profile.names, profile.sketch.values().T, strict=True))
    words = dict(zip(profile.names, profile.sketch.vocabularies, strict=True))
    swaps, distances = {}, {}
    for column, reference in match_columns(table, profile).pairs:
        hashed = isinstance(reference, CategoricalColumn) and reference.hashed
        if not hashed and column.kind not in ("datetime", None) and not np.isnan(kept[column.name]).all():
            swaps[column.name] = _Swap.of(column, kept[column.name], words[column.name])
            distances[column.name] = compare_column(RowsColumn(column), reference, Blocks()).distance
    if not swaps:
        raise InputError(f"data has no column that can be moved back to the profile {profile.name!r}")
    rng = np.random.default_rng(seed)
    with open_models(predictor, inputs=native) as (_, (model,)):
        changes = _Changes(model, Output.of(output), inputs, tuple(column.name for column in table.columns))
        found = [
            changes.of(name, {name: swap}, distances[name], rng, confidence=confidence, alpha=alpha)
            for name, swap in swaps.items()
        ]
        largest = max(distances.values())
        together = changes.of("all columns", swaps, largest, rng, confidence=confidence, alpha=alpha)
    found.sort(key=lambda change: -change.change)
    left_out = tuple(column.name for column in table.columns if column.name not in swaps)
    return OutputDrift(tuple(found), together, changes.unit, table.rows, left_out)


@dataclass(frozen=True, slots=True)
class OutputChange:
    """What moving one column back, or all, changes: the mean change of a row, with its interval.

    `distance` is the largest difference of the column's distribution functions, as in the drift gate.
    """

    name: str
    distance: float
    change: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class OutputDrift:
    """The result of `output_drift`: the `columns`, the largest change first, and all of them `together`.

    `left_out` are columns that cannot be moved back: times, texts of many categories, and columns without values.
    """

    columns: tuple[OutputChange, ...]
    together: OutputChange
    unit: Unit
    rows: int
    left_out: tuple[str, ...]

    def describe(self) -> tuple[str, ...]:
        """Return a sentence on each of the columns that change the outputs most, and one on the others."""
        acting = [each for each in self.columns if each.change > 0]
        lines = [
            f"{each.name!r}, at distance {each.distance:.3f}, changes the outputs by "
            f"{format_in_words(each.change, self.unit)} {format_interval(each.interval, self.unit)}"
            for each in acting[:_TOLD]
        ]
        idle = [each for each in self.columns if each.change == 0 and each.distance > _MOVED]
        if idle:
            names = ", ".join(f"{each.name!r} ({each.distance:.3f})" for each in idle[:_SHOWN])
            lines.append(f"moved, and changes no output: {names}")
        return tuple(lines)

    def __str__(self) -> str:
        """Return a table of the changes."""
        what = "labels that change" if self.unit == "proportion" else "mean change of the outputs"
        lines = [f"{what}, if columns have the profile's distribution ({self.rows:,} rows)", ""]
        lines.append(f"  {'distance':>8}  {'change':>10}  {'interval':<22}  column")
        for each in (self.together, *self.columns[:_SHOWN]):
            change, interval = format_in_words(each.change, self.unit), format_interval(each.interval, self.unit)
            lines.append(f"  {each.distance:>8.3f}  {change:>10}  {interval:<22}  {printable(each.name)}")
        if len(self.columns) > _SHOWN:
            lines.append(f"  and {len(self.columns) - _SHOWN} more columns with smaller changes")
        if self.left_out:
            lines.append(f"  left as they are: {', '.join(map(printable, self.left_out[:_SHOWN]))}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, eq=False)
class _Swap:
    """A column (n,) as numbers with NaN as null, and the profile's kept values of it, (m,).

    Of categories the numbers are places in `words`.
    """

    current: Floats
    reference: Floats
    words: tuple[str, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, column: Column, kept: Floats, words: tuple[str, ...]) -> _Swap:
        """Return the swap of a column of the data."""
        if column.kind != "category":
            return cls(column.values.astype(np.float64), kept, (), column.values.dtype)
        every = tuple(dict.fromkeys((*words, *(word for word in column.values.tolist() if word is not None))))
        places: dict[Any, float] = {word: float(place) for place, word in enumerate(every)} | {None: math.nan}
        current = np.array([places[word] for word in column.values.tolist()])
        return cls(current, kept, every, column.values.dtype)

    def moved_back(self, rng: np.random.Generator) -> Values:
        """Return the column with the distribution of the kept values, in the type of the data."""
        return self._typed(self._coupled(self.reference, rng))

    def resampled(self, rng: np.random.Generator) -> Values:
        """Return the column with the distribution of a sample of itself, of as many rows as both samples are worth."""
        n, m = self.current.size, self.reference.size
        return self._typed(self._coupled(rng.choice(self.current, max(n * m // (n + m), 1)), rng))

    def _coupled(self, target: Floats, rng: np.random.Generator) -> Floats:
        if self.words:
            return self._coupled_categories(target, rng)
        order = np.lexsort((rng.random(self.current.size), self.current))  # equal values in a random order, NaN last
        found = np.empty(self.current.size)
        found[order] = np.sort(target)[((np.arange(found.size) + 0.5) * target.size / found.size).astype(np.int64)]
        return found

    def _coupled_categories(self, target: Floats, rng: np.random.Generator) -> Floats:
        """Move as few rows as possible, chosen at random, to the categories that have too few."""
        size = len(self.words) + 1  # the last is null
        now, then = (np.where(np.isnan(values), size - 1, values).astype(np.int64) for values in (self.current, target))
        wanted = np.sort(then)[((np.arange(now.size) + 0.5) * then.size / now.size).astype(np.int64)]
        excess = np.bincount(now, minlength=size) - np.bincount(wanted, minlength=size)
        movable = [
            rng.permutation(np.flatnonzero(now == place))[: excess[place]] for place in np.flatnonzero(excess > 0)
        ]
        if movable:
            now[rng.permutation(np.concatenate(movable))] = np.repeat(np.arange(size), np.maximum(-excess, 0))
        return np.where(now == size - 1, np.nan, now)

    def _typed(self, values: Floats) -> Values:
        if self.words:
            words = np.array([*self.words, None], dtype=object)
            return np.asarray(words[np.where(np.isnan(values), len(self.words), values).astype(np.int64)])
        has_null = bool(np.isnan(values).any()) and self.dtype.kind != "f"
        return values if has_null or self.dtype.kind == "O" else values.astype(self.dtype)


class _Changes:
    """The outputs of a model for the data as they are, and for the data with some columns moved back."""

    def __init__(self, model: Predictor, output: Output, inputs: Any, names: tuple[str, ...]) -> None:
        self.model, self.output, self.inputs, self.names = model, output, inputs, names
        self.outputs = self._predict(inputs)
        self.are_labels = output.decode is not None or self.outputs.dtype.kind not in "f"
        self.unit: Unit = "proportion" if self.are_labels else ""

    def of(
        self,
        name: str,
        swaps: Mapping[str, _Swap],
        distance: float,
        rng: np.random.Generator,
        *,
        confidence: float,
        alpha: float,
    ) -> OutputChange:
        """Return the change if these columns are moved back."""
        changes = self._changes({column: swap.moved_back(rng) for column, swap in swaps.items()})
        chance = [
            float(self._changes({column: swap.resampled(rng) for column, swap in swaps.items()}).mean())
            for _ in range(_DRAWS)
        ]
        mean, deviation = float(np.mean(chance)), float(np.std(chance, ddof=1))
        bounds = mean_bounds(changes, low_level=1 - alpha, high_level=confidence)
        low = max(bounds.low - mean - _CHANCE_LOW * deviation, 0.0)
        high = bounds.high + mean + _CHANCE_HIGH * deviation
        return OutputChange(name, distance, bounds.estimate, Interval(low, high, 1 - alpha, confidence))

    def _changes(self, columns: Mapping[str, Values]) -> Floats:
        after = self._predict(_with_columns(self.inputs, columns, self.names))
        if self.are_labels:
            return np.asarray(self._labels(after) != self._labels(self.outputs), dtype=np.float64)
        differences = np.abs(after.astype(np.float64) - self.outputs)
        return np.asarray(differences.reshape(len(differences), -1).max(axis=1))

    def _labels(self, outputs: Values) -> Values:
        return decode(outputs, self.output.decode).labels

    def _predict(self, inputs: Any) -> Values:
        found, reads_labels = self.model.predict(inputs), self.output.decode is not None
        name, outputs = select_output(self.model, found, self.output.name, reads_labels=reads_labels)
        if not outputs.ndim or len(outputs) != count_rows(inputs):
            raise InputError(
                f"output {name!r} has shape {outputs.shape} for {count_rows(inputs)} rows: return one a row"
            )
        if outputs.dtype.kind == "f" and np.isnan(outputs).any():
            rows = int(np.isnan(outputs.reshape(len(outputs), -1)).any(axis=1).sum())
            raise InputError(f"output {name!r} holds NaN in {rows} of {len(outputs)} rows: their change has no value")
        return outputs


def _spread_rows(inputs: Any, wanted: int) -> Any:
    """Return at most so many rows of the inputs, spread evenly."""
    rows = count_rows(inputs)
    chosen = spread(rows, wanted)
    if chosen.size == rows:
        return inputs
    if isinstance(inputs, Frame):
        return inputs.take(chosen)
    if isinstance(inputs, Mapping):
        return {name: values[chosen] for name, values in inputs.items()}
    return inputs[chosen]


def _with_columns(inputs: Any, columns: Mapping[str, Values], names: tuple[str, ...]) -> Any:
    """Return the inputs with other values in some columns; those of an array are called `names`."""
    if isinstance(inputs, Frame):
        native = inputs.native
        if hasattr(native, "assign"):
            return Frame(native.assign(**columns))
        import polars

        return Frame(native.with_columns(*(polars.Series(name, values) for name, values in columns.items())))
    if isinstance(inputs, Mapping):
        found = dict(inputs)
        for name, values in columns.items():
            whole, _, place = name.partition("[")
            if name in found:
                found[name] = values.reshape(np.shape(found[name]))
            else:
                if found[whole] is inputs[whole]:
                    found[whole] = np.array(inputs[whole])
                found[whole][:, int(place.removesuffix("]"))] = values
        return found
    array = np.array(inputs)
    for name, values in columns.items():
        array[:, names.index(name)] = values
    return array
