"""Features without a value: the answer is one, and that of the value which stands in for them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.numerics import kind_of
from pytest_modelserve.robustness.asking import Answering
from pytest_modelserve.robustness.coordinates import Feed, joined, row_count, taken
from pytest_modelserve.robustness.relations.answers import finite_rows
from pytest_modelserve.robustness.relations.features import Feature, as_features, columns_of, input_of, with_columns
from pytest_modelserve.robustness.relations.tolerance import Tolerance, apart, chosen
from pytest_modelserve.robustness.violations import Violations

Value = float | int | str


@dataclass(frozen=True, slots=True)
class MissingValues:
    """See `missing_values`."""

    features: tuple[Feature, ...]
    imputed: tuple[Value, ...] | None
    max_change: float | None
    marker: Value
    tolerance: Tolerance
    input: str | None
    output: str | None
    name: str = "missing values"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        told = f"without features {', '.join(map(str, self.features))}, each and all, every answer is finite"
        if self.imputed is not None:
            told += f", and that of {', '.join(map(repr, self.imputed))} in their place within {self.tolerance}"
        return told if self.max_change is None else f"{told}, and moves by at most {self.max_change:g}"

    def check(self, predictor: Answering, candidates: Feed, base: Feed) -> Violations:
        """Which rows have no answer, or another one than they should, once their features are missing."""
        name = input_of(candidates, self.input)
        columns = columns_of(candidates[name], self.features, name)
        chosen_columns = [[place] for place in range(len(columns))]
        chosen_columns += [list(range(len(columns)))] if len(columns) > 1 else []
        gone = [self._with(candidates, name, columns, places, None) for places in chosen_columns]
        filled = [self._with(candidates, name, columns, places, self.imputed) for places in chosen_columns]
        feeds = [candidates, *gone, *(filled if self.imputed is not None else [])]
        count = row_count(candidates)
        answers = chosen(predictor.predict(joined(feeds)), self.output)
        parts = [taken(answers, slice(k * count, (k + 1) * count)) for k in range(len(feeds))]
        words = [f"without features {', '.join(str(self.features[k]) for k in places)}" for places in chosen_columns]
        tolerance = self.tolerance.after_rewriting(candidates[name])  # what stands in is rounded to the input's dtype
        asked = _finite_beside(candidates, name, columns)
        return self._judged(parts, words, tolerance, predictor, base, asked=asked)

    def _judged(
        self,
        parts: list[Feed],
        words: list[str],
        tolerance: Tolerance,
        predictor: Answering,
        base: Feed,
        *,
        asked: NDArray[np.bool_],
    ) -> Violations:
        """`parts` are the answers to the rows, to each of the variants, and to each of those filled in."""
        several, sources = [], []
        for k, told in enumerate(words):
            found = parts[1 + k]
            several.append(np.where(asked & ~finite_rows(found), np.inf, 0.0))
            sources.append(lambda row, found=found, told=told: _not_finite(found, row, told))
            if self.imputed is not None:
                one = apart(found, parts[1 + len(words) + k], tolerance, predictor.magnitudes(base))
                several.append(one.excess)
                sources.append(lambda row, one=one, told=told: one.sentence(row, told, "with what stands in for them"))
            if self.max_change is not None:
                one = apart(found, parts[0], Tolerance(0.0, self.max_change), {})
                several.append(one.excess)
                sources.append(lambda row, one=one, told=told: one.sentence(row, told, "as it stands"))
        excess = np.array(several)
        return Violations.beyond(excess.max(axis=0), lambda row: sources[int(excess[:, row].argmax())](row))

    def _with(
        self, rows: Feed, name: str, columns: NDArray[np.intp], places: list[int], values: tuple[Value, ...] | None
    ) -> Feed:
        array = rows[name]
        if values is None and isinstance(self.marker, float) and kind_of(array.dtype) != "real" and array.dtype != "O":
            raise UsageError(f"input {name!r} is {array.dtype.name}, which has no NaN: say by marker= what is missing")
        put = np.empty((len(array), len(places)), array.dtype)
        put[:] = np.array([self.marker if values is None else values[place] for place in places], array.dtype)
        return with_columns(rows, name, columns[places], put)


def missing_values(
    features: Feature | Iterable[Feature],
    *,
    imputed: Value | Iterable[Value] | None = None,
    max_change: float | None = None,
    marker: Value = math.nan,
    input: str | None = None,
    output: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> MissingValues:
    """Rows without `features`, each by itself and all at once, have finite answers.

    With `imputed` (one value, or one for each feature) these are the answers of that value in their place; with
    `max_change` they move by at most that from those of the whole row. `marker` is what the model takes for a missing
    value: NaN, or for text and integers a value of theirs ("", -1). Holds for models that impute in their graph; broken
    by imputation that stayed behind in the training code: onnxruntime hands NaN on without a word. Without `rtol` and
    `atol` the tolerance of `imputed` is the room for rounding, and of `max_change` none. Rows that are not finite
    anyway may have answers that are not.
    """
    held = as_features(features)
    values = _imputed(imputed, len(held))
    if max_change is not None and not (math.isfinite(max_change) and max_change >= 0):
        raise UsageError(f"max_change is a number of at least 0, not {max_change}")
    return MissingValues(held, values, max_change, marker, Tolerance.of(rtol, atol), input, output)


def _imputed(given: Value | Iterable[Value] | None, count: int) -> tuple[Value, ...] | None:
    if given is None:
        return None
    values = (given,) * count if isinstance(given, (int, float, str)) else tuple(given)
    if len(values) != count:
        raise UsageError(f"imputed is one value, or one for each of {count} features, not {len(values)}")
    return values


def _finite_beside(rows: Feed, name: str, columns: NDArray[np.intp]) -> NDArray[np.bool_]:
    """The rows that are finite in all that is not taken away."""
    if kind_of(rows[name].dtype) != "real":
        return finite_rows(rows)
    zero: NDArray[Any] = np.zeros((row_count(rows), len(columns)), rows[name].dtype)
    return finite_rows(with_columns(rows, name, columns, zero))


def _not_finite(answers: Feed, row: int, told: str) -> str:
    name = next(name for name, array in answers.items() if not finite_rows({name: array[row : row + 1]}).all())
    return f"output {name!r} is not finite {told}"
