"""Extraction gate: how much closer a copy gets that learns from a model's answers than one from true labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import Evidence, Verdict, check_error_rates
from pytest_modelserve.metrics import Output, class_labels, decode
from pytest_modelserve.privacy.paired_gain import (
    GainReport,
    PairedGain,
    by_group,
    check_max_gain,
    groups_of_rows,
    numbers_of_rows,
)
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
from pytest_modelserve.serving.inputs import count_rows, labels_beside, select_output
from pytest_modelserve.serving.labels import labeled_rows
from pytest_modelserve.serving.serve import as_predictor, open_models
from pytest_modelserve.stats import Sampling
from pytest_modelserve.stats.intervals import check_count
from pytest_modelserve.training.train import ModelSource, train
from pytest_modelserve.training.train_spec import TrainSpec

if TYPE_CHECKING:
    from pytest_modelserve.serving import Predictor, Servable

Copy = Callable[[Any, NDArray[np.float64], int], Callable[[Any], ArrayLike]]
"""Trains on rows and targets (n, classes) from a seed; returns a function from rows to scores (n, classes)."""

_FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Parts of the query budget at which the curve has a point."""
_FEWEST_QUERIES = 8
_VALIDATION = 0.2
"""The proportion of the queries on which an attacker decides whether probabilities or labels teach more."""

_REPORT = GainReport(
    gate="extraction",
    rows="held-out rows",
    without="copy from true labels",
    having="from answers",
    attack="Tramèr et al. 2016, USENIX Security; Orekondy et al. 2019, CVPR",
    assumption="an attacker with rows like these and this copy",
    summaries={
        Verdict.PASS: "a copy gains no more from the model's answers than its budget",
        Verdict.FAIL: "a copy gains more from the model's answers than its budget",
        Verdict.INCONCLUSIVE: "not enough held-out rows to decide how much a copy gains from the model's answers",
    },
    remedy="answer less (labels, ms.Round, ms.TopKMask), allow fewer queries a client, or see what limits each costs: "
    "docs/privacy.md",
)


def measure_extraction(
    predictor: Servable,
    inputs: Any,
    labels: Any = None,
    *,
    queries: int | Sequence[int],
    max_gain: float,
    copy: ModelSource | Copy | None = None,
    output: Output | str | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    alpha: float = 0.001,
) -> Evidence:
    """Measure how much a copy of a classifier gains from the model's answers to a number of queries.

    An attacker sends rows, and trains a copy on the answers: on probabilities or labels, whichever teach more on a part
    of the queries. Without the model he would train the same copy on the true labels of the same rows. The gain is by
    how much the first agrees with the model on more held-out rows than the second, with a paired interval (Tango).
    Queries are drawn at random from the distinct rows of `inputs`; the other rows are held out, but those that equal a
    query. Equal rows count as one in the interval.

    The verdict holds for this attacker: rows like `inputs`, this copy, these queries. Others may gain more.

    Args:
        predictor: The model to judge, a classifier: whatever `ms.serve` takes.
        inputs: An array, a tensor or a list (n, ...), a frame, or a mapping of input names to arrays: rows that a
            client could send, best not training rows. A DataLoader of pairs holds inputs and labels.
        labels: True class labels (n,), which the copy without the model learns.
        queries: Number of queries that a client can send unnoticed, such as the rate limit times a month; or several,
            the points of the curve, of which the largest is judged.
        max_gain: Largest gain that passes, between 0 and 1 (0.05 is five points of agreement).
        copy: What the attacker trains: an `ms.ModelSource` with an `ms.TrainSpec`, of which only the data are replaced;
            or a function `copy(rows, targets, seed)` that returns a function from rows to scores (n, classes), where
            `targets` (n, classes) are probabilities. By default a small network, trained without torch.
        output: The output that the attacker sees, by name or as `ms.Output`, which also says how labels are decoded.
            Required where the model has several, unless they are those of a scikit-learn classifier.
        sampling: Groups of rows that depend on each other, as `ms.Sampling(groups=ids)`: a group is queried or held
            out. By default equal rows are a group; with `ms.Sampling()` every row is independent, also equal ones.
        seed: Seed of the queries and the copies.
        confidence: Confidence of PASS.
        alpha: Error rate of FAIL.

    Returns:
        The evidence: the gain, the agreement of both copies, and in the details a curve over numbers of queries. `n` is
        the number of held-out rows, or of their groups.

    Raises:
        UsageError: For queries that leave no row, a budget outside (0, 1), and a copy that cannot be trained.
        InputError: For inputs and labels that do not fit, and NaN outputs.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rows = np.random.default_rng(0).normal(size=(900, 4))
        >>> model = ms.serve(lambda x: (x[:, 0] > 0).astype(int))
        >>> found = ms.measure_extraction(model, rows, rows[:, 0] > 0, queries=100, max_gain=0.05)
        >>> found.verdict.name, found.value
        ('PASS', 0.0)
    """
    started = time.perf_counter()
    check_error_rates(confidence=confidence, alpha=alpha)
    check_max_gain(max_gain, "agreement")
    check_count("seed", seed)
    data, labels = labeled_rows(inputs, labels)
    with open_models(predictor, inputs=data) as (batch, (served,)):
        answers = _Answers.of(served, batch, labels, Output.of(output))
        subject = served.subject
    groups = groups_of_rows(batch, sampling)
    order = by_group(np.random.default_rng(seed).permutation(len(groups)), groups)
    distinct = np.sort(np.unique(numbers_of_rows(batch)[order], return_index=True)[1])
    counts = _query_counts(queries, len(order), len(distinct))
    queried = order[distinct[: counts[-1]]]
    held_out = order[~np.isin(groups[order], groups[queried])]
    if not held_out.size:
        raise UsageError(f"queries={counts[-1]} leave no group of rows that is held out: give fewer")
    train_copy = _trainer(copy)
    targets = answers.one_hot(answers.labels)
    is_soft = answers.probabilities is not None and (
        copy is not None or _probabilities_teach_more(batch, answers, queried, seed)
    )
    if is_soft:
        assert answers.probabilities is not None
        targets = answers.probabilities
    curve = []
    for count in progress(counts, "copies"):
        rows = queried[:count]
        agreements = [
            _answers_of(
                train_copy(take_rows(batch, rows), wanted[rows], seed), take_rows(batch, held_out), len(held_out)
            )
            for wanted in (targets, answers.one_hot(answers.truth))
        ]
        having, without = (found == answers.labels[held_out] for found in agreements)
        curve.append(PairedGain.of(having, without, groups[held_out]))
    learned_from = "probabilities" if is_soft else "labels"
    return curve[-1].evidence(
        _REPORT,
        subject,
        max_gain,
        findings=(
            "agreement with the model by queries, from answers and from true labels:",
            *_curve_lines(counts, curve),
            f"the copy learned from the model's {learned_from}",
        ),
        details={
            "seed": seed,
            "learned_from": learned_from,
            "extraction": {
                "queries": counts,
                "answers": [round(float(each.having.mean()), 4) for each in curve],
                "labels": [round(float(each.without.mean()), 4) for each in curve],
            },
        },
        started=started,
        confidence=confidence,
        alpha=alpha,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Answers:
    """A model's labels and the true ones as numbers of classes, (n,) each, and its probabilities if it gives them."""

    labels: NDArray[np.intp]
    truth: NDArray[np.intp]
    probabilities: Floats | None
    classes: int

    @classmethod
    def of(cls, predictor: Predictor, inputs: Any, labels: ArrayLike, output: Output) -> _Answers:
        found = predictor.predict(inputs)
        name, scores = select_output(predictor, found, output.name, reads_labels=False)
        how = output.decode
        if how is None and scores.dtype.kind == "f" and scores.reshape(len(scores), -1).shape[1] == 1:
            raise UsageError(
                f"output {name!r} of {predictor.subject} has one number a row: for the probability of class 1 give "
                "output=ms.Output(decode='threshold'); this gate takes classifiers"
            )
        decoded = decode(scores, how)
        if decoded.invalid.any():
            raise InputError(
                f"output {name!r} of {predictor.subject} holds NaN in {int(decoded.invalid.sum())} rows: remove them"
            )
        truth = class_labels(np.asarray(labels), what="labels")
        if len(truth) != count_rows(inputs):
            raise InputError(f"there are {len(truth)} labels for {count_rows(inputs)} rows of inputs")
        probabilities = answer_distributions(scores, output.scores) if how in (None, "argmax", "threshold") else None
        named = None if how == "threshold" or probabilities is None else labels_beside(found, name)
        if named is not None and probabilities is not None:
            columns = probabilities.shape[1]
            truth = columns_of_classes(truth, named, decoded.labels, columns)
            more = max(int(truth.max()) + 1 - columns, 0)
            probabilities = np.pad(probabilities, ((0, 0), (0, more)))  # of labels that the model does not know
        if probabilities is None or truth.dtype.kind not in "iu":
            if truth.dtype.kind != decoded.labels.dtype.kind and "U" in (truth.dtype.kind, decoded.labels.dtype.kind):
                raise InputError(
                    f"labels are {truth[:1].tolist()} … and the model's are {decoded.labels[:1].tolist()} …: give "
                    "labels of the same kind, or output=ms.Output(decode=) with a function that returns it"
                )
            classes, numbers = np.unique(np.concatenate([decoded.labels, truth]), return_inverse=True)
            split = np.split(numbers, [len(truth)])
            return cls(split[0], split[1], None, len(classes))
        classes_ = probabilities.shape[1]
        outside = np.flatnonzero((truth < 0) | (truth >= classes_))
        if outside.size:
            raise InputError(
                f"label {truth[outside[0]]} in row {outside[0]} has no column: the model scores the classes 0 to "
                f"{classes_ - 1}"
            )
        return cls(decoded.labels.astype(np.intp), truth.astype(np.intp), probabilities, classes_)

    def one_hot(self, labels: NDArray[np.intp]) -> Floats:
        return np.eye(self.classes)[labels]


def _query_counts(queries: int | Sequence[int], rows: int, distinct: int) -> list[int]:
    is_one = isinstance(queries, (int, np.integer))
    is_several = not is_one and isinstance(queries, Iterable)
    given: list[Any] = [queries] if is_one else list(queries) if is_several else []  # type: ignore[arg-type]
    if not given or any(isinstance(each, bool) or not isinstance(each, (int, np.integer)) for each in given):
        raise UsageError(f"queries must be a number of queries, or several of them, got {queries!r}")
    most = max(given)
    if min(given) < _FEWEST_QUERIES or most >= distinct:
        shown = f"{rows} rows" if distinct == rows else f"{distinct} distinct rows"
        raise UsageError(
            f"queries must be at least {_FEWEST_QUERIES} and fewer than the {shown} of inputs, as the other rows are "
            f"held out; got {most if most >= distinct else min(given)}"
        )
    if is_one:
        given = [round(part * most) for part in _FRACTIONS if round(part * most) >= _FEWEST_QUERIES]
    return sorted({int(each) for each in given} | {int(most)})


def _best(scores: ArrayLike, rows: int) -> NDArray[np.intp]:
    """Return the class with the highest score of each row."""
    values = np.asarray(scores)
    if values.ndim != 2 or len(values) != rows:
        raise UsageError(f"copy must return scores of shape ({rows} rows, classes); got {values.shape}")
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise UsageError(f"copy returns NaN in {int(np.isnan(values).any(axis=1).sum())} of {rows} rows")
    return np.asarray(values.argmax(axis=1))


def _answers_of(copy: Any, rows: Any, count: int) -> NDArray[np.intp]:
    """Return the classes that a trained copy answers to `count` rows."""
    if not callable(copy):
        raise UsageError(f"copy must return a function from rows to scores; got {type(copy).__name__}")
    return _best(copy(rows), count)


def _trainer(copy: ModelSource | Copy | None) -> Copy:
    """Return the function that trains a copy."""
    if copy is None:
        return _train_network
    if isinstance(copy, ModelSource):
        return _source_trainer(copy)
    if not callable(copy):
        raise UsageError(
            f"copy must be ms.ModelSource(...) or a function copy(rows, targets, seed), got {type(copy).__name__}"
        )
    return copy


def _train_network(rows: Any, targets: Floats, seed: int) -> Callable[[Any], Floats]:
    encoder = FeatureEncoder.of(rows)
    network = train_surrogate(encoder.encode(rows), targets, seed=seed)
    return lambda others: network.probabilities(encoder.encode(others))


def _source_trainer(source: ModelSource) -> Copy:
    spec = source.fit
    if not isinstance(spec, TrainSpec) or not isinstance(spec.labels, str):
        raise UsageError("copy needs a source whose fit is ms.TrainSpec(...) with one name of labels: pass a function")
    labels = spec.labels

    def train_source(rows: Any, targets: Floats, seed: int) -> Callable[[Any], ArrayLike]:
        named = inputs_by_name(rows)
        if named.keys() != set(spec.input_names):
            if len(named) != 1 or len(spec.input_names) != 1:
                raise UsageError(
                    f"copy takes {', '.join(map(repr, spec.input_names))}, and inputs has {', '.join(map(repr, named))}"
                )
            named = {spec.input_names[0]: np.asarray(next(iter(named.values())))}
        # Probabilities teach more than labels, where the loss takes them.
        wanted = targets.astype(np.float32) if spec.loss == "cross_entropy" else targets.argmax(axis=1)
        trained = train(replace(source, name=f"{source.name}-copy", data={**named, labels: wanted}), seed=seed)

        def scores(others: Any) -> ArrayLike:
            with as_predictor(trained) as predictor:
                return select_output(predictor, predictor.predict(others), spec.output)[1]

        return scores

    return train_source


def _probabilities_teach_more(batch: Any, answers: _Answers, queried: NDArray[np.intp], seed: int) -> bool:
    """Return whether probabilities teach the network more than labels do, on a part of the queries."""
    assert answers.probabilities is not None
    known, rest = np.split(queried, [round((1 - _VALIDATION) * len(queried))])
    agreements = []
    for wanted in (answers.probabilities, answers.one_hot(answers.labels)):
        scores = _train_network(take_rows(batch, known), wanted[known], seed)(take_rows(batch, rest))
        agreements.append(float((_best(scores, len(rest)) == answers.labels[rest]).mean()))
    return agreements[0] >= agreements[1]


def _curve_lines(counts: Sequence[int], curve: Sequence[PairedGain]) -> list[str]:
    points = [
        f"{count:,}: {100 * each.having.mean():.1f} % and {100 * each.without.mean():.1f} %"
        for count, each in zip(counts, curve, strict=True)
    ]
    return ["; ".join(points[first : first + 3]) for first in range(0, len(points), 3)]
