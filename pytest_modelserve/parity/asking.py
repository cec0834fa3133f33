"""What a call of an accuracy gate asks: the metric, its budget, and how answers and rows are to be taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.numerics import Decoding, Scores
from pytest_modelserve.parity.estimating import Reading
from pytest_modelserve.parity.judging import ErrorRates
from pytest_modelserve.parity.metric import Limit, Metric, Spec, refuse_for
from pytest_modelserve.parity.predicting import Inputs, rows_of
from pytest_modelserve.parity.slices import SliceRules, Slices, slice_rules
from pytest_modelserve.parity.units import Units, check_weights


@dataclass(frozen=True, slots=True)
class Question:
    """A gate's arguments, checked against its metric."""

    spec: Spec
    limit: Limit
    rates: ErrorRates
    inputs: Inputs
    labels: NDArray[Any]
    reading: Reading
    units: Units
    slices: SliceRules
    decodes: bool = False
    """Whether `decode=` was given."""

    @property
    def n(self) -> int:
        """The number of rows."""
        return self.units.n

    @property
    def are_plain_rows(self) -> bool:
        """Whether every row counts once and for itself, so that exact methods for counts hold."""
        return self.units.are_rows and self.reading.weights is None


def question_of(
    metric: Metric,
    spec: Spec,
    limit: Limit,
    rates: ErrorRates,
    inputs: Inputs,
    labels: NDArray[Any],
    *,
    output: str | None,
    decode: Decoding | None,
    scores: Scores | None,
    pos_label: int | str | None,
    groups: ArrayLike | None,
    weights: ArrayLike | None,
    block: int | None,
    slices: Slices | None,
    slice_limits: tuple[Limit | None, Limit | None],
    min_slice_rows: int | None,
) -> Question:
    """The question; UsageError for arguments that mean nothing to the metric or lack, InputError for data amiss."""
    refuse_for(
        metric,
        decode=decode is not None and not (spec.reads == "answers" or spec.reads == "anything"),
        scores=scores is not None and spec.reads != "probabilities",
        pos_label=pos_label is not None and not spec.has_positive_class,
        weights=weights is not None and spec.reads == "anything",
    )
    if spec.reads == "probabilities" and scores is None:
        raise UsageError(
            f"metric={metric!r} reads probabilities: say what the model answers, scores='logits' or "
            f"scores='probabilities'"
        )
    for given in slice_limits:
        if given is not None:
            _check_slice_limit(given, spec, limit)
    n = rows_of(inputs)
    reading = Reading(output, decode or "argmax", scores, pos_label, check_weights(weights, n))
    return Question(
        spec,
        limit,
        rates,
        inputs,
        labels,
        reading,
        Units.of(n, block=block, groups=groups),
        slice_rules(slices, inputs, n, limits=slice_limits, min_rows=min_slice_rows),
        decode is not None,
    )


def _check_slice_limit(given: Limit, spec: Spec, limit: Limit) -> None:
    if given.is_score is not limit.is_score:
        raise UsageError(f"{given.name}= goes with {'scores' if given.is_score else 'errors'}, unlike {limit.name}=")
    bounded = given.is_score and spec.name != "r2"
    if not math.isfinite(given.value) or (bounded and not -1 < given.value < 1):
        raise UsageError(f"{given.name} is {'a share below 1' if bounded else 'a finite number'}, not {given.value}")
