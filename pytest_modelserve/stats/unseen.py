"""Are there more rows of unseen categories than chance brings? A bound that allows for their coming in clumps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import _arguments

_STEPS = 80
"""Golden-section steps: each leaves 62 % of the interval, all of them less than one part in 10¹⁶."""
_STEEPEST = 60.0
"""The largest exponent tried: beyond it the bound falls by less than a factor of e⁻⁶⁰."""


def unseen_p_value(reference_counts: ArrayLike, current_counts: ArrayLike) -> float:
    """At least the chance that so many current rows are of categories without a reference row, if nothing changed.

    Both are counts (categories,) of the same categories in the same order. Given how many rows of both samples together
    a category has, every way of dealing the rows out is equally likely. A category of t rows is then unseen with
    probability q = C(m, t)/C(N + m, t), for N reference and m current rows, and brings t rows at once. Indicators of
    disjoint sets of rows are negatively associated (Joag-Dev and Proschan 1983, Annals of Statistics 11, 286–295), so
    that Chernoff's bound, the smallest exp(−s·k)·∏(1 − q + q·exp(s·t)) over s >= 0, holds for k unseen rows.

    Never below the exact chance and often 5 to 10 times above it. Fisher's test against the share of categories seen
    once (Good and Turing) would take clumps for evidence: at 0.001 it rejects up to 20 times too often.

    UsageError for counts of different lengths, negative counts and a sample without rows.
    """
    then = _arguments.vector("reference_counts", reference_counts)
    now = _arguments.vector("current_counts", current_counts)
    if then.shape != now.shape:
        raise UsageError(f"both samples are counted in the same categories, not in {then.size} and {now.size}")
    for name, counts in (("reference_counts", then), ("current_counts", now)):
        if not (counts >= 0).all() or not counts.sum() > 0:
            raise UsageError(f"{name} are counts of at least one row")
    unseen = float(now[then == 0].sum())
    if unseen == 0:
        return 1.0
    totals, drawn = (then + now)[then + now > 0], float(now.sum())
    absent = _log_absent(totals, drawn, float(then.sum()))
    return min(math.exp(_smallest(unseen, totals, absent)), 1.0)


def _log_absent(totals: NDArray[np.float64], drawn: float, reference: float) -> NDArray[np.float64]:
    """The logarithm of q for each category; −inf where it has more rows than are drawn."""
    possible = totals <= drawn
    fitting = np.where(possible, totals, 0)
    logarithms = (
        gammaln(drawn + 1)
        - gammaln(drawn - fitting + 1)
        - gammaln(drawn + reference + 1)
        + gammaln(drawn + reference - fitting + 1)
    )
    return np.where(possible, logarithms, -np.inf)


def _smallest(unseen: float, totals: NDArray[np.float64], absent: NDArray[np.float64]) -> float:
    """The logarithm of Chernoff's bound, smallest over the exponent: a convex function, searched by golden section."""
    with np.errstate(divide="ignore"):
        present = np.log1p(-np.exp(np.minimum(absent, 0.0)))

    def bound(exponent: float) -> float:
        return float(np.logaddexp(present, absent + exponent * totals).sum()) - exponent * unseen

    golden = (math.sqrt(5) - 1) / 2
    low, high = 0.0, _STEEPEST
    for _ in range(_STEPS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if bound(left) <= bound(right) else (left, high)
    return min(bound(low), bound(high), 0.0)
