"""Attribute inference gate: how much better a sensitive column is guessed with a model than without it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import Evidence, Verdict, check_error_rates
from pytest_modelserve.metrics import Output, class_labels, decode
from pytest_modelserve.privacy.paired_gain import GainReport, PairedGain, by_group, check_max_gain, groups_of_rows
from pytest_modelserve.privacy.surrogate import (
    FeatureEncoder,
    Floats,
    answer_distributions,
    columns_of_classes,
    inputs_by_name,
    take_rows,
    train_surrogate,
)
from pytest_modelserve.progress import progress
from pytest_modelserve.serving.conversion import Frame, is_frame
from pytest_modelserve.serving.inputs import as_one_batch, labels_beside, select_output
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.serve import open_models
from pytest_modelserve.stats import Sampling
from pytest_modelserve.stats.intervals import check_count

if TYPE_CHECKING:
    from pytest_modelserve.serving import Predictor, Servable

_MOST_VALUES = 10
"""A column of numbers with more distinct values is guessed as its bin."""
_MOST_CATEGORIES = 50
_TRIED_IN_A_BIN = 5
_FOLDS = 5
_FEWEST_KNOWN = 20
_RIDGE = 1e-3
_CLOSEST = 1e-5
"""Answers are compared in standard deviations; closer ones count as equal, as rounding moves them."""

_REPORT = GainReport(
    gate="attribute leak",
    rows="attacked rows",
    without="guessed without the model",
    having="with it",
    attack="Fredrikson et al. 2015, ACM CCS; against imputation: Jayaraman & Evans 2022, ACM CCS",
    assumption="an attacker who knows the other columns and some rows wholly",
    summaries={
        Verdict.PASS: "the column is guessed no better with the model than its budget",
        Verdict.FAIL: "the column is guessed better with the model than its budget",
        Verdict.INCONCLUSIVE: "not enough rows to decide how much better the column is guessed with the model",
    },
    remedy="train without the column, answer less (labels, ms.Round), give nobody the answers of others, or train "
    "privately: docs/privacy.md",
)


def measure_attribute_leak(
    predictor: Servable,
    inputs: Any,
    labels: Any = None,
    *,
    attribute: int | str,
    max_gain: float,
    bins: int = 5,
    known: float = 0.5,
    sees_answer: bool = True,
    output: Output | str | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure how much better a sensitive column of a row is guessed with the model than without it.

    The attacker knows the other columns of a row, its true label if `labels` are given, and all of some other rows. A
    small network that is trained on these guesses the column without the model. With the model, each possible value is
    put into the row, and the answers are compared with the row's own answer and the true label (model inversion);
    another network reads the answer, too. The attacks are weighted on the known rows. The gain is the difference in
    correct guesses on the other rows, with a paired interval (Tango).

    Rows are best those of the training data, about which a model can remember more. Rows that are equal in all columns
    are known or attacked together, and count as one in the interval.

    Args:
        predictor: The model to judge: whatever `ms.serve` takes.
        inputs: An array, a tensor or a list (n, columns), a frame, or a mapping of input names to arrays.
        labels: True labels (n,), if the attacker knows them.
        attribute: The sensitive column: its number in the one input, its name in the frame, or the name of an input
            of one number or text a row. Rows in which it is missing are left out.
        max_gain: Largest gain that passes, between 0 and 1 (0.05 is five points of rows guessed right).
        bins: A column of more than ten different numbers is guessed as one of so many bins, of about as many rows each.
        known: Proportion of the rows that the attacker knows wholly.
        sees_answer: Whether he has the model's answer to a row whose column he guesses. Otherwise he has the true label
            and can ask the model.
        output: The output that he sees, by name or as `ms.Output` (default: all).
        sampling: Groups of rows that depend on each other, as `ms.Sampling(groups=ids)`: a group is known or attacked.
            By default equal rows are a group; with `ms.Sampling()` every row is independent, also equal ones.
        seed: Seed of the rows that are known, and of the networks.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.

    Returns:
        The evidence: the gain, and the proportions of rows guessed right without and with the model. `n` is the number
        of attacked rows, or of their groups.

    Raises:
        UsageError: For an unknown column, a budget outside (0, 1), or an attacker who has neither answer nor label.
        InputError: For a column with a single value or more than 50 categories, one whose other values are rarer than
            `max_gain`, too few rows, and NaN outputs.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rows = np.random.default_rng(0).normal(size=(600, 3))
        >>> model = ms.serve(lambda x: x @ np.array([[1.0], [2.0], [0.0]]))
        >>> found = ms.measure_attribute_leak(model, rows, attribute=1, max_gain=0.05)  # the answer gives it away
        >>> found.verdict.name
        'FAIL'
        >>> ms.measure_attribute_leak(model, rows, attribute=2, max_gain=0.15).verdict.name  # no answer depends on it
        'PASS'
    """
    started = time.perf_counter()
    check_error_rates(confidence=confidence, alpha=alpha)
    check_max_gain(max_gain, "rows")
    if not 0 < known < 1:
        raise UsageError(f"known must be between 0 and 1, got {known}")
    bins = check_count("bins", bins, minimum=2)
    check_count("seed", seed)
    if isinstance(attribute, bool) or not isinstance(attribute, (int, np.integer, str)):
        raise UsageError(f"attribute must be the number or the name of a column, got {attribute!r}")
    if not sees_answer and labels is None:
        raise UsageError("sees_answer=False needs labels: an attacker who has neither gains nothing from the model")
    data, truth = (as_one_batch(inputs), None) if labels is None else labeled_rows(inputs, labels)
    with open_models(predictor, inputs=data) as (batch, (served,)):
        column = _Column.of(batch, attribute, data)
        present = np.flatnonzero(~_is_missing(column.values))
        groups = groups_of_rows(batch, sampling)
        order = by_group(np.random.default_rng(seed).permutation(present), groups)
        split = _split(groups[order], known)
        values = _Values.of(column.values[order[:split]], bins, attribute)
        if min(split, len(order) - split) < _FEWEST_KNOWN:
            raise InputError(
                f"inputs have {len(order)} rows with the column {attribute!r}, {split} of them known: at least "
                f"{_FEWEST_KNOWN} must be known and as many attacked, each group of equal rows on one side"
            )
        rows = _Rows(column, order, split, None if truth is None else class_labels(np.asarray(truth), what="labels"))
        commonest = _commonest(values.numbers(column.values[order]), attribute, max_gain)
        guesses = _attack(served, rows, values, Output.of(output), sees_answer, seed)
        subject = served.subject
    having, without = (guess[split:] == values.numbers(column.values[order[split:]]) for guess in guesses)
    return PairedGain.of(having, without, groups[order[split:]]).evidence(
        _REPORT,
        subject,
        max_gain,
        findings=(
            f"column {attribute!r} as {values.described}; the most frequent has {100 * commonest:.1f} % of the rows",
            f"the attacker has the other columns, {split} whole rows{_more_of(sees_answer, truth is not None)}",
        ),
        details={
            "seed": seed,
            "attribute": str(attribute),
            "values": values.names,
            "guessed": {"without": round(float(without.mean()), 4), "with": round(float(having.mean()), 4)},
        },
        started=started,
        confidence=confidence,
        alpha=alpha,
    )


def _split(groups: NDArray[np.intp], known: float) -> int:
    """Return how many of the first rows, in order of their groups, the attacker knows: whole groups."""
    starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1]))
    return int(np.append(starts, len(groups))[np.searchsorted(starts, round(known * len(groups)))])


def _commonest(numbers: NDArray[np.intp], attribute: int | str, max_gain: float) -> float:
    """Return the proportion of the most frequent value; InputError if it leaves no more than `max_gain` to gain."""
    commonest = float(np.bincount(numbers).max() / len(numbers))
    if 1 - commonest <= max_gain:
        raise InputError(
            f"column {attribute!r} has one value in {100 * commonest:.1f} % of the rows, so that max_gain={max_gain:g} "
            "would pass a model that gives away every other one: give as many rows of each value, or a smaller max_gain"
        )
    return commonest


def _more_of(sees_answer: bool, has_labels: bool) -> str:
    more = ["the model's answer"] * sees_answer + ["the true label"] * has_labels
    return f", {' and '.join(more)} of each row, and may ask the model"


@dataclass(frozen=True, slots=True, eq=False)
class _Column:
    """The sensitive column of a batch: its `values` (n,), the name of its input, and its number there.

    The input of an array alone is called "". A column that is an input of its own has no number.
    """

    batch: Any
    values: NDArray[Any]
    name: str
    index: int | None

    @classmethod
    def of(cls, batch: Any, attribute: int | str, data: Any) -> _Column:
        named = inputs_by_name(batch)
        if attribute in named and isinstance(batch, Mapping):
            values = np.asarray(batch[attribute])
            if values.size != len(values):
                raise UsageError(f"attribute {attribute!r} has shape {values.shape}: name one column of it by number")
            return cls(batch, values.reshape(-1), str(attribute), None)
        if is_frame(data) and isinstance(attribute, str):
            columns = list(map(str, data.columns))
            if attribute not in columns:
                raise UsageError(unknown_choice("attribute", attribute, columns))
            attribute = columns.index(attribute)
        if len(named) != 1 or isinstance(attribute, str):
            raise UsageError(
                unknown_choice("attribute", attribute, named)
                if isinstance(batch, Mapping)
                else f"attribute must be the number of a column of the array, got {attribute!r}"
            )
        ((name, array),) = named.items()
        array = np.asarray(array)
        if array.ndim != 2 or not -array.shape[1] <= attribute < array.shape[1]:
            raise UsageError(f"attribute {attribute!r} is no column of inputs of shape {array.shape}")
        return cls(batch, array[:, attribute], name, attribute)

    def others(self, rows: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """Return the other columns of some rows by name."""
        rest = {name: np.asarray(values) for name, values in inputs_by_name(self.batch).items()}
        own = rest.pop(self.name)
        if self.index is not None:
            rest[self.name] = np.delete(own, self.index, axis=1)
        return {name: values[rows] for name, values in rest.items() if values.size}

    def with_value(self, rows: NDArray[np.intp], value: Any) -> Any:
        """Return some rows in which the column has another value."""
        batch = take_rows(self.batch, rows)
        if isinstance(batch, Frame):
            if hasattr(batch.native, "iloc"):
                return Frame(batch.native.assign(**{self.name: value}))
            import polars

            return Frame(batch.native.with_columns(polars.lit(value).alias(self.name)))
        changed = np.array(inputs_by_name(batch)[self.name])
        changed[... if self.index is None else (slice(None), self.index)] = value
        return {**batch, self.name: changed} if isinstance(batch, Mapping) else changed


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows in a random order, of which the attacker knows the first `split` wholly; `labels` (n,) if he knows them."""

    column: _Column
    order: NDArray[np.intp]
    split: int
    labels: NDArray[Any] | None


@dataclass(frozen=True, slots=True, eq=False)
class _Values:
    """The possible values of a column: categories, or bins of numbers with the values that are tried in each."""

    names: list[str]
    tried: list[list[Any]]
    categories: NDArray[Any] | None
    edges: Floats | None

    @classmethod
    def of(cls, column: NDArray[Any], bins: int, attribute: int | str) -> _Values:
        """Return the values in the rows that the attacker knows."""
        is_number = column.dtype.kind in "iuf"
        found = np.unique(column if column.dtype.kind in "iufb" else column.astype(np.str_))
        if len(found) < 2:
            raise InputError(f"column {attribute!r} has one value in all known rows: there is nothing to guess")
        if not is_number or len(found) <= _MOST_VALUES:
            if len(found) > _MOST_CATEGORIES:
                raise InputError(
                    f"column {attribute!r} has {len(found)} categories in the known rows, at most {_MOST_CATEGORIES} "
                    "can be guessed: group them"
                )
            return cls([str(each) for each in found], [[each] for each in found.tolist()], found, None)
        numbers = column.astype(np.float64)
        edges = np.unique(np.quantile(numbers, np.arange(1, bins) / bins, method="inverted_cdf"))
        edges = edges[edges < numbers.max()] if edges[0] < numbers.max() else found[-2:-1].astype(np.float64)
        place = np.searchsorted(edges, numbers, side="left")
        parts = [numbers[place == each] for each in range(len(edges) + 1)]
        parts = [part[np.isfinite(part)] if np.isfinite(part).any() else part[:1] for part in parts]
        levels = np.arange(0.5, _TRIED_IN_A_BIN) / _TRIED_IN_A_BIN
        tried = [np.unique(np.quantile(part, levels)).tolist() for part in parts]
        ends = [f"{each:.4g}" for each in edges]
        names = [f"to {ends[0]}", *(f"{a} to {b}" for a, b in pairwise(ends)), f"over {ends[-1]}"]
        return cls(names, tried, None, edges)

    @property
    def described(self) -> str:
        kind = "values" if self.edges is None else "bins"
        listed = ", ".join(self.names[:6]) + (", …" if len(self.names) > 6 else "")
        return f"one of {len(self.names)} {kind} ({listed})"

    def numbers(self, column: NDArray[Any]) -> NDArray[np.intp]:
        """Return the number of the value of each row, (n,); one more than all for a value that no known row has."""
        if self.edges is not None:
            return np.asarray(np.searchsorted(self.edges, column, side="left"))
        assert self.categories is not None
        values = column if column.dtype.kind in "iufb" else column.astype(np.str_)
        place = np.minimum(np.searchsorted(self.categories, values), len(self.categories) - 1)
        return np.asarray(np.where(self.categories[place] == values, place, len(self.categories)))


def _is_missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind == "f":
        return np.asarray(np.isnan(values))
    if values.dtype.kind == "O":
        return np.array([each is None or each != each for each in values], dtype=np.bool_)
    return np.zeros(len(values), dtype=np.bool_)


def _attack(
    served: Predictor, rows: _Rows, values: _Values, output: Output, sees_answer: bool, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the guessed value of every row in order, with the model and without it; only those attacked count."""
    order, split = rows.order, rows.split
    target = np.eye(len(values.tried) + 1)[values.numbers(rows.column.values[order[:split]])][:, :-1]
    features = _features(rows)
    prior = _log_posterior(features, target, seed)
    evidence = [prior]
    own = _Answer.of(served, take_rows(rows.column.batch, order), output, rows)
    if not sees_answer and own.true_label is None:
        raise UsageError(f"sees_answer=False needs a classifier: {served.subject} gives no score of the true label")
    if sees_answer:
        evidence.append(_log_posterior(np.concatenate([features, own.features(split)], axis=1), target, seed))
    tried: list[Floats] = []
    for candidates in progress(values.tried, "values"):
        answers = (_Answer.of(served, rows.column.with_value(order, value), output, rows) for value in candidates)
        found = [np.stack(list(each.evidence(own, split, sees_answer))) for each in answers]
        tried.append(np.max(found, axis=0))
    evidence += list(np.stack(tried, axis=-1))  # each (n, values)
    stacked = np.stack(evidence, axis=-1)  # (n, values, kinds of evidence)
    weights = _weights(stacked[:split], target)
    return (stacked @ weights).argmax(axis=1), prior.argmax(axis=1)


def _features(rows: _Rows) -> NDArray[np.float32]:
    """Return what the attacker knows of each row without the model, (n, features)."""
    others = rows.column.others(rows.order)
    known = {name: values[: rows.split] for name, values in others.items()}
    parts = [FeatureEncoder.of(known).encode(others)] if known else []
    if rows.labels is not None:
        labels = rows.labels[rows.order]
        parts.append((labels[:, None] == np.unique(labels[: rows.split])).astype(np.float32))
    parts.append(np.zeros((len(rows.order), 1), np.float32))  # where there is nothing else
    return np.concatenate(parts, axis=1)


def _log_posterior(features: NDArray[np.float32], target: Floats, seed: int) -> Floats:
    """Return the log probability of each value, (n, values); networks do not predict rows that they learned."""
    split, values = target.shape
    found = np.empty((len(features), values))
    found[split:] = train_surrogate(features[:split], target, seed=seed).probabilities(features[split:])
    fold = np.arange(split) % _FOLDS
    for number in range(_FOLDS):
        rest, out = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        found[out] = train_surrogate(features[rest], target[rest], seed=seed).probabilities(features[out])
    return np.log(np.maximum(found, 1e-6))


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """The answers to rows: numbers (n, numbers), labels as text (n, labels), and log probabilities of true labels."""

    numbers: Floats
    texts: NDArray[Any]
    true_label: Floats | None

    @classmethod
    def of(cls, served: Predictor, inputs: Any, output: Output, rows: _Rows) -> _Answer:
        found = served.predict(inputs)
        if output.name is not None:
            name, value = select_output(served, found, output.name)
            found = {name: value}
        n = len(rows.order)
        flat = {name: np.asarray(value).reshape(n, -1) for name, value in found.items()}
        numbers = [value.astype(np.float64) for value in flat.values() if value.dtype.kind == "f"]
        texts = [value.astype(np.str_) for value in flat.values() if value.dtype.kind != "f"]
        all_numbers = np.concatenate([np.empty((n, 0)), *numbers], axis=1)
        if np.isnan(all_numbers).any():
            rows_with_nan = int(np.isnan(all_numbers).any(axis=1).sum())
            raise InputError(f"outputs of {served.subject} hold NaN in {rows_with_nan} rows: remove them")
        all_texts = np.concatenate([np.empty((n, 0), np.str_), *texts], axis=1)
        return cls(all_numbers, all_texts, _of_true_label(served, found, output, rows))

    def features(self, split: int) -> NDArray[np.float32]:
        """Return the answers as features of a network, with the scales of the first `split` rows."""
        rows = {"numbers": self.numbers, "texts": self.texts}
        used = {name: values for name, values in rows.items() if values.size}
        return FeatureEncoder.of({name: values[:split] for name, values in used.items()}).encode(used)

    def evidence(self, own: _Answer, split: int, sees_answer: bool) -> Iterator[Floats]:
        """Yield how well these answers, to a value that was tried, fit what is known of each row: (n,) each."""
        if sees_answer and own.numbers.size:
            is_share = bool(own.numbers.min() >= 0 and own.numbers.max() <= 1)
            for scale in (np.asarray, _logarithms)[: 1 + is_share]:
                tried, seen = scale(self.numbers), scale(own.numbers)
                std = seen[:split].std(axis=0)
                distance = np.sqrt((((tried - seen) / np.where(std > 0, std, 1.0)) ** 2).mean(axis=1))
                yield -distance
                yield -np.log(distance + _CLOSEST)
        if sees_answer and own.texts.size:
            yield (self.texts == own.texts).mean(axis=1)
        if self.true_label is not None:
            yield self.true_label


def _logarithms(numbers: Floats) -> Floats:
    """Return logarithms of probabilities: near 0 they tell answers apart that differ by nothing else."""
    return np.log(np.maximum(numbers, 1e-30))


def _of_true_label(served: Predictor, found: Mapping[str, NDArray[Any]], output: Output, rows: _Rows) -> Floats | None:
    """Return the log probability of each row's true label, or whether it is the answer, (n,); None if unknown."""
    if rows.labels is None:
        return None
    labels = rows.labels[rows.order]
    try:
        name, scores = select_output(served, found, output.name, reads_labels=False)
    except UsageError:  # several outputs, of which none is known to be the scores
        return None
    if (named := labels_beside(found, name)) is not None and scores.ndim == 2 and output.decode in (None, "argmax"):
        labels = columns_of_classes(labels, named, scores.argmax(axis=1), scores.shape[1])
        scores = np.pad(scores, ((0, 0), (0, max(int(labels.max()) + 1 - scores.shape[1], 0))))
    is_one = scores.reshape(len(scores), -1).shape[1] == 1  # a regression, unless it is said to be a probability
    is_columns = labels.dtype.kind in "iu" and output.decode in (("threshold",) if is_one else (None, "argmax"))
    distribution = answer_distributions(scores, output.scores) if is_columns else None
    if distribution is not None and labels.min() >= 0 and labels.max() < distribution.shape[1]:
        return np.asarray(np.log(np.maximum(distribution[np.arange(len(labels)), labels], 1e-6)))
    if scores.dtype.kind == "f" and output.decode is None:
        return None  # a regression
    return np.asarray(decode(scores, output.decode).labels.astype(np.str_) == labels.astype(np.str_), np.float64)


def _weights(evidence: Floats, target: Floats) -> Floats:
    """Return the weight of each kind of evidence (n, values, kinds), by a conditional logit on known rows.

    Source: McFadden 1974, in Frontiers in Econometrics, 105–142. A small ridge keeps weights finite.
    """
    from scipy.optimize import minimize

    kinds = evidence.shape[2]

    def loss(weights: Floats) -> tuple[float, Floats]:
        scores = evidence @ weights
        scores = scores - scores.max(axis=1, keepdims=True)
        probabilities = np.exp(scores)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        chosen = np.maximum((probabilities * target).sum(axis=1), 1e-12)
        gradient = np.einsum("nv,nvk->k", probabilities - target, evidence) / len(target)
        return float(-np.log(chosen).mean() + 0.5 * _RIDGE * weights @ weights), gradient + _RIDGE * weights

    start = np.zeros(kinds)
    start[0] = 1.0
    found: Floats = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    return found
