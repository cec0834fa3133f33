"""How far a candidate's class probabilities are from the reference's, row by row."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.numerics.fidelity import check_pair
from pytest_modelserve.numerics.probabilities import SUM_TOLERANCE, Scores, log_softmax


def kl_divergences(candidate: NDArray[Any], reference: NDArray[Any], *, scores: Scores) -> NDArray[np.float64]:
    """Kullback and Leibler's divergence of each row, sum r ln(r / c) in nats, for scores `(..., classes)`: `(...)`.

    0 where both rows are the same distribution, inf where the candidate rules out a class that the reference does not.
    The reference's distribution is the one that weighs. Logits are put through a softmax in float64; probabilities are
    divided by their sums, which rounding moves away from 1. Source: S. Kullback, R. A. Leibler, "On Information and
    Sufficiency", 1951.

    Raises InputError for what `top1_matches` refuses, and for probabilities that are negative or whose sum is more than
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
        divergences = _relative_entropy(_normalised("candidate", candidate), _normalised("reference", reference))
    return np.maximum(divergences, 0.0)  # rounding takes equal rows to -1e-17


def _normalised(side: str, scores: NDArray[Any]) -> NDArray[np.float64]:
    wide = scores.astype(np.float64)
    sums = wide.sum(axis=-1, keepdims=True)
    wrong = (wide < 0).any(axis=-1) | (np.abs(sums[..., 0] - 1) > SUM_TOLERANCE)
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise InputError(
            f"{side} row {list(first)} is no distribution: its scores go from {wide[first].min():.3g} to "
            f"{wide[first].max():.3g} and add up to {sums[first][0]:.3g}; say scores='logits' if that is what they are"
        )
    normalised: NDArray[np.float64] = wide / sums
    return normalised


def _relative_entropy(candidate: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(reference > 0, reference * np.log(reference / candidate), 0.0)
    entropy: NDArray[np.float64] = terms.sum(axis=-1)
    return entropy
