"""What holds of a model's answers by themselves: they are finite, they are probabilities."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import Decoding, decode, kind_of, machine_epsilon
from pytest_modelserve.metrics.elementwise import is_numpys_own
from pytest_modelserve.metrics.tolerance import (
    RELATION_EPSILONS,
    RoundingTolerance,
    output_differences,
    select_output,
)
from pytest_modelserve.robustness.coordinates import Feed, concat_rows, row_count, take_rows
from pytest_modelserve.robustness.label_stability import Transform, takes_generator, transformed
from pytest_modelserve.robustness.relations.base import (
    Feature,
    Violations,
    as_features,
    columns_of,
    input_of,
    with_columns,
)
from pytest_modelserve.robustness.strategies import fault_names, input_source, malformed
from pytest_modelserve.serving.subprocess_predictor import ProcessCrashError

if TYPE_CHECKING:
    from pytest_modelserve.robustness.batched_predictor import BatchedPredictor


@dataclass(frozen=True, slots=True)
class FiniteOutputs:
    """See `finite_outputs`."""

    output: str | None
    name: str = "finite outputs"
    definition: str = "finite inputs have outputs without NaN and infinities"
    unit: Literal["row", "batch"] = "row"

    def check(self, predictor: BatchedPredictor, candidates: Feed, _base: Feed) -> Violations:
        """Which rows of finite numbers are answered by something that is not finite."""
        answers = select_output(predictor.predict(candidates), self.output)
        asked = finite_rows(candidates)
        bad = asked & ~finite_rows(answers)
        return Violations(bad, None, lambda row: self._told(answers, row))

    @staticmethod
    def _told(answers: Feed, row: int) -> str:
        for name, array in answers.items():
            if kind_of(array.dtype) == "real":
                numbers = array[row].astype(np.float64).reshape(-1)
                if not np.isfinite(numbers).all():
                    count = int((~np.isfinite(numbers)).sum())
                    first = numbers[~np.isfinite(numbers)][0]
                    return f"{count} of {numbers.size} values of output {name!r} are not finite, the first is {first}"
        return ""


@dataclass(frozen=True, slots=True)
class Simplex:
    """See `simplex`."""

    output: str | None
    axis: int
    name: str = "probability simplex"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        return (
            f"probabilities along axis {self.axis} lie in [0, 1] and sum to 1, within {RELATION_EPSILONS} units in the "
            "last place"
        )

    def check(self, predictor: BatchedPredictor, candidates: Feed, _base: Feed) -> Violations:
        """Which rows of finite numbers have answers that are no probabilities."""
        answers = select_output(predictor.predict(candidates), self.output)
        if len(answers) != 1:
            raise UsageError(f"the model has {len(answers)} outputs: name the probabilities by output=")
        ((name, array),) = answers.items()
        if kind_of(array.dtype) != "real" or not -array.ndim <= self.axis < array.ndim or self.axis == 0:
            raise UsageError(
                f"output {name!r}, {array.dtype.name}{list(array.shape)}, has no axis {self.axis} of scores"
            )
        room = RELATION_EPSILONS * machine_epsilon(array.dtype.name)
        numbers = array.astype(np.float64)
        total = np.abs(numbers.sum(axis=self.axis) - 1).reshape(len(array), -1).max(axis=1, initial=0.0)
        outside = np.maximum(-numbers, numbers - 1).reshape(len(array), -1).max(axis=1, initial=0.0)
        excess = np.where(finite_rows(candidates), np.maximum(total, outside) / room, 0.0)

        def told(row: int) -> str:
            sums = numbers.sum(axis=self.axis)[row]
            return (
                f"output {name!r} holds {numbers[row].min():.6g} to {numbers[row].max():.6g} and sums to "
                f"{np.ravel(sums)[np.abs(np.ravel(sums) - 1).argmax()]:.6g}"
            )

        return Violations.beyond(excess, told)


def finite_outputs(*, output: str | None = None) -> FiniteOutputs:
    """Inputs without NaN and infinities have outputs without them.

    Nothing is tolerated. Holds within the range of the data for every sound model; in the domain "far" only where the
    graph itself limits its inputs. Broken by a division or a logarithm that meets zero, and by float16 overflow.
    """
    return FiniteOutputs(output)


def simplex(*, output: str | None = None, axis: int = -1) -> Simplex:
    """Scores along `axis` are probabilities: none outside [0, 1], and their sum is 1, for inputs that are finite.

    Tolerated are 256 units in the last place of 1: a softmax rounds each of its terms once, and their sum by the
    square root of their number. Broken by logits that are served as probabilities, and by a softmax over another axis.
    `output` is required where there are several.
    """
    return Simplex(output, axis)


def finite_rows(arrays: Feed) -> NDArray[np.bool_]:
    """The rows (n,) without NaN or infinities in any array of real numbers."""
    count = len(next(iter(arrays.values())))
    found = np.ones(count, np.bool_)
    for array in arrays.values():
        if kind_of(array.dtype) == "real":
            numbers: NDArray[Any] = array if is_numpys_own(array.dtype) else array.astype(np.float32)
            found &= np.isfinite(numbers).reshape(count, -1).all(axis=1)
    return found


# Features without a value: the answer is one, and that of the value which stands in for them.


Value = float | int | str


@dataclass(frozen=True, slots=True)
class MissingValues:
    """See `missing_values`."""

    features: tuple[Feature, ...]
    imputed: tuple[Value, ...] | None
    max_change: float | None
    marker: Value
    tolerance: RoundingTolerance
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

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """Which rows have no answer, or another one than they should, once their features are missing."""
        name = input_of(candidates, self.input)
        columns = columns_of(candidates[name], self.features, name)
        chosen_columns = [[place] for place in range(len(columns))]
        chosen_columns += [list(range(len(columns)))] if len(columns) > 1 else []
        gone = [self._with(candidates, name, columns, places, None) for places in chosen_columns]
        filled = [self._with(candidates, name, columns, places, self.imputed) for places in chosen_columns]
        feeds = [candidates, *gone, *(filled if self.imputed is not None else [])]
        count = row_count(candidates)
        answers = select_output(predictor.predict(concat_rows(feeds)), self.output)
        parts = [take_rows(answers, slice(k * count, (k + 1) * count)) for k in range(len(feeds))]
        words = [f"without features {', '.join(str(self.features[k]) for k in places)}" for places in chosen_columns]
        tolerance = self.tolerance.after_rewriting(candidates[name])  # what stands in is rounded to the input's dtype
        asked = _finite_beside(candidates, name, columns)
        return self._judged(parts, words, tolerance, predictor, base, asked=asked)

    def _judged(
        self,
        parts: list[Feed],
        words: list[str],
        tolerance: RoundingTolerance,
        predictor: BatchedPredictor,
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
                one = output_differences(found, parts[1 + len(words) + k], tolerance, predictor.magnitudes(base))
                several.append(one.excess)
                sources.append(lambda row, one=one, told=told: one.sentence(row, told, "with what stands in for them"))
            if self.max_change is not None:
                one = output_differences(found, parts[0], RoundingTolerance(0.0, self.max_change), {})
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
    return MissingValues(held, values, max_change, marker, RoundingTolerance.of(rtol, atol), input, output)


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


# Inputs that do not fit the model are refused, by an exception that a caller can catch.


_NAMED = (": missing", ": another name", "an input more")
"""Faults that a function which takes its one array without a name cannot be given."""


@dataclass(frozen=True, slots=True)
class CleanRejection:
    """See `clean_rejection`."""

    errors: tuple[type[Exception], ...]
    name: str = "clean rejection"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        return f"malformed inputs raise {', '.join(error.__name__ for error in self.errors)}, and have no answer"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """All rows or none: the faults are those of every row."""
        like = base if predictor.batch_size != 0 else {name: array[0, ...] for name, array in base.items()}
        source = input_source(predictor.predictor, like=like, max_batch=1, domain="like", empty=False)
        pass_array = predictor.signature is None and predictor.pass_array
        faults = [fault for fault in fault_names(source) if not (pass_array and fault.endswith(_NAMED))]
        wrong = [
            told for fault in faults if (told := self._amiss(predictor, malformed(source, fault), fault, pass_array))
        ]
        return Violations(np.full(row_count(candidates), bool(wrong)), None, "; ".join(wrong))

    def _amiss(self, predictor: BatchedPredictor, inputs: Any, fault: str, pass_array: bool) -> str:
        """What happened instead of a refusal, nothing where the model refuses."""
        try:
            predictor.predictor.predict(next(iter(inputs.values())) if pass_array else dict(inputs))
        except ProcessCrashError as error:
            return f"{fault}: {error}"
        except self.errors:
            return ""
        except Exception as error:  # what a model raises in place of a refusal is what is asked
            return f"{fault}: {type(error).__name__}: {error}"
        return f"{fault}: it was answered"


def clean_rejection(
    errors: type[Exception] | tuple[type[Exception], ...] = (ValueError, TypeError, KeyError),
) -> CleanRejection:
    """Inputs with one fault each raise one of `errors`: no answer, no other exception, and no end of the process.

    The faults are those of `strategies.malformed_inputs`: an input that is missing, unknown, misnamed, of another
    dtype, of one axis more or less, or longer along a fixed axis. InputError is a ValueError. Nothing is tolerated.
    Holds for every model in onnxruntime as this package serves it; broken by functions that cast, broadcast or ignore
    what they are given. What ends the process is seen with `isolate=True`.
    """
    held = errors if isinstance(errors, tuple) else (errors,)
    if not held or not all(isinstance(error, type) and issubclass(error, Exception) for error in held):
        raise UsageError("errors are classes of exceptions, such as InputError")
    return CleanRejection(held)


# A table of rows whose labels are known: the least that a model has to get right.


Label = int | str


@dataclass(frozen=True, slots=True)
class MinimumFunctionality:
    """See `minimum_functionality`."""

    labels: tuple[Label, ...]
    perturb: Transform | None
    draws: int
    decode: Decoding
    output: str | None
    name: str = "minimum functionality"
    unit: Literal["row", "batch"] = "row"

    @property
    def definition(self) -> str:
        """What holds."""
        beside = f", and so has each of {self.draws} perturbed copies of it" if self.perturb is not None else ""
        return f"every row of the table has its expected label{beside}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """Which rows of the table are answered by another label; rows that are not in it have none."""
        expected = self._expected(candidates, base)
        variants = [candidates, *self._perturbed(candidates)]
        found = [self._labels(predictor, variant) for variant in variants]
        asked = np.array([label is not None for label in expected], np.bool_)
        wrong = np.array(
            [[one != label for one, label in zip(each, expected, strict=True)] for each in found], np.bool_
        )

        def told(row: int) -> str:
            first = int(wrong[:, row].argmax())
            copy = "" if first == 0 else f" for perturbed copy {first}"
            return f"the label is {found[first][row]!r}{copy} and {expected[row]!r} is expected"

        return Violations(asked & wrong.any(axis=0), None, told)

    def _expected(self, rows: Feed, base: Feed) -> list[Label | None]:
        """The label of each row, looked up in the table by its values."""
        if row_count(base) != len(self.labels):
            raise InputError(f"there are {len(self.labels)} labels for a table of {row_count(base)} rows")
        table: dict[bytes, Label] = {}
        for key, label in zip(_keys(base), self.labels, strict=True):
            if table.setdefault(key, label) != label:
                raise InputError(f"the table has one row twice, once as {table[key]!r} and once as {label!r}")
        return [table.get(key) for key in _keys(rows)]

    def _perturbed(self, rows: Feed) -> list[Feed]:
        """The copies, row by row and from the same seeds for each: what is said of a row is the same beside others."""
        if self.perturb is None:
            return []
        drawn = takes_generator(self.perturb)
        copies = []
        for draw in range(self.draws):
            parts = [
                transformed(
                    self.perturb, take_rows(rows, slice(i, i + 1)), np.random.default_rng(draw) if drawn else None
                )
                for i in range(row_count(rows))
            ]
            copies.append(concat_rows(parts))
        return copies

    def _labels(self, predictor: BatchedPredictor, rows: Feed) -> list[Label | None]:
        outputs = select_output(predictor.predict(rows), self.output)
        if len(outputs) != 1:
            raise UsageError(f"the model has {len(outputs)} outputs: say which one decides by output=")
        decoded = decode(next(iter(outputs.values())), self.decode)
        return [
            None if bad else label for label, bad in zip(decoded.labels.tolist(), decoded.invalid.tolist(), strict=True)
        ]


def minimum_functionality(
    labels: ArrayLike | Iterable[Label],
    *,
    perturb: Transform | None = None,
    draws: int = 4,
    decode: Decoding = "argmax",
    output: str | None = None,
) -> MinimumFunctionality:
    """Every row of a table has the label that is expected of it: `assert_relation(predictor, table, ...(labels))`.

    `labels` belong to the rows that `assert_relation` is given, one each. With `perturb`, a function of rows by name
    (a dict of arrays) or of rows and a numpy generator, `draws` copies of each row that it makes have that label too.
    `decode` makes labels of the answers as for `assert_accuracy`. Nothing is tolerated, and nothing else is searched.
    For cases that nobody would forgive; broken by a shuffled label encoding, however high the accuracy. Scores that
    hold NaN have no label, which is never the expected one.
    """
    given = tuple(np.asarray(labels if not isinstance(labels, Iterable) else list(labels)).tolist())
    if not given or any(isinstance(label, bool) or not isinstance(label, (int, str)) for label in given):
        raise UsageError("labels are integers or strings, one for each row of the table")
    if perturb is not None and not takes_generator(perturb):
        draws = 1
    if draws < 1:
        raise UsageError(f"draws is a whole number of at least 1, not {draws}")
    return MinimumFunctionality(given, perturb, draws, decode, output)


def _keys(rows: Feed) -> list[bytes]:
    return [
        hashlib.sha256(b"|".join(_bytes(array[i]) for array in rows.values())).digest() for i in range(row_count(rows))
    ]


def _bytes(array: NDArray[Any]) -> bytes:
    values = np.asarray(array)
    return repr(values.tolist()).encode() if values.dtype.kind in "OUT" else values.tobytes()
