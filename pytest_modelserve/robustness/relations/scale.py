"""Relations between a rescaling of features and the outputs."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import choose_outputs, kind_of, machine_epsilon
from pytest_modelserve.metrics.tolerance import output_differences
from pytest_modelserve.robustness.domains import as_dtype
from pytest_modelserve.robustness.relations.base import (
    Feature,
    Features,
    ToleranceRelation,
    Violations,
    as_features,
    columns_of,
    comma_separated,
    compare_variants,
    largest_differences,
    select_input,
    with_columns,
)

if TYPE_CHECKING:
    from pytest_modelserve.robustness.batched_predictor import BatchedPredictor
    from pytest_modelserve.robustness.coordinates import Feed

_TINY = float(np.finfo(np.float32).tiny)
"""Rounding below this is as good as none."""


@dataclass(frozen=True)
class _ScaleRelation(ToleranceRelation):
    """What the two relations about one factor share."""

    factor: float
    features: Features | None = None
    _: KW_ONLY
    input: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._normalize(factor=_checked_factor(self.factor))
        if self.features is not None:
            self._normalize(features=as_features(self.features))

    @property
    def _which(self) -> str:
        return "real inputs" if self.features is None else f"features {comma_separated(as_features(self.features))}"

    @property
    def _source(self) -> str:
        return f"with {'real inputs' if self.features is None else 'features'} times {self.factor:g}"

    def _scaled(self, rows: Feed, base: Feed) -> tuple[Feed, NDArray[np.bool_]]:
        """Return the scaled rows, and which of them their dtypes can hold."""
        names = [select_input(rows, self.input)] if self.features is not None or self.input is not None else list(rows)
        names = [name for name in names if self.features is not None or kind_of(rows[name].dtype) == "real"]
        if not names:
            raise UsageError("features= is missing: the model has no real input to scale")
        fits = np.ones(len(next(iter(rows.values()))), np.bool_)
        for name in names:
            size = int(np.prod(rows[name].shape[1:]))
            columns = np.arange(size) if self.features is None else columns_of(rows[name], self.features, name)
            rows, holds = rescaled(rows, base, name, columns, factor=self.factor)
            fits &= holds
        return rows, fits


@dataclass(frozen=True, kw_only=True)
class scale_invariant(_ScaleRelation):
    """Features times `factor` change no output, or no decision.

    Applies to numeric inputs of models that normalize each row by itself, such as by its sum or its largest pixel. A
    constant added to that divisor, and scaling with statistics of the training data, are typical violations.

    Args:
        factor: Finite, other than 0 and 1.
        features: Columns or indices in one row; None scales all real inputs.
        decision: Compare the arg-max (or the label) instead of all outputs.
        input: Name of the input, if the model has several and `features` are given.
        output: Name of the output to compare, or several names; None compares all.
        rtol: Relative tolerance, with `atol`; without both, that of rounding.
        atol: Absolute tolerance.

    Raises:
        UsageError: A parameter is invalid.

    A violation is a row whose output differs by more than the tolerance. Rows whose scaled features leave their dtype
    are skipped; `InputError` if that is every base row.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x / x.sum(axis=1, keepdims=True))
        >>> rows = np.array([[1.0, 3.0], [2.0, 2.0]])
        >>> ms.assert_relation(model, rows, ms.relations.scale_invariant(2.0), candidates=0).verdict.name
        'PASS'
    """

    decision: bool = False
    name = "scale invariance"

    @property
    def definition(self) -> str:
        what = "decision" if self.decision else "output"
        return f"{self._which} times {self.factor:g} change no {what}, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        scaled, fits = self._scaled(candidates, base)
        tolerance = self.tolerance
        for values in scaled.values():
            tolerance = tolerance.after_rewriting(values)
        found = compare_variants(
            predictor, candidates, [scaled], base,
            sources=[self._source], tolerance=tolerance, output=self.output, decision=self.decision,
        )  # fmt: skip
        return only_where(fits, found)


@dataclass(frozen=True, kw_only=True)
class scale_equivariant(_ScaleRelation):
    """Features times `factor` multiply every output by `factor ** degree`.

    Applies to numeric inputs of models without constants that have a unit: a total in another currency has degree 1, an
    area of scaled lengths degree 2. A bias or a threshold is a typical violation.

    Args:
        factor: Finite, other than 0 and 1.
        features: Columns or indices in one row; None scales all real inputs.
        degree: Power other than 0; a whole number if `factor` is negative.
        input: Name of the input, if the model has several and `features` are given.
        output: Name of the output to compare, or several names; None compares all.
        rtol: Relative tolerance, with `atol`; without both, that of rounding.
        atol: Absolute tolerance.

    Raises:
        UsageError: A parameter is invalid.

    A violation is a row whose output differs from the expected one by more than the tolerance. Rows whose scaled
    features leave their dtype are skipped; `InputError` if that is every base row.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: x.sum(axis=1))
        >>> ms.assert_relation(model, np.ones((3, 2)), ms.relations.scale_equivariant(100.0)).verdict.name
        'PASS'
    """

    degree: float = 1.0
    name = "scale equivariance"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.degree) or self.degree == 0:
            raise UsageError(f"degree must be a power other than 0, got {self.degree}: use scale_invariant")
        if self.factor < 0 and self.degree != int(self.degree):
            raise UsageError(f"degree must be a whole number for a negative factor, got {self.degree:g}")

    @property
    def definition(self) -> str:
        power = "" if self.degree == 1 else f" to the power {self.degree:g}"
        multiplied = f"multiply every output by {self.factor:g}{power}"
        return f"{self._which} times {self.factor:g} {multiplied}, within {self.tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        scaled, fits = self._scaled(candidates, base)
        tolerance = self.tolerance
        for values in scaled.values():
            tolerance = tolerance.after_rewriting(values)
        by = self.factor**self.degree
        outputs = choose_outputs(predictor.predict(candidates), self.output)
        expected = {name: _times(name, array, by) for name, array in outputs.items()}
        magnitudes = {name: size * abs(by) for name, size in predictor.magnitudes(base).items()}
        found = choose_outputs(predictor.predict(scaled), self.output)
        difference = output_differences(found, expected, tolerance, magnitudes)
        return only_where(fits, largest_differences([difference], [self._source], f"as {by:g} times the output"))


@dataclass(frozen=True)
class unit_change(ToleranceRelation):
    """Rows in another unit, and declared to be in it, have the same output.

    Applies to models that convert units by themselves. A row whose feature `declared` holds the first of `values` gets
    the second one there, and its `features` become `factor * feature + offset`. Preprocessing that ignores the unit in
    one path is a typical violation.

    Args:
        features: Columns or indices in one row to convert.
        factor: Finite, other than 0; 1 only with an `offset`.
        offset: Finite.
        declared: The feature that holds the unit.
        values: The unit before and after, as `declared` holds it.
        input: Name of the input with `features`, if the model has several.
        declared_input: Name of the input with `declared`, if it is another one.
        output: Name of the output to compare, or several names; None compares all.
        rtol: Relative tolerance, with `atol`; without both, that of rounding.
        atol: Absolute tolerance.

    Raises:
        UsageError: A parameter is invalid.

    A violation is a row in the first unit whose output differs by more than the tolerance. Other rows, and rows whose
    converted features leave their dtype, are skipped; `InputError` if that is every base row.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: np.where(x[:, 1] == 1, (x[:, 0] - 32) / 1.8, x[:, 0]))
        >>> relation = ms.relations.unit_change(0, factor=1.8, offset=32, declared=1, values=(0.0, 1.0))
        >>> ms.assert_relation(model, np.array([[20.0, 0.0], [5.0, 0.0]]), relation).verdict.name
        'PASS'
    """

    features: Features
    _: KW_ONLY
    factor: float
    offset: float = 0.0
    declared: Feature
    values: tuple[float | str, float | str]
    input: str | None = None
    declared_input: str | None = None
    name = "unit change"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.values) != 2 or self.values[0] == self.values[1]:
            raise UsageError(f"values must be two different units, from and to, got {self.values}")
        if not math.isfinite(self.offset):
            raise UsageError(f"offset must be a finite number, got {self.offset}")
        (declared,) = as_features((self.declared,))
        factor = _checked_factor(self.factor) if self.factor != 1 or not self.offset else 1.0
        self._normalize(features=as_features(self.features), declared=declared, factor=factor)

    @property
    def definition(self) -> str:
        plus = f" plus {self.offset:g}" if self.offset else ""
        before, after = self.values
        return (
            f"rows with {before!r} in feature {self.declared} have the same output with {after!r} there and features "
            f"{comma_separated(as_features(self.features))} times {self.factor:g}{plus}, within {self.tolerance}"
        )

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        name, unit_name = select_input(candidates, self.input), self.declared_input or self.input
        unit_name = select_input(candidates, unit_name)
        column = columns_of(candidates[unit_name], (self.declared,), unit_name)
        before, after = self.values
        if not (_column(base[unit_name], column) == before).any():
            raise InputError(f"base rows must include the unit {before!r} in feature {self.declared}: add such rows")
        in_first_unit = _column(candidates[unit_name], column) == before
        columns = columns_of(candidates[name], self.features, name)
        converted, fits = rescaled(candidates, base, name, columns, factor=self.factor, offset=self.offset)
        unit = np.full((len(in_first_unit), 1), after, candidates[unit_name].dtype)
        converted = with_columns(converted, unit_name, column, unit)
        found = compare_variants(
            predictor, candidates, [converted], base,
            sources=[f"with {after!r} in feature {self.declared}"],
            tolerance=self.tolerance.after_rewriting(candidates[name]), output=self.output,
        )  # fmt: skip
        return only_where(fits & in_first_unit, found)


def rescaled(
    rows: Feed, base: Feed, name: str, columns: NDArray[np.intp], *, factor: float = 1.0, offset: float = 0.0
) -> tuple[Feed, NDArray[np.bool_]]:
    """Return the rows with some columns times `factor` plus `offset`, and which rows their dtype can hold.

    Raises `UsageError` for text and booleans, and `InputError` if the dtype can hold no base row.
    """
    if kind_of(rows[name].dtype) not in ("real", "exact") or rows[name].dtype == np.bool_:
        raise UsageError(f"input {name!r} is {rows[name].dtype.name}, which has no scale")
    if not _changed(base[name], columns, factor, offset)[1].any():
        raise InputError(f"input {name!r} cannot hold the features of any base row times {factor:g} plus {offset:g}")
    values, fits = _changed(rows[name], columns, factor, offset)
    return with_columns(rows, name, columns, values), fits


def only_where(applies: NDArray[np.bool_], found: Violations) -> Violations:
    """Return the violations of the rows that the relation applies to."""
    excess = None if found.excess is None else np.where(applies, found.excess, 0.0)
    return replace(found, violated=found.violated & applies, excess=excess)


def _changed(
    array: NDArray[Any], columns: NDArray[np.intp], factor: float, offset: float
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    before = array.reshape(len(array), -1)[:, columns].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = before * factor + offset
        values = as_dtype(exact, array.dtype)
        after = values.astype(np.float64)
        if kind_of(array.dtype) == "exact":
            fits = after == exact
        else:
            tolerance = machine_epsilon(array.dtype.name) * np.abs(exact) + _TINY
            fits = (np.abs(after - exact) <= tolerance) | ~np.isfinite(before)
    return values, fits.all(axis=1)


def _checked_factor(factor: float) -> float:
    if not math.isfinite(factor) or factor in (0, 1):
        raise UsageError(f"factor must be a finite number other than 0 and 1, got {factor}")
    return float(factor)


def _times(name: str, array: NDArray[Any], by: float) -> NDArray[Any]:
    if kind_of(array.dtype) != "real":
        raise UsageError(f"output {name!r} is {array.dtype.name}, which has no scale: select another with output=")
    return (array.astype(np.float64) * by).astype(array.dtype)


def _column(array: NDArray[Any], column: NDArray[np.intp]) -> NDArray[Any]:
    found: NDArray[Any] = array.reshape(len(array), -1)[:, column[0]]
    return found
