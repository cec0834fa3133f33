"""Fidelity metrics: signal-to-quantization-noise ratio, cosine similarity, top-1 agreement, KL divergence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.metrics.elementwise import kind_of
from pytest_modelserve.metrics.losses import SUM_TOLERANCE, Scores, log_softmax

_CHUNK = 2**16  # elements read at a time: 512 KiB as float64


def signal_to_quantization_noise_db(candidate: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the signal-to-quantization-noise ratio in decibels: 10 log10(sum r^2 / sum (c - r)^2).

    Two arrays of one shape and any number of dimensions, summed as a whole in float64. inf where they are equal, -inf
    where the reference is zero everywhere and the candidate is not. InputError for no elements, different
    shapes, NaN, infinities, and anything but real numbers.
    """
    check_pair(candidate, reference)
    # Powers are taken relative to the largest magnitude: squares of float64 overflow from 1e154 on.
    largest = max(largest_magnitude(candidate), largest_magnitude(reference)) or 1.0
    signal = noise = 0.0
    for c, r in _chunks(candidate, reference):
        c, r = c / largest, r / largest
        error = c - r
        signal += float(r @ r)
        noise += float(error @ error)
    if noise == 0:
        return math.inf
    return 10 * (math.log10(signal) - math.log10(noise)) if signal else -math.inf


def row_cosines(candidate: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosine similarity of paired rows `(n, ...)`, each flattened: `(n,)`, from -1 to 1.

    Two rows of zeros have a similarity of 1.0; a row of zeros and another row have 0.0.
    InputError for no rows, different shapes, NaN, infinities, and anything but real numbers.
    """
    check_pair(candidate, reference)
    c, r = _unit_rows(candidate), _unit_rows(reference)
    cosines: NDArray[np.float64] = np.clip(np.einsum("ij,ij->i", c, r), -1.0, 1.0)
    cosines[~c.any(axis=1) & ~r.any(axis=1)] = 1.0
    return cosines


def top1_matches(candidate: NDArray[Any], reference: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether both have the same top class, for scores `(..., classes)`: booleans of shape `(...)`.

    Between equal scores the first class wins. Raises InputError for no rows, different shapes, fewer than two classes,
    NaN, infinities, and anything but real numbers.
    """
    check_pair(candidate, reference)
    if reference.ndim < 2 or reference.shape[-1] < 2:
        raise InputError(
            f"the top class needs scores of shape (rows, classes) with at least two classes, not {reference.shape}"
        )
    matches: NDArray[np.bool_] = candidate.argmax(axis=-1) == reference.argmax(axis=-1)
    return matches


def top1_agreement(candidate: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the proportion of rows with the same top class; see `top1_matches`."""
    return float(top1_matches(candidate, reference).mean())


def check_pair(candidate: NDArray[Any], reference: NDArray[Any]) -> None:
    """Raise InputError unless both are arrays of one shape that hold rows of finite real numbers."""
    for side, array in (("candidate", candidate), ("reference", reference)):
        if not isinstance(array, np.ndarray):
            raise InputError(f"{side} is a numpy array, not {type(array).__name__}")
    if candidate.shape != reference.shape:
        raise InputError(f"candidate has shape {candidate.shape} and reference {reference.shape}: both need the same")
    if reference.ndim == 0 or reference.size == 0:
        raise InputError(f"outputs of shape {reference.shape} hold no rows: nothing can be measured")
    for side, array in (("candidate", candidate), ("reference", reference)):
        if array.dtype.kind == "b" or kind_of(array.dtype) not in ("real", "exact"):
            raise InputError(f"{side} must hold real numbers; got dtype {array.dtype}")
        if not np.isfinite(array).all():
            first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise InputError(f"{side} holds {array[first]} at {list(first)}: fidelity is measured on finite numbers")


def largest_magnitude(array: NDArray[Any]) -> float:
    """Return the largest magnitude of finite numbers."""
    return max(abs(float(array.max())), abs(float(array.min())))


def _chunks(
    candidate: NDArray[Any], reference: NDArray[Any]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    pieces = np.nditer(
        [candidate, reference],
        flags=["external_loop", "buffered"],
        op_flags=[["readonly"], ["readonly"]],
        op_dtypes=[np.float64, np.float64],
        casting="same_kind",
        order="C",
        buffersize=_CHUNK,
    )
    yield from pieces


def _unit_rows(array: NDArray[Any]) -> NDArray[np.float64]:
    """Return `(n, ...)` as `(n, m)` rows of norm 1; a row of zeros stays zero."""
    rows = array.reshape(len(array), -1).astype(np.float64)
    # Scale to a largest magnitude of 1 first, so that the squares in the norm neither overflow nor underflow.
    rows = _divided(rows, np.abs(rows).max(axis=1, keepdims=True))
    return _divided(rows, np.linalg.norm(rows, axis=1, keepdims=True))


def _divided(rows: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(rows, sizes, out=np.zeros_like(rows), where=sizes > 0)


def kl_divergences(candidate: NDArray[Any], reference: NDArray[Any], *, scores: Scores) -> NDArray[np.float64]:
    """Return the Kullback-Leibler divergence of each row in nats, for scores `(..., classes)`: `(...)`.

    sum r ln(r / c): 0 for equal distributions, inf where the candidate excludes a class that the reference does not.
    Logits pass through a softmax in float64; probabilities are divided by their sums. Source: S. Kullback, R. A.
    Leibler, "On Information and Sufficiency", 1951.

    InputError for what `top1_matches` refuses, and for probabilities that are negative or whose sum is more than
    0.05 from 1; UsageError for an unknown `scores`.
    """
    if scores not in get_args(Scores):
        raise UsageError(unknown_choice("scores", scores, get_args(Scores)))
    check_pair(candidate, reference)
    if reference.ndim < 2 or reference.shape[-1] < 2:
        raise InputError(
            f"a divergence needs scores of shape (rows, classes) with at least two classes, not {reference.shape}"
        )
    if scores == "logits":
        r, c = (log_softmax(logits.astype(np.float64)) for logits in (reference, candidate))
        divergences: NDArray[np.float64] = (np.exp(r) * (r - c)).sum(axis=-1)
    else:
        divergences = _relative_entropy(_normalized("candidate", candidate), _normalized("reference", reference))
    return np.maximum(divergences, 0.0)  # rounding of equal rows can give -1e-17


def _normalized(side: str, scores: NDArray[Any]) -> NDArray[np.float64]:
    wide = scores.astype(np.float64)
    sums = wide.sum(axis=-1, keepdims=True)
    wrong = (wide < 0).any(axis=-1) | (np.abs(sums[..., 0] - 1) > SUM_TOLERANCE)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"{side} row {list(first)} is no distribution: its scores go from {wide[first].min():.3g} to "
            f"{wide[first].max():.3g} and add up to {sums[first][0]:.3g}; say scores='logits' if that is what they are"
        )
    normalized: NDArray[np.float64] = wide / sums
    return normalized


def _relative_entropy(candidate: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(reference > 0, reference * np.log(reference / candidate), 0.0)
    entropy: NDArray[np.float64] = terms.sum(axis=-1)
    return entropy


@dataclass(frozen=True, slots=True)
class MarginAgreement:
    """Top-1 agreement of the rows with a clear reference margin.

    Of `rows`, `decided` have a reference margin above `min_margin`, and `agreeing` of those have the same top class.
    `flipped` of all rows have another one; `largest_flipped` is the largest reference margin among them, None without
    one.
    """

    rows: int
    decided: int
    agreeing: int
    min_margin: float
    flipped: int
    largest_flipped: float | None

    @property
    def agreement(self) -> float:
        """The proportion of decided rows that agree."""
        return self.agreeing / self.decided


@dataclass(frozen=True, slots=True)
class MarginCounts:
    """Counts of a `MarginAgreement`, which add up over rows; `largest` is the largest reference margin of any row."""

    rows: int
    decided: int
    agreeing: int
    min_margin: float
    flipped: int
    largest_flipped: float
    largest: float

    @classmethod
    def of(cls, candidate: NDArray[Any], reference: NDArray[Any], *, min_margin: float) -> MarginCounts:
        """Return the counts of rows of scores `(..., classes)`; InputError for what `top1_matches` refuses."""
        matches, margins = top1_matches(candidate, reference), decision_margins(reference)
        decided, flipped = margins > min_margin, margins[~matches]
        return cls(
            rows=margins.size,
            decided=int(decided.sum()),
            agreeing=int((matches & decided).sum()),
            min_margin=min_margin,
            flipped=flipped.size,
            largest_flipped=float(flipped.max(initial=-1.0)),
            largest=float(margins.max()),
        )

    def merged(self, other: MarginCounts) -> MarginCounts:
        """Return the counts of the rows of both."""
        return MarginCounts(
            self.rows + other.rows,
            self.decided + other.decided,
            self.agreeing + other.agreeing,
            self.min_margin,
            self.flipped + other.flipped,
            max(self.largest_flipped, other.largest_flipped),
            max(self.largest, other.largest),
        )

    def agreement(self) -> MarginAgreement:
        """Return the agreement of the decided rows; InputError if there are none."""
        if not self.decided:
            raise InputError(
                f"no row is decided by more than min_margin {self.min_margin:g}: the largest margin of the reference "
                f"is {self.largest:.3g}"
            )
        largest = self.largest_flipped if self.flipped else None
        return MarginAgreement(self.rows, self.decided, self.agreeing, self.min_margin, self.flipped, largest)


def decision_margins(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return the highest score less the second highest, for scores `(..., classes)`: `(...)`, at least 0.

    Raises InputError for fewer than two classes and for NaN and infinities.
    """
    top1_matches(scores, scores)  # refuses what has no top class
    wide = scores.astype(np.float64)
    second, first = np.moveaxis(np.partition(wide, -2, axis=-1)[..., -2:], -1, 0)
    margins: NDArray[np.float64] = first - second
    return margins


def agreement_by_margin(candidate: NDArray[Any], reference: NDArray[Any], *, min_margin: float) -> MarginAgreement:
    """Return the top-1 agreement over rows whose reference margin exceeds `min_margin`.

    Rows with a smaller margin flip under any rounding, whatever the quality of the candidate.
    Scores are `(..., classes)`; the margin is in their units. Raises InputError for what `top1_matches` refuses and
    where no row is decided, UsageError for a margin that is negative or not finite.
    """
    if not (math.isfinite(min_margin) and min_margin >= 0):
        raise UsageError(f"min_margin must be a finite number of at least 0, got {min_margin}")
    return MarginCounts.of(candidate, reference, min_margin=min_margin).agreement()
