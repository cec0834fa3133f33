"""Means from a few labels and a score of every row: prediction-powered and stratified estimates, and their design."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainccinv, ndtri, stdtrit

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.delta_method import Linearized, ratio_of
from pytest_modelserve.stats.intervals import Bounds, check_count, check_level, check_vector

Floats = NDArray[np.float64]
_STRATA = 5
_NEYMAN = 0.5
"""The part of the rows that Neyman's allocation places; the rest is proportional to the sizes of the strata. With
an uninformative score, half by Neyman's widen the interval by 5 to 8 %, all by 10 to 16 %. A good score gains nearly as
much with half (`python benchmarks/audit_widths.py`)."""
_FEWEST = 2
"""Rows of each stratum: one has no variance."""


def prediction_powered_mean(
    values: ArrayLike, predictions: ArrayLike, all_predictions: ArrayLike, *, weights: ArrayLike | None = None
) -> Linearized:
    """Return the mean of `values` (n,), adjusted by `predictions` (n,) of them and of all rows, (N,).

    mean(value − λ·prediction) + λ·mean(all predictions), with the λ of the smallest variance, cov(value,
    prediction)/var(prediction). The n rows are a random part of the N rows. The interval is narrower than that of the
    values alone by the factor sqrt(1 − ρ²(1 − n/N)), with the correlation ρ of values and predictions. `weights` (n,)
    are the inverse probabilities with which rows were selected, up to a factor; default: all are equal.

    Source: Angelopoulos, Duchi and Zrnic (2023), PPI++: efficient prediction-powered inference, arXiv 2311.01453, the
    power tuning; as a regression estimator with double sampling Cochran, Sampling Techniques, 3rd ed. 1977, section 12.

    UsageError for arrays of different lengths, fewer than 3 values, numbers that are not finite, and weights that are
    not above 0.
    """
    y, f = check_vector("values", values), check_vector("predictions", predictions)
    every = check_vector("all_predictions", all_predictions)
    if y.size != f.size or y.size < 3 or every.size < y.size:
        raise UsageError(
            f"values must be at least 3, with one prediction each among all predictions; got {y.size} values, {f.size} "
            f"predictions and {every.size} in all"
        )
    w = np.ones(y.size) if weights is None else check_vector("weights", weights)
    if w.size != y.size or not (np.isfinite(w) & (w > 0)).all():
        raise UsageError("weights must be one finite number above 0 for each value")
    if not (np.isfinite(y).all() and np.isfinite(f).all() and np.isfinite(every).all()):
        raise UsageError("values and predictions must be finite")
    centered = f - np.average(f, weights=w)
    spread = float(np.average(centered**2, weights=w))
    slope = float(np.average(centered * y, weights=w)) / spread if spread > 0 else 0.0
    residual = ratio_of(y - slope * f, np.ones(y.size), w, spread=1.0)
    # Residuals and predictions are uncorrelated: the variance of the mean prediction, over N rows, adds up with theirs.
    fitted = math.sqrt((y.size - 1) / (y.size - 2))
    influence = fitted * residual.influence + math.sqrt(y.size / every.size) * slope * (f - f.mean())
    return Linearized(residual.value + slope * float(every.mean()), influence, residual.largest)


def effective_proportion_bounds(
    proportion: float, variance: float, n: int, *, degrees_of_freedom: int, low_level: float, high_level: float
) -> Bounds:
    """Return a `proportion` of `n` rows that was estimated with weights, strata or predictions, with bounds.

    The bounds are those of Clopper and Pearson (1934) for the effective number of rows. That is proportion·(1 −
    proportion)/`variance`, times the squared ratio of the normal quantile and Student's. Without variance the number of
    rows is `n`. Source: Korn and Graubard (1998), Survey Methodology 24, 193–201. UsageError for a level outside (0.5,
    1).
    """
    low_level, high_level = check_level("low_level", low_level), check_level("high_level", high_level)
    p = min(max(proportion, 0.0), 1.0)

    def rows(level: float) -> float:
        size = p * (1 - p) / variance if 0 < p < 1 and variance > 0 else float(n)
        return float(size * (ndtri(level) / stdtrit(degrees_of_freedom, level)) ** 2)

    def low_end(p: float, size: float, level: float) -> float:
        return float(betainccinv(p * size, size - p * size + 1, level)) if p > 0 else 0.0

    low, high = low_end(p, rows(low_level), low_level), 1 - low_end(1 - p, rows(high_level), high_level)
    return Bounds(p, min(low, p), max(high, p), low_level, high_level)


def stratified_proportion_bounds(
    successes: ArrayLike, n: ArrayLike, sizes: ArrayLike, *, low_level: float, high_level: float
) -> Bounds:
    """Return the proportion Σ W·s/n over strata, with `successes` s of `n` rows of each and weights W from `sizes`.

    All are (strata,). The variance is Σ W²·r·(1 − r)/(n − 1) with the rate r of a stratum, plus Σ W·(r − proportion)²/Σ
    sizes. The second term is there because the sizes are a sample themselves (Cochran 1977, sections 5.9 and 12.2).
    Bounds are those of `effective_proportion_bounds`.

    UsageError for different lengths, counts that are not possible, a stratum with a single row and a level outside
    (0.5, 1).
    """
    good, drawn, whole = (check_vector(name, v) for name, v in (("successes", successes), ("n", n), ("sizes", sizes)))
    if not good.size == drawn.size == whole.size or not good.size:
        raise UsageError("successes, n and sizes must have one number for each stratum")
    if not ((good >= 0) & (good <= drawn) & (drawn >= _FEWEST) & (drawn <= whole)).all():
        raise UsageError(f"each stratum must have 0 <= successes <= n <= size, and n of at least {_FEWEST}")
    weights, rates = whole / whole.sum(), good / drawn
    proportion = float(weights @ rates)
    within = float((weights**2 * rates * (1 - rates) / (drawn - 1)).sum())
    between = float(weights @ (rates - proportion) ** 2) / float(whole.sum())
    rows = int(drawn.sum())
    return effective_proportion_bounds(
        proportion,
        within + between,
        rows,
        degrees_of_freedom=rows - good.size,
        low_level=low_level,
        high_level=high_level,
    )


def score_strata(scores: ArrayLike) -> NDArray[np.intp]:
    """Return the stratum of each row, (n,) from 0, by its `scores` (n,): the predicted probability of being right.

    There are five strata, or fewer where scores are equal. Their sums of sqrt(p·(1 − p)) are about equal, so that
    Neyman's allocation draws as many rows from each. Source: Dalenius and Hodges (1959), Journal of the American
    Statistical Association 54, 88–101; Cochran (1977), section 5A.7. UsageError for no scores, and scores outside
    [0, 1].
    """
    p = check_vector("scores", scores)
    if not p.size or not ((p >= 0) & (p <= 1)).all():
        raise UsageError("scores must be probabilities, of at least one row")
    ordered = np.sort(p)
    deviations = np.cumsum(np.sqrt(ordered * (1 - ordered)))
    if deviations[-1] == 0:
        return np.zeros(p.size, dtype=np.intp)
    edges = np.unique(ordered[np.searchsorted(deviations, deviations[-1] * np.arange(1, _STRATA) / _STRATA)])
    ends = np.searchsorted(ordered, edges, side="right")  # the number of rows up to each edge
    kept = [edge for edge, rows in zip(edges, np.diff(ends, prepend=0), strict=True) if rows >= _FEWEST]
    if p.size - np.searchsorted(ordered, kept[-1:], side="right").sum() < _FEWEST:
        kept = kept[:-1]
    return np.searchsorted(np.array(kept), p, side="left")


@dataclass(frozen=True, slots=True, eq=False)
class StratifiedDesign:
    """The number of rows to label in each stratum: `rows` (strata,) of `sizes` (strata,).

    `width_ratio` is the expected width of the interval over that of as many labels alone, if the scores are calibrated.
    """

    rows: NDArray[np.int64]
    sizes: NDArray[np.int64]
    width_ratio: float


def stratified_design(scores: ArrayLike, strata: NDArray[np.intp], count: int) -> StratifiedDesign:
    """Return how to spread `count` rows over the strata of `scores` (n,): half by Neyman's allocation.

    Neyman's allocation has the smallest variance if the scores are calibrated: in proportion to size times the standard
    deviation sqrt(p·(1 − p)) of the mean score p. The other half is proportional to size. Every stratum has at least
    two rows. Source: Neyman (1934), Journal of the Royal Statistical Society 97, 558–625. UsageError for a count of
    fewer than two rows a stratum, or more than all rows.
    """
    p, count = check_vector("scores", scores), check_count("count", count, minimum=1)
    sizes = np.bincount(strata)
    if count > p.size:
        raise UsageError(f"count must be at most the {p.size:,} rows of the outputs, got {count:,}")
    if count < _FEWEST * sizes.size:
        raise UsageError(f"count must be at least {_FEWEST * sizes.size}, two rows for each stratum, got {count}")
    weights = sizes / p.size
    means = np.bincount(strata, weights=p) / sizes
    deviations = np.sqrt(np.maximum(means * (1 - means), 1e-6))
    share = _NEYMAN * weights * deviations / float(weights @ deviations) + (1 - _NEYMAN) * weights
    rows = np.clip(np.floor(share * count).astype(np.int64), np.minimum(_FEWEST, sizes), sizes)
    while rows.sum() != count:  # the remainder, one by one, to the stratum that lacks most
        more = rows.sum() < count
        room = rows < sizes if more else rows > np.minimum(_FEWEST, sizes)
        lacking = np.where(room, share * count - rows, -np.inf if more else np.inf)
        rows[int(lacking.argmax() if more else lacking.argmin())] += 1 if more else -1
    whole = float(p.mean())
    between = float(weights @ (means - whole) ** 2)
    variance = float((weights**2 * deviations**2 / rows).sum()) + between / p.size
    alone = max(whole * (1 - whole), 1e-12) / count
    return StratifiedDesign(rows, sizes, math.sqrt(variance / alone))
