"""Rows in another unit, which they say themselves, have the same answer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed
from pytest_modelserve.robustness.relations.features import Feature, as_features, columns_of, input_of, with_columns
from pytest_modelserve.robustness.relations.rescaling import checked_factor, only_where, rescaled
from pytest_modelserve.robustness.relations.tolerance import Tolerance
from pytest_modelserve.robustness.relations.variants import compared_variants
from pytest_modelserve.robustness.violations import Violations


@dataclass(frozen=True, slots=True)
class UnitChange:
    """See `unit_change`."""

    features: tuple[Feature, ...]
    factor: float
    offset: float
    declared: Feature
    values: tuple[float | str, float | str]
    tolerance: Tolerance
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

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
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
        held, by, float(offset), unit, (values[0], values[1]), Tolerance.of(rtol, atol), input, declared_input, output
    )


def _column(array: NDArray[Any], column: NDArray[np.intp]) -> NDArray[Any]:
    found: NDArray[Any] = array.reshape(len(array), -1)[:, column[0]]
    return found
