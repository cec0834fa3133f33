"""Answers that follow the scale of features in a known way, or not at all."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import kind_of, machine_epsilon
from pytest_modelserve.metrics.tolerance import RoundingTolerance, output_differences, select_output
from pytest_modelserve.robustness.domains import as_dtype
from pytest_modelserve.robustness.relations.base import (
    Feature,
    Violations,
    as_features,
    columns_of,
    compared_variants,
    farthest,
    input_of,
    with_columns,
)

if TYPE_CHECKING:
    from pytest_modelserve.robustness.batched_predictor import BatchedPredictor
    from pytest_modelserve.robustness.coordinates import Feed

# Rows with some features times a factor, or a step further on, and which of them that says something of.


_TINY = float(np.finfo(np.float32).tiny)
"""What goes below this is as good as zero."""


def rescaled(
    rows: Feed, base: Feed, name: str, columns: NDArray[np.intp], *, factor: float = 1.0, offset: float = 0.0
) -> tuple[Feed, NDArray[np.bool_]]:
    """The rows with some columns times `factor` plus `offset`, and which rows hold the result in their dtype.

    UsageError for text and booleans; InputError where not one of the base rows could be judged.
    """
    if kind_of(rows[name].dtype) not in ("real", "exact") or rows[name].dtype == np.bool_:
        raise UsageError(f"input {name!r} is {rows[name].dtype.name}, which has no scale")
    if not _changed(base[name], columns, factor, offset)[1].any():
        raise InputError(f"no base row of input {name!r} holds its features times {factor:g} plus {offset:g}")
    values, fits = _changed(rows[name], columns, factor, offset)
    return with_columns(rows, name, columns, values), fits


def _changed(
    array: NDArray[Any], columns: NDArray[np.intp], factor: float, offset: float
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    before = array.reshape(len(array), -1)[:, columns].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = before * factor + offset
        values = as_dtype(wanted, array.dtype)
        there = values.astype(np.float64)
        if kind_of(array.dtype) == "exact":
            fits = there == wanted
        else:
            room = machine_epsilon(array.dtype.name) * np.abs(wanted) + _TINY
            fits = (np.abs(there - wanted) <= room) | ~np.isfinite(before)
    return values, fits.all(axis=1)


def only_where(judged: NDArray[np.bool_], found: Violations) -> Violations:
    """The violations of rows that are judged."""
    excess = None if found.excess is None else np.where(judged, found.excess, 0.0)
    return Violations(found.violated & judged, excess, found.told)


def checked_factor(factor: float) -> float:
    """The factor if it changes anything; UsageError for 0, for 1 and for what is not finite."""
    if not math.isfinite(factor) or factor in (0, 1):
        raise UsageError(f"factor is a finite number other than 0 and 1, not {factor}")
    return float(factor)


@dataclass(frozen=True, slots=True)
class Scaling:
    """See `scale_invariant` and `scale_equivariant`."""

    factor: float
    features: tuple[Feature, ...] | None
    degree: float
    decision: bool
    tolerance: RoundingTolerance
    input: str | None
    output: str | None
    unit: Literal["row", "batch"] = "row"

    @property
    def name(self) -> str:
        """What reports call it."""
        return f"scale {'invariance' if self.degree == 0 else 'equivariance'}"

    @property
    def definition(self) -> str:
        """What holds."""
        which = "real inputs" if self.features is None else f"features {', '.join(map(str, self.features))}"
        if self.degree == 0:
            ends = f"change no {'decision' if self.decision else 'answer'}"
        else:
            power = "" if self.degree == 1 else f" to the power {self.degree:g}"
            ends = f"multiply every answer by {self.factor:g}{power}"
        return f"{which} times {self.factor:g} {ends}, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """Which rows have other answers than the scale of their features makes them."""
        scaled, fits = self._scaled(candidates, base)
        tolerance = self.tolerance
        for values in scaled.values():
            tolerance = tolerance.after_rewriting(values)
        words = f"with {'real inputs' if self.features is None else 'features'} times {self.factor:g}"
        if self.degree == 0:
            found = compared_variants(
                tolerance, self.output, self.decision, predictor, candidates, [scaled], base, words=[words]
            )
        else:
            by = self.factor**self.degree
            answers = select_output(predictor.predict(candidates), self.output)
            expected = {name: _times(name, array, by) for name, array in answers.items()}
            sizes = {name: size * abs(by) for name, size in predictor.magnitudes(base).items()}
            compared = output_differences(
                select_output(predictor.predict(scaled), self.output), expected, tolerance, sizes
            )
            found = farthest([compared], [words], f"as {by:g} times the answer")
        return only_where(fits, found)

    def _scaled(self, rows: Feed, base: Feed) -> tuple[Feed, NDArray[np.bool_]]:
        names = [input_of(rows, self.input)] if self.features is not None or self.input is not None else list(rows)
        names = [name for name in names if self.features is not None or kind_of(rows[name].dtype) == "real"]
        if not names:
            raise UsageError("the model has no real input to scale: name features of another one")
        fits = np.ones(len(next(iter(rows.values()))), np.bool_)
        for name in names:
            size = int(np.prod(rows[name].shape[1:]))
            columns = np.arange(size) if self.features is None else columns_of(rows[name], self.features, name)
            rows, here = rescaled(rows, base, name, columns, factor=self.factor)
            fits &= here
        return rows, fits


def scale_invariant(
    factor: float,
    features: Feature | Iterable[Feature] | None = None,
    *,
    decision: bool = False,
    input: str | None = None,
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Scaling:
    """`features`, or all real inputs, times `factor` change no answer, or with `decision=True` no decision.

    Holds where a model normalises a row by itself (by its sum, its norm, its largest pixel); broken by a constant that
    is added to what is divided by, which should vanish, and by scaling with numbers of the training data. Without
    `rtol` and `atol` the tolerance is the room for rounding: `factor` rounds a feature by half a unit in its last
    place, a power of two not at all, so the units are those of the input's dtype where it is coarser than the output's.
    Rows whose features leave their dtype are not judged.
    """
    return Scaling(
        checked_factor(factor), _features(features), 0.0, decision, RoundingTolerance.of(rtol, atol), input, output
    )


def scale_equivariant(
    factor: float,
    features: Feature | Iterable[Feature] | None = None,
    *,
    degree: float = 1.0,
    input: str | None = None,
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> Scaling:
    """`features`, or all real inputs, times `factor` multiply every answer by `factor` to the power `degree`.

    A sum of amounts in another currency is that sum in it (degree 1), an area grows with the square of lengths (2).
    Holds for models without constants that have a unit; broken by a bias, and by a threshold. Tolerance as in
    `scale_invariant`, relative to the answers as they are expected.
    """
    if not math.isfinite(degree) or degree == 0:
        raise UsageError(f"degree is a power other than 0, not {degree}; for no change see scale_invariant")
    if factor < 0 and degree != int(degree):
        raise UsageError(f"a factor below 0 has no power {degree:g}")
    return Scaling(
        checked_factor(factor),
        _features(features),
        float(degree),
        False,
        RoundingTolerance.of(rtol, atol),
        input,
        output,
    )


def _times(name: str, array: NDArray[Any], by: float) -> NDArray[Any]:
    if kind_of(array.dtype) != "real":
        raise UsageError(f"output {name!r} is {array.dtype.name}, which has no scale: name another one by output=")
    return (array.astype(np.float64) * by).astype(array.dtype)


def _features(features: Feature | Iterable[Feature] | None) -> tuple[Feature, ...] | None:
    return None if features is None else as_features(features)


# Rows in another unit, which they say themselves, have the same answer.


@dataclass(frozen=True, slots=True)
class UnitChange:
    """See `unit_change`."""

    features: tuple[Feature, ...]
    factor: float
    offset: float
    declared: Feature
    values: tuple[float | str, float | str]
    tolerance: RoundingTolerance
    input: str | None
    declared_input: str | None
    output: str | None
    name: str = "unit change"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        plus = f" plus {self.offset:g}" if self.offset else ""
        before, after = self.values
        return (
            f"rows with {before!r} in feature {self.declared} have the same answer with {after!r} there and features "
            f"{', '.join(map(str, self.features))} times {self.factor:g}{plus}, within {self.tolerance}"
        )

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """Which rows in the first unit are answered otherwise in the second."""
        name, where = input_of(candidates, self.input), input_of(candidates, self.declared_input or self.input)
        column = columns_of(candidates[where], (self.declared,), where)
        before, after = self.values
        if not (_column(base[where], column) == before).any():
            raise InputError(f"no base row has {before!r} in feature {self.declared}: add rows in that unit")
        in_first = _column(candidates[where], column) == before
        columns = columns_of(candidates[name], self.features, name)
        changed, fits = rescaled(candidates, base, name, columns, factor=self.factor, offset=self.offset)
        unit = np.full((len(in_first), 1), after, candidates[where].dtype)
        changed = with_columns(changed, where, column, unit)
        tolerance = self.tolerance.after_rewriting(candidates[name])
        found = compared_variants(
            tolerance, self.output, False, predictor, candidates, [changed], base,
            words=[f"with {after!r} in feature {self.declared}"],
        )  # fmt: skip
        return only_where(fits & in_first, found)


def unit_change(
    features: Feature | Iterable[Feature],
    *,
    factor: float,
    offset: float = 0.0,
    declared: Feature,
    values: tuple[float | str, float | str],
    input: str | None = None,
    declared_input: str | None = None,
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> UnitChange:
    """A row in another unit, and said to be in it, has the same answer: for models that scale by themselves.

    The rows whose feature `declared` (of `declared_input`, or of the same input) holds the first of `values` get the
    second one there, and their `features` times `factor` plus `offset`: `unit_change(0, factor=1.8, offset=32,
    declared=5, values=("C", "F"))`. Other rows are not judged. Broken by a unit that one path of the preprocessing
    overlooks. Tolerance as in `scale_invariant`.
    """
    if len(values) != 2 or values[0] == values[1]:
        raise UsageError(f"values are the two units as the feature says them, from and to, not {values}")
    if not math.isfinite(offset):
        raise UsageError(f"offset is a finite number, not {offset}")
    held, (unit,) = as_features(features), as_features((declared,))
    by = checked_factor(factor) if factor != 1 or not offset else 1.0
    return UnitChange(
        held,
        by,
        float(offset),
        unit,
        (values[0], values[1]),
        RoundingTolerance.of(rtol, atol),
        input,
        declared_input,
        output,
    )


def _column(array: NDArray[Any], column: NDArray[np.intp]) -> NDArray[Any]:
    found: NDArray[Any] = array.reshape(len(array), -1)[:, column[0]]
    return found
