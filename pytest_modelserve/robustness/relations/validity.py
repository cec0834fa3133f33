"""Relations about one output by itself: finite, probabilities, with missing values, refused, or as labeled."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import Decoding, OutputNames, choose_outputs, decode, kind_of, machine_epsilon
from pytest_modelserve.metrics.elementwise import is_builtin_dtype
from pytest_modelserve.metrics.tolerance import (
    RELATION_EPSILONS,
    RoundingTolerance,
    output_differences,
)
from pytest_modelserve.robustness.coordinates import Feed, concat_rows, row_count, take_rows
from pytest_modelserve.robustness.relations.base import (
    Features,
    Relation,
    ToleranceRelation,
    Violations,
    as_features,
    columns_of,
    comma_separated,
    select_input,
    single_output,
    with_columns,
)
from pytest_modelserve.robustness.relations.feature_effects import check_max_change
from pytest_modelserve.robustness.strategies import fault_names, generate_malformed, input_source
from pytest_modelserve.robustness.transformations import Transform, takes_generator, transformed
from pytest_modelserve.serving.predictor import ProcessCrashError

if TYPE_CHECKING:
    from pytest_modelserve.robustness.batched_predictor import BatchedPredictor

Value = float | int | str
Label = int | str


@dataclass(frozen=True, kw_only=True)
class finite_outputs(Relation):
    """Inputs without NaN and infinities have outputs without them.

    Applies to every model within the range of its data; in the domain "far", only to models that limit their inputs.
    Division by zero, a logarithm of zero and float16 overflow are typical violations.

    Args:
        output: Name of the output to check, or several names; None checks all.

    A violation is a row of finite numbers with NaN or infinity in an output. There is no tolerance.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: 1 / (1 + x**2))
        >>> ms.assert_relation(model, np.ones((3, 2)), ms.relations.finite_outputs()).verdict.name
        'PASS'
    """

    output: OutputNames | None = None
    name = "finite outputs"
    definition = "finite inputs have outputs without NaN and infinities"

    def check(self, predictor: BatchedPredictor, candidates: Feed, _base: Feed) -> Violations:
        outputs = choose_outputs(predictor.predict(candidates), self.output)
        return Violations(
            finite_rows(candidates) & ~finite_rows(outputs), None, lambda row: self._describe(outputs, row)
        )

    @staticmethod
    def _describe(outputs: Feed, row: int) -> str:
        for name, array in outputs.items():
            if kind_of(array.dtype) == "real":
                numbers = array[row].astype(np.float64).reshape(-1)
                if not np.isfinite(numbers).all():
                    count = int((~np.isfinite(numbers)).sum())
                    first = numbers[~np.isfinite(numbers)][0]
                    return f"{count} of {numbers.size} values of output {name!r} are not finite, the first is {first}"
        return ""


@dataclass(frozen=True, kw_only=True)
class simplex(Relation):
    """Scores along an axis are probabilities: each in [0, 1], with a sum of 1.

    Applies to classifiers that return probabilities of floats. Logits that are served as probabilities, and a softmax
    over another axis, are typical violations.

    Args:
        output: Name of the output; needed if there are several.
        axis: Axis of the classes; not the axis of rows, 0.

    A violation is a row of finite numbers whose scores leave [0, 1], or whose sum differs from 1, by more than 256
    units in the last place of 1.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: np.abs(x) / np.abs(x).sum(axis=1, keepdims=True))
        >>> ms.assert_relation(model, np.ones((3, 2)), ms.relations.simplex(), candidates=0).verdict.name
        'PASS'
    """

    output: str | None = None
    axis: int = -1
    name = "probability simplex"

    @property
    def definition(self) -> str:
        tolerance = f"{RELATION_EPSILONS} units in the last place"
        return f"probabilities along axis {self.axis} lie in [0, 1] and sum to 1, within {tolerance}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, _base: Feed) -> Violations:
        name, array = single_output(predictor.predict(candidates), self.output)
        if kind_of(array.dtype) != "real" or not -array.ndim <= self.axis < array.ndim or self.axis in (0, -array.ndim):
            raise UsageError(
                f"axis {self.axis} holds no scores of output {name!r}, {array.dtype.name}{list(array.shape)}"
            )
        # A softmax rounds each of its terms once, and their sum by the square root of their number.
        tolerance = RELATION_EPSILONS * machine_epsilon(array.dtype.name)
        numbers = array.astype(np.float64)
        total = np.abs(numbers.sum(axis=self.axis) - 1).reshape(len(array), -1).max(axis=1, initial=0.0)
        outside = np.maximum(-numbers, numbers - 1).reshape(len(array), -1).max(axis=1, initial=0.0)
        excess = np.where(finite_rows(candidates), np.maximum(total, outside) / tolerance, 0.0)

        def message(row: int) -> str:
            sums = np.ravel(numbers.sum(axis=self.axis)[row])
            return (
                f"output {name!r} holds {numbers[row].min():.6g} to {numbers[row].max():.6g} and sums to "
                f"{sums[np.abs(sums - 1).argmax()]:.6g}"
            )

        return Violations.beyond(excess, message)


@dataclass(frozen=True)
class missing_values(ToleranceRelation):
    """Rows without some features, each alone and all at once, have finite outputs.

    Applies to models that impute in their graph. With `imputed`, the output must be that of these values in their
    place; with `max_change`, it must stay close to that of the whole row. Imputation that stayed in the training code
    is a typical violation, since onnxruntime propagates NaN.

    Args:
        features: Columns or indices in one row.
        imputed: The values that stand in for the features: one, or one for each.
        max_change: Greatest move of an output, in its units.
        marker: What the model takes for a missing value: NaN, or a value for text and integers ("", -1).
        input: Name of the input, if the model has several.
        output: Name of the output to check, or several names; None checks all.
        rtol: Relative tolerance of `imputed`, with `atol`; without both, that of rounding.
        atol: Absolute tolerance of `imputed`.

    Raises:
        UsageError: A parameter is invalid.

    A violation is a row whose output without the features is not finite, differs from the imputed one by more than the
    tolerance, or moves by more than `max_change`. Rows that are not finite in other features may have such outputs.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: np.where(np.isnan(x), 0.5, x).sum(axis=1))
        >>> ms.assert_relation(model, np.ones((3, 2)), ms.relations.missing_values(0, imputed=0.5)).verdict.name
        'PASS'
    """

    features: Features
    _: KW_ONLY
    imputed: Value | Iterable[Value] | None = None
    max_change: float | None = None
    marker: Value = math.nan
    input: str | None = None
    name = "missing values"

    def __post_init__(self) -> None:
        super().__post_init__()
        features = as_features(self.features)
        self._normalize(features=features, imputed=_one_each(self.imputed, len(features)))
        check_max_change(self.max_change)

    @property
    def definition(self) -> str:
        features = comma_separated(as_features(self.features))
        stated = f"without features {features}, each and all, every output is finite"
        if isinstance(self.imputed, tuple):
            stated += f", and that of {', '.join(map(repr, self.imputed))} in their place within {self.tolerance}"
        return stated if self.max_change is None else f"{stated}, and moves by at most {self.max_change:g}"

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        name = select_input(candidates, self.input)
        features = as_features(self.features)
        columns = columns_of(candidates[name], features, name)
        subsets = [[place] for place in range(len(columns))]
        subsets += [list(range(len(columns)))] if len(columns) > 1 else []
        values: list[Sequence[Value]] = [[self.marker] * len(columns)]
        if isinstance(self.imputed, tuple):
            values.append(self.imputed)
        variants = [self._filled(candidates, name, columns, places, of) for of in values for places in subsets]
        count = row_count(candidates)
        outputs = choose_outputs(predictor.predict(concat_rows([candidates, *variants])), self.output)
        original, *parts = (take_rows(outputs, slice(k * count, (k + 1) * count)) for k in range(1 + len(variants)))
        tolerance = self.tolerance.after_rewriting(candidates[name])  # imputed values are rounded to the input's dtype
        otherwise_finite = _finite_elsewhere(candidates, name, columns)
        excesses: list[NDArray[np.float64]] = []
        messages: list[Callable[[int], str]] = []
        for k, places in enumerate(subsets):
            source = f"without features {comma_separated(features[place] for place in places)}"
            excesses.append(np.where(otherwise_finite & ~finite_rows(parts[k]), np.inf, 0.0))
            messages.append(lambda row, part=parts[k], source=source: _not_finite(part, row, source))  # type: ignore[misc]
            comparisons = []
            if self.imputed is not None:
                imputed = parts[len(subsets) + k]
                difference = output_differences(parts[k], imputed, tolerance, predictor.magnitudes(base))
                comparisons.append((difference, "with the imputed values"))
            if self.max_change is not None:
                difference = output_differences(parts[k], original, RoundingTolerance(0.0, self.max_change), {})
                comparisons.append((difference, "as it stands"))
            for difference, expected in comparisons:
                excesses.append(difference.excess)
                messages.append(
                    lambda row, d=difference, source=source, expected=expected: d.sentence(row, source, expected)  # type: ignore[misc]
                )
        excess = np.array(excesses)
        return Violations.beyond(excess.max(axis=0), lambda row: messages[int(excess[:, row].argmax())](row))

    def _filled(
        self, rows: Feed, name: str, columns: NDArray[np.intp], places: list[int], values: Sequence[Value]
    ) -> Feed:
        array = rows[name]
        markers = values is not self.imputed
        if markers and isinstance(self.marker, float) and kind_of(array.dtype) != "real" and array.dtype != "O":
            raise UsageError(f"marker= is missing: input {name!r} is {array.dtype.name}, which has no NaN")
        filled = np.empty((len(array), len(places)), array.dtype)
        filled[:] = np.array([values[place] for place in places], array.dtype)
        return with_columns(rows, name, columns[places], filled)


# Faults that a function which takes its one array without a name cannot be given.
_FAULTS_OF_NAMES = (": missing", ": another name", "an input more")


@dataclass(frozen=True)
class clean_rejection(Relation):
    """Malformed inputs raise one of `errors`.

    Applies to every model in onnxruntime as this package serves it, and to functions that validate their inputs. The
    inputs have one fault each, those of `strategies.malformed_inputs`: missing, unknown or misnamed, of another dtype,
    with an axis more or less, or longer along a fixed axis. Functions that cast, broadcast or ignore inputs are typical
    violations. Nothing else is searched.

    Args:
        errors: Exception classes that count as a rejection. `InputError` is a ValueError.

    Raises:
        UsageError: `errors` is empty or holds something else.

    A violation is a malformed input that gets an output, raises another exception, or crashes the process. A crash is
    only detected with `isolate=True`.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> def model(x):
        ...     if x.dtype != np.float32 or x.ndim != 2:
        ...         raise ValueError("x must be float32 with two axes")
        ...     return x
        >>> rows = np.ones((3, 2), np.float32)
        >>> ms.assert_relation(ms.serve(model), rows, ms.relations.clean_rejection(ValueError)).verdict.name
        'PASS'
    """

    errors: type[Exception] | tuple[type[Exception], ...] = (ValueError, TypeError, KeyError)
    name = "clean rejection"

    def __post_init__(self) -> None:
        errors = self.errors if isinstance(self.errors, tuple) else (self.errors,)
        self._normalize(errors=errors)
        if not errors or not all(isinstance(error, type) and issubclass(error, Exception) for error in errors):
            raise UsageError("errors must be classes of exceptions, such as InputError")

    @property
    def definition(self) -> str:
        return f"malformed inputs raise {comma_separated(error.__name__ for error in self._errors)}"

    @property
    def searched(self) -> bool:
        return False

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        """All rows violate it, or none: the faults are those of every row."""
        like = base if predictor.batch_size != 0 else {name: array[0, ...] for name, array in base.items()}
        source = input_source(predictor.predictor, like=like, max_batch=1, domain="like", empty=False)
        pass_array = predictor.signature is None and predictor.pass_array
        faults = [fault for fault in fault_names(source) if not (pass_array and fault.endswith(_FAULTS_OF_NAMES))]
        found = [message for fault in faults if (message := self._check_fault(predictor, source, fault, pass_array))]
        return Violations(np.full(row_count(candidates), bool(found)), None, "; ".join(found))

    def _check_fault(self, predictor: BatchedPredictor, source: Any, fault: str, pass_array: bool) -> str:
        """Return what happened instead of a rejection, or an empty text."""
        inputs = generate_malformed(source, fault)
        try:
            predictor.predictor.predict(next(iter(inputs.values())) if pass_array else dict(inputs))
        except ProcessCrashError as error:
            return f"{fault}: {error}"
        except self._errors:
            return ""
        except Exception as error:  # whatever a model raises instead of a rejection is the finding
            return f"{fault}: {type(error).__name__}: {error}"
        return f"{fault}: the model returned an output"

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        return self.errors if isinstance(self.errors, tuple) else (self.errors,)


@dataclass(frozen=True)
class minimum_functionality(Relation):
    """Every row of a table has its expected label.

    Applies to classifiers, for the few cases that no model may get wrong. A shuffled label encoding is a typical
    violation. The rows given to `assert_relation` are the table; nothing else is searched.

    Args:
        labels: One integer or string for each row of the table.
        perturb: Function of the rows by name (a dict of arrays), or of rows and a numpy generator, that returns rows of
            the same label.
        draws: Number of perturbed copies of each row, if `perturb` takes a generator.
        decode: How outputs become labels, as for `assert_accuracy`.
        output: Name of the output; needed if there are several.

    Raises:
        UsageError: A parameter is invalid.

    A violation is a row, or a perturbed copy, with another label. Scores with NaN have no label. `InputError` if the
    table holds one row twice with two labels.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> table = np.array([[0.9, 0.1], [0.2, 0.8]])
        >>> ms.assert_relation(ms.serve(lambda x: x), table, ms.relations.minimum_functionality([0, 1])).verdict.name
        'PASS'
    """

    labels: ArrayLike | Iterable[Label]
    _: KW_ONLY
    perturb: Transform | None = None
    draws: int = 4
    decode: Decoding = "argmax"
    output: str | None = None
    name = "minimum functionality"

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels if not isinstance(self.labels, Iterable) else list(self.labels)).tolist()
        self._normalize(labels=tuple(labels))
        if not labels or any(isinstance(label, bool) or not isinstance(label, (int, str)) for label in labels):
            raise UsageError("labels must be integers or strings, one for each row of the table")
        if self.perturb is not None and not takes_generator(self.perturb):
            self._normalize(draws=1)
        if self.draws < 1:
            raise UsageError(f"draws must be a whole number of at least 1, got {self.draws}")

    @property
    def definition(self) -> str:
        copies = f", as has each of {self.draws} perturbed copies" if self.perturb is not None else ""
        return f"every row of the table has its expected label{copies}"

    @property
    def searched(self) -> bool:
        return False

    def check(self, predictor: BatchedPredictor, candidates: Feed, base: Feed) -> Violations:
        expected = self._expected(candidates, base)
        found = [self._predicted(predictor, rows) for rows in (candidates, *self._perturbed(candidates))]
        wrong = np.array(
            [[one != label for one, label in zip(each, expected, strict=True)] for each in found], np.bool_
        )

        def message(row: int) -> str:
            first = int(wrong[:, row].argmax())
            copy = "" if first == 0 else f" for perturbed copy {first}"
            return f"the label is {found[first][row]!r}{copy} and {expected[row]!r} is expected"

        labeled = np.array([label is not None for label in expected], np.bool_)
        return Violations(labeled & wrong.any(axis=0), None, message)

    def _expected(self, rows: Feed, base: Feed) -> list[Label | None]:
        """Look up the label of each row in the table by its values; None for rows that are not in it."""
        labels: tuple[Label, ...] = self.labels  # type: ignore[assignment]
        if row_count(base) != len(labels):
            raise InputError(f"labels must be one for each of {row_count(base)} rows of the table, got {len(labels)}")
        table: dict[bytes, Label] = {}
        for key, label in zip(_keys(base), labels, strict=True):
            if table.setdefault(key, label) != label:
                raise InputError(f"the table has one row twice, once as {table[key]!r} and once as {label!r}")
        return [table.get(key) for key in _keys(rows)]

    def _perturbed(self, rows: Feed) -> list[Feed]:
        """Return the copies, row by row from the same seeds, so that the result for a row is the same in any batch."""
        if self.perturb is None:
            return []
        rng = np.random.default_rng if takes_generator(self.perturb) else lambda _: None
        copies = []
        for draw in range(self.draws):
            each = [take_rows(rows, slice(row, row + 1)) for row in range(row_count(rows))]
            copies.append(concat_rows([transformed(self.perturb, row, rng(draw)) for row in each]))
        return copies

    def _predicted(self, predictor: BatchedPredictor, rows: Feed) -> list[Label | None]:
        _, outputs = single_output(predictor.predict(rows), self.output)
        decoded = decode(outputs, self.decode)
        return [
            None if nan else label for label, nan in zip(decoded.labels.tolist(), decoded.invalid.tolist(), strict=True)
        ]


def finite_rows(arrays: Feed) -> NDArray[np.bool_]:
    """Return the rows (n,) without NaN or infinities in any array of real numbers."""
    count = len(next(iter(arrays.values())))
    found = np.ones(count, np.bool_)
    for array in arrays.values():
        if kind_of(array.dtype) == "real":
            numbers: NDArray[Any] = array if is_builtin_dtype(array.dtype) else array.astype(np.float32)
            found &= np.isfinite(numbers).reshape(count, -1).all(axis=1)
    return found


def _one_each(given: Value | Iterable[Value] | None, count: int) -> tuple[Value, ...] | None:
    if given is None:
        return None
    values = (given,) * count if isinstance(given, (int, float, str)) else tuple(given)
    if len(values) != count:
        raise UsageError(f"imputed must be one value, or one for each of {count} features, got {len(values)}")
    return values


def _finite_elsewhere(rows: Feed, name: str, columns: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return the rows that are finite in all other features."""
    if kind_of(rows[name].dtype) != "real":
        return finite_rows(rows)
    zeros: NDArray[Any] = np.zeros((row_count(rows), len(columns)), rows[name].dtype)
    return finite_rows(with_columns(rows, name, columns, zeros))


def _not_finite(outputs: Feed, row: int, source: str) -> str:
    name = next(name for name, array in outputs.items() if not finite_rows({name: array[row : row + 1]}).all())
    return f"output {name!r} is not finite {source}"


def _keys(rows: Feed) -> list[bytes]:
    return [
        hashlib.sha256(b"|".join(_bytes(array[i]) for array in rows.values())).digest() for i in range(row_count(rows))
    ]


def _bytes(array: NDArray[Any]) -> bytes:
    values = np.asarray(array)
    return repr(values.tolist()).encode() if values.dtype.kind in "OUT" else values.tobytes()
