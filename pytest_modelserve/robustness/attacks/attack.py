"""Base class of attacks, and the target that they query.

An attack is a frozen dataclass with a `name` and a method `run(target, rng)`. It proposes rows and calls
`target.query`, which asks the served model, counts the queries of each row, and records the first admissible row that
is predicted wrong. A row that is fooled, or whose queries are used up, leaves `target.active()`:

```python
@dataclass(frozen=True, kw_only=True)
class corners(Attack):
    queries: int = 100
    name: ClassVar[str] = "corners"

    def run(self, target: Target, rng: np.random.Generator) -> None:
        while (index := target.active()).size:                       # numbers of rows (k,)
            signs = rng.choice([-1.0, 1.0], (index.size, *target.threat.shape))
            candidates = target.threat.place(index, signs)           # base + eps * signs, admissible, served dtype
            answers = target.query(index, candidates)                # .margin (k,) float64, .fooled (k,) bool
```

`target.rows` (n, ...) and `target.labels` (n,) are the given ones, `target.classes` (n,) the columns of the labels in
the scores (None without scores), `target.threat` a `ThreatModel` with `place`, `project`, `norm`, `scale` (eps of each
feature). A candidate outside the threat model may be queried, and is never recorded. An attack with gradients computes
its steps elsewhere, projects them by `target.threat.project(index, rows)`, and transfers them by `target.query`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, ModelServeError, UsageError
from pytest_modelserve.metrics import Output, decode
from pytest_modelserve.robustness.attacks.threat_model import Norm, ThreatModel, called
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor
from pytest_modelserve.robustness.coordinates import Feed, take_rows
from pytest_modelserve.serving.inputs import select_output

DependentInputs = Mapping[str, Callable[[Feed], Any]]
"""Names of other inputs → function of all inputs by name that returns this input."""


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A search for admissible rows that a model predicts wrong.

    Args:
        queries: Largest number of rows that the served model is asked for each row under attack.
    """

    queries: int = 1000

    name: ClassVar[str]
    """Name in reports; unique within one assertion."""
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    """Threat models that the attack can search."""
    needs_scores: ClassVar[bool] = False
    """Whether the attack reads margins, so that a model of labels alone cannot be attacked."""
    changes_categories: ClassVar[bool] = True
    """Whether the attack changes columns of categories; one that does not needs another feature within `eps`."""
    is_optional: ClassVar[bool] = False
    """Whether the other attacks go on, with a note, where a UsageError says that this one does not fit the model."""
    source: ClassVar[str] = ""
    """The publication of the algorithm."""

    def __post_init__(self) -> None:
        self._check_count("queries")

    def _check_count(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} of {self.name} must be a whole number of at least 1, got {value!r}")

    @abstractmethod
    def run(self, target: Target, rng: np.random.Generator) -> None:
        """Query the target until no row is active or the attack has nothing more to try.

        Args:
            target: The model under attack with its rows; it records what is found.
            rng: Source of randomness.
        """


def check_proportion(name: str, value: object, *, positive: bool = False) -> None:
    """Raise UsageError unless a setting is a number from 0 (above 0 if `positive`) to 1."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not (0 < float(value) <= 1 or (value == 0 and not positive)):  # type: ignore[arg-type]
        least = "above 0" if positive else "at least 0"
        raise UsageError(f"{name} must be {least} and at most 1, got {value!r}")


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """The answers of the served model to candidates (k,).

    Args:
        margin: Score of the true class less the highest other score, negative where the prediction is wrong; ±1 for a
            model of labels alone, and -inf for NaN.
        fooled: Whether the prediction is not the label; NaN scores count as wrong.
        labels: The predicted labels.
        invalid: Whether the scores hold NaN.
    """

    margin: NDArray[np.float64]
    fooled: NDArray[np.bool_]
    labels: NDArray[Any]
    invalid: NDArray[np.bool_]


@dataclass(eq=False)
class Target:
    """A served model under attack: it answers queries, counts them, and records adversarial rows.

    Args:
        predictor: The served model.
        feed: All inputs by name, (n, ...).
        input_name: The input that is attacked.
        reader: How outputs become predictions and margins.
        threat: The admissible rows; its base is the attacked input.
        labels: Class labels (n,).
        limit: Largest number of queries of each row.
        dependent_inputs: Other inputs that follow from the attacked one.
        closed: Rows (n,) that are not attacked, as they are predicted wrong without any change.
    """

    predictor: BatchedPredictor
    feed: Feed
    input_name: str
    reader: AnswerReader
    threat: ThreatModel
    labels: NDArray[Any]
    limit: int
    _: KW_ONLY
    dependent_inputs: DependentInputs = field(default_factory=dict)
    closed: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        n = len(self.labels)
        self.queries: NDArray[np.int64] = np.zeros(n, np.int64)
        self.fooled: NDArray[np.bool_] = np.zeros(n, np.bool_)
        self.adversarial: NDArray[Any] = growing(self.feed[self.input_name])
        if self.closed is None:
            self.closed = np.zeros(n, np.bool_)

    @property
    def rows(self) -> NDArray[Any]:
        """The given rows of the attacked input, (n, ...)."""
        return self.feed[self.input_name]

    @property
    def classes(self) -> NDArray[np.intp] | None:
        """The column of each label in the scores, (n,); None for a model of labels alone."""
        return self.reader.classes

    def active(self) -> NDArray[np.intp]:
        """Return the numbers (k,) of the rows that are not fooled and have queries left."""
        return np.flatnonzero(~self.fooled & ~self.closed & (self.queries < self.limit))  # type: ignore[operator]

    def left(self, index: NDArray[np.intp]) -> NDArray[np.int64]:
        """Return how many queries the rows `index` (k,) have left."""
        return np.asarray(self.limit - self.queries[index])

    def query(self, index: NDArray[np.intp], candidates: NDArray[Any]) -> Answers:
        """Ask the served model for candidates (k, ...) of the rows `index` (k,), which may repeat; count and record.

        Raises:
            InputError: The model raises for a candidate; the message names the row.
        """
        if self.rows.dtype.kind in "fiu":
            candidates = candidates.astype(self.rows.dtype, copy=False)
        np.add.at(self.queries, index, 1)
        answers = self.answers(index, candidates)
        wrong = np.flatnonzero(answers.fooled & ~self.fooled[index])
        if wrong.size:
            wrong = wrong[self.threat.admissible(index[wrong], candidates[wrong])]
            rows, first = np.unique(index[wrong], return_index=True)
            self.adversarial[rows] = candidates[wrong[first]]
            self.fooled[rows] = True
        return answers

    def answers(self, index: NDArray[np.intp], candidates: NDArray[Any]) -> Answers:
        """Return the answers to candidates without counting or recording: to verify rows again."""
        return self.reader.read(predicted(self.predictor, index, self.feed_of(index, candidates)), index)

    def scores(self, index: NDArray[np.intp]) -> NDArray[np.float64] | None:
        """Return the scores (k, classes) of given rows, None for a model of labels alone; not counted."""
        return self.reader.scores(predicted(self.predictor, index, take_rows(self.feed, index)))

    def feed_of(self, index: NDArray[np.intp], candidates: NDArray[Any]) -> Feed:
        """Return all inputs of candidates (k, ...) of the rows `index` (k,)."""
        if self.rows.dtype.kind == "U":
            candidates = candidates.astype(np.str_)
        feed = {**take_rows(self.feed, index), self.input_name: candidates}
        for name, function in self.dependent_inputs.items():
            value = called(f"dependent[{name!r}]", function, feed)
            if value.shape != feed[name].shape:
                raise UsageError(
                    f"dependent[{name!r}] must return the input {name!r}, shape {feed[name].shape}; got {value.shape}"
                )
            feed[name] = value.astype(self.feed[name].dtype, copy=False)
        return feed


def predicted(predictor: BatchedPredictor, index: NDArray[np.intp], feed: Feed) -> Feed:
    """Return the outputs for inputs of the rows `index` (k,); InputError that names the row if the model raises."""
    try:
        return predictor.predict(feed)
    except UsageError:
        raise
    except Exception:
        for k, row in enumerate(index):
            try:
                predictor.predict(take_rows(feed, slice(k, k + 1)))
            except Exception as error:
                kind = "" if isinstance(error, ModelServeError) else f"{type(error).__name__}: "
                raise InputError(
                    f"inputs: {predictor.subject} raised for row {row}, as it is or with an admissible change ({kind}"
                    f"{error}); a model must answer every admissible row: narrow low= and high=, or fix the model"
                ) from error
        raise


def growing(rows: NDArray[Any]) -> NDArray[Any]:
    """Return a copy of rows, whose texts may get longer."""
    return rows.astype(object) if rows.dtype.kind == "U" else np.array(rows)


class AnswerReader:
    """Predictions and margins of the outputs of one model.

    Args:
        predictor: The served model.
        output: The output to read, and how it is decoded.
        labels: Class labels (n,), checked.
        outputs: The outputs for the given rows, from which the columns of the labels follow.
    """

    def __init__(self, predictor: BatchedPredictor, output: Output, labels: NDArray[Any], outputs: Feed) -> None:
        self._predictor = predictor.predictor
        self._output = output
        self._labels = labels
        found = self._labels_and_scores(outputs)
        self.classes: NDArray[np.intp] | None = None
        if found[1] is not None:
            self.classes = _columns_of_labels(labels, decode(found[0], output.decode).labels, found[1])

    def read(self, outputs: Feed, index: NDArray[np.intp]) -> Answers:
        """Return the answers for candidates of the rows `index` (k,)."""
        raw, scores = self._labels_and_scores(outputs)
        decoded = decode(raw, self._output.decode)
        fooled = (decoded.labels != self._labels[index]) | decoded.invalid
        if self.classes is None or scores is None:
            return Answers(np.where(fooled, -1.0, 1.0), fooled, decoded.labels, decoded.invalid)
        margins = np.where(decoded.invalid, -np.inf, margins_of(scores, self.classes[index]))
        return Answers(margins, fooled, decoded.labels, decoded.invalid)

    def scores(self, outputs: Feed) -> NDArray[np.float64] | None:
        """Return the scores (k, classes) among the outputs, None if there are none."""
        return self._labels_and_scores(outputs)[1]

    def _labels_and_scores(self, outputs: Feed) -> tuple[NDArray[Any], NDArray[np.float64] | None]:
        """Return the output that holds predictions, and scores (k, classes) if there are any."""
        _, raw = select_output(self._predictor, outputs, self._output.name, reads_labels=True)
        scores = raw
        is_label = raw.ndim < 2 or raw.dtype.kind != "f"
        if is_label and self._output.name is None and len(outputs) > 1:
            _, scores = select_output(self._predictor, outputs, None, reads_labels=False)
        if scores.dtype.kind != "f":
            return raw, None
        values = scores.astype(np.float64)
        if self._output.decode == "threshold":
            values = values.reshape(len(values), -1)
            return raw, np.concatenate([1 - values, values], axis=1)
        if callable(self._output.decode) or self._output.decode == "labels" or values.ndim != 2 or values.shape[1] < 2:
            return raw, None
        return raw, values


def margins_of(scores: NDArray[np.float64], classes: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the score of the true class less the highest other score, (k,)."""
    rows = np.arange(len(scores))
    others = scores.copy()
    others[rows, classes] = -np.inf
    with np.errstate(invalid="ignore"):
        return np.asarray(scores[rows, classes] - others.max(axis=1))


def _columns_of_labels(
    labels: NDArray[Any], predicted: NDArray[Any], scores: NDArray[np.float64]
) -> NDArray[np.intp] | None:
    """Return the column (n,) of each label in the scores, or None if it cannot be known.

    Labels are column numbers, or the sorted classes of a scikit-learn classifier; the predictions must agree.
    """
    count = scores.shape[1]
    highest = scores.argmax(axis=1)
    known = np.unique(labels)
    if labels.dtype.kind in "iu" and known.min() >= 0 and known.max() < count and (predicted == highest).all():
        return labels.astype(np.intp)
    if len(known) == count and (known[highest] == predicted).all():
        return np.searchsorted(known, labels).astype(np.intp)
    return None
