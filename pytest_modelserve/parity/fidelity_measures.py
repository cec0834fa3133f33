"""What of a signal is measured: one number for a pair of outputs, and which way is worse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import Budget, Quantity, Unit
from pytest_modelserve.numerics import (
    MarginAgreement,
    Scores,
    agreement_by_margin,
    kl_divergences,
    row_cosines,
    signal_to_quantization_noise_db,
    top1_agreement,
)

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Measure:
    """A number of a candidate's and the reference's output, `of(candidate, reference)`, and its budget."""

    name: str
    unit: Unit
    budget: Budget
    of: Callable[[NDArray[Any], NDArray[Any]], float]

    def over(self, candidate: Arrays, reference: Arrays) -> float:
        """The worst of all outputs of the reference."""
        return self.worst(self.of(candidate[name], array) for name, array in reference.items())

    def figure(self, candidate: NDArray[Any], reference: NDArray[Any]) -> float | None:
        """`of` both, None where it means nothing to them: a slice in which no row is decided."""
        try:
            return self.of(candidate, reference)
        except InputError:
            return None

    def worst(self, values: Iterable[float]) -> float:
        """The one that is furthest from where the budget ends."""
        return min(values) if self.is_floor else max(values)

    def judged(self, candidate: Arrays, reference: Arrays) -> Quantity:
        """The worst output, held against the budget."""
        return Quantity(self.name, self.over(candidate, reference), self.unit, budget=self.budget)

    def told(self, value: float) -> str:
        """Name and value in a sentence: "SQNR 12.3 dB", "agreement 97.2 %"."""
        match self.unit:
            case "dB":
                return f"{self.name} {value:.1f} dB"
            case "share":
                return f"{self.name} {100 * value:.1f} %"
            case _:
                return f"{self.name} {value:.4g}"

    @property
    def is_floor(self) -> bool:
        """Whether less is worse."""
        return self.budget.kind == "at least"


def asked_measures(
    *,
    min_sqnr_db: float | None,
    min_cosine: float | None,
    min_agreement: float | None,
    min_margin: float | None,
    max_kl: float | None,
    scores: Scores | None,
) -> tuple[Measure, ...]:
    """The measures that have a budget, in the order of the arguments of `measure_output_fidelity`.

    UsageError without any, for one out of range, and for `min_margin` and `scores` without the budget that they serve
    and the other way round.
    """
    if (max_kl is None) != (scores is None):
        raise UsageError(
            "max_kl and scores only mean something together: scores='logits' or 'probabilities' says what the outputs "
            "are"
        )
    if min_margin is not None and min_agreement is None:
        raise UsageError("min_margin says which rows min_agreement counts: give min_agreement as well, or neither")
    for name, share in (("min_cosine", min_cosine), ("min_agreement", min_agreement)):
        if share is not None and not 0 <= share <= 1:
            raise UsageError(f"{name} lies between 0 and 1, not {share}")
    if min_margin is not None and not (math.isfinite(min_margin) and min_margin >= 0):
        raise UsageError(f"min_margin is a finite number of at least 0, not {min_margin}")
    found = []
    if min_sqnr_db is not None:
        found.append(Measure("SQNR", "dB", Budget("at least", min_sqnr_db), signal_to_quantization_noise_db))
    if min_cosine is not None:
        found.append(Measure("cosine", "cosine", Budget("at least", min_cosine), _lowest_cosine))
    if min_agreement is not None:
        agreement = top1_agreement if min_margin is None else _agreement_beyond(min_margin)
        found.append(Measure("agreement", "share", Budget("at least", min_agreement), agreement))
    if max_kl is not None and scores is not None:
        found.append(_divergence(max_kl, scores))
    if not found:
        raise UsageError("give at least one of min_sqnr_db, min_cosine, min_agreement and max_kl")
    return tuple(found)


def told_margins(candidate: Arrays, reference: Arrays, min_margin: float) -> tuple[str, ...]:
    """A sentence for each output on the rows that an agreement beyond `min_margin` left out, and on those that flip."""
    return tuple(
        f"output {name!r}: {_told(agreement_by_margin(candidate[name], array, min_margin=min_margin))}"
        for name, array in reference.items()
    )


def _lowest_cosine(candidate: NDArray[Any], reference: NDArray[Any]) -> float:
    return float(row_cosines(candidate, reference).min())


def _agreement_beyond(min_margin: float) -> Callable[[NDArray[Any], NDArray[Any]], float]:
    return lambda candidate, reference: agreement_by_margin(candidate, reference, min_margin=min_margin).agreement


def _divergence(limit: float, scores: Scores) -> Measure:
    if scores not in get_args(Scores):
        raise UsageError(unknown_choice("scores", scores, get_args(Scores)))
    if not (math.isfinite(limit) and limit >= 0):
        raise UsageError(f"max_kl is a finite number of nats of at least 0, not {limit}")

    def mean(candidate: NDArray[Any], reference: NDArray[Any]) -> float:
        return float(np.mean(kl_divergences(candidate, reference, scores=scores)))

    return Measure("KL in nats", "", Budget("at most", limit), mean)


def _told(found: MarginAgreement) -> str:
    counted = f"the reference decides {found.decided} of {found.rows} rows by more than {found.min_margin:g}"
    if found.largest_flipped is None:
        return f"{counted}; no row changes its top class"
    return (
        f"{counted}; {found.flipped} of all rows change their top class, the most decided of them by "
        f"{found.largest_flipped:.3g}"
    )
