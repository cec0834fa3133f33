"""Rules of the data-quality gate: values that the profile, or the user, makes impossible."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate
from statistics import fmean

import numpy as np

from pytest_modelserve.monitoring.column_profile import NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.decision import Blocks, in_blocks
from pytest_modelserve.monitoring.formats import format_age, format_time
from pytest_modelserve.monitoring.quality.rates import CountedCategories
from pytest_modelserve.monitoring.window import NumericSummary
from pytest_modelserve.settings import shown_value
from pytest_modelserve.stats.proportions import fisher_p_value

IMPOSSIBLE = 1e-6
"""Events of a whole window with a lower probability are called impossible: forty gates a night for a year are 15,000
opportunities."""


def all_null(nulls: int, rows: int, reference: ProfiledColumn, blocks: Blocks) -> str | None:
    """Return a message if every row is null and the profile has too few nulls for that."""
    if nulls < rows or not _impossible(reference.nulls + reference.count_error, reference.rows, rows, blocks):
        return None
    return f"column {reference.name!r} is null in every row"


def has_infinities(summary: NumericSummary, reference: NumericColumn, blocks: Blocks) -> str | None:
    """Return a message if so many rows are infinite, and none of the profile, that no one rate explains both."""
    if not summary.infinities or reference.finite < reference.known:
        return None
    few = in_blocks(summary.infinities, summary.rows - summary.nulls, blocks.current, up=False)
    most = min(reference.count_error, reference.known)
    if fisher_p_value(*few, *in_blocks(most, reference.known, blocks.reference, up=True)) >= IMPOSSIBLE:
        return None
    return f"column {reference.name!r} is infinite in {summary.infinities:,} of {summary.rows:,} rows"


def beyond_tail_limit(summary: NumericSummary, reference: NumericColumn, *, block: int) -> str | None:
    """Return a message if a finite value lies further outside the profile's range than its tails allow."""
    excess = {
        summary.minimum: reference.minimum - summary.minimum,
        summary.maximum: summary.maximum - reference.maximum,
    }
    value = max(excess, key=lambda extreme: excess[extreme])
    width = reference.maximum - reference.minimum
    if not summary.finite or excess[value] <= MIN_WIDTHS * width:
        return None
    limit = tail_limit(reference, rows=summary.finite, block=block)
    if limit is None or excess[value] <= limit:
        return None
    text = shown_value(reference.name, f"{value:.6g}")
    return (
        f"column {reference.name!r} holds {text}, outside [{reference.minimum:.6g}, {reference.maximum:.6g}] by "
        f"{excess[value] / width:,.1f} times the width of that range"
    )


def became_constant(summary: NumericSummary, reference: NumericColumn, blocks: Blocks) -> str | None:
    """Return a message if all finite values are equal and the profile has that value too rarely."""
    if reference.constant or not summary.finite or summary.minimum != summary.maximum:
        return None
    bin_ = int(np.searchsorted(reference.edges, summary.minimum, side="right"))
    if not _impossible(reference.counts[bin_] + reference.count_error, reference.known, summary.finite, blocks):
        return None
    value = shown_value(reference.name, f"{summary.minimum:.6g}")
    return f"column {reference.name!r} is {value} in every row; in the profile it varies"


def became_one_category(counted: CountedCategories, blocks: Blocks) -> str | None:
    """Return a message if all rows have one category, or hash bucket, and the profile has it too rarely."""
    names, before, after = counted.aligned
    present = [index for index, rows in enumerate(after) if rows]
    reference = counted.reference
    if len(present) != 1 or not _impossible(
        before[present[0]] + reference.count_error, reference.known, after[present[0]], blocks
    ):
        return None
    name = names[present[0]]
    value = shown_value(reference.name, repr(name) if isinstance(name, str) else f"in hash bucket {name}")
    return f"column {reference.name!r} is {value} in every row; in the profile it varies"


def outside_vocabulary(counted: CountedCategories) -> str | None:
    """Return a message if a column declared as closed has a category that is not in the profile."""
    if counted.named and not counted.unmatched(new=True):
        return None
    which = f": {counted.format_unmatched(new=True)}" if counted.named else ""
    return f"column {counted.reference.name!r} is closed, but has categories that are not in the profile{which}"


def too_old(summary: NumericSummary, name: str, *, max_age_s: float, now: float) -> str | None:
    """Return a message if the newest time is older than `max_age_s`, later than `now`, or missing."""
    if not summary.finite:
        return f"column {name!r} has no time; its newest may be {format_age(max_age_s)} old (max_age_s)"
    if summary.maximum > now:
        return f"column {name!r} has {format_time(summary.maximum)}, which is later than now, {format_time(now)}"
    if now - summary.maximum <= max_age_s:
        return None
    return (
        f"column {name!r} ends at {format_time(summary.maximum)}, {format_age(now - summary.maximum)} before now; "
        f"at most {format_age(max_age_s)} are allowed (max_age_s)"
    )


def _impossible(before: int, n_before: int, rows: int, blocks: Blocks) -> bool:
    """Return True if `rows` cannot all have a property of `before` profile rows: no one rate explains both."""
    every = in_blocks(rows, rows, blocks.current, up=False)
    return fisher_p_value(*every, *in_blocks(min(before, n_before), n_before, blocks.reference, up=True)) < IMPOSSIBLE


MIN_WIDTHS = 3
"""No value within so many widths of the range is called impossible: a range that ends abruptly has no tail to
extrapolate, and may have been cut. Three in four normal values times 100 lie further away."""
_TAIL_PROPORTION = 1 / 16
"""Only bins further out than this belong to the tail: nearer ones give the slope of the body."""
_TAIL_ROWS = 32
"""A point of the tail needs so many rows beyond it: with fewer, the extreme says too little about the slope."""
_MIN_BINS = 32
_CAUTION = 2
"""Slopes are computed as if the extreme of k rows were that of k/2, which happens in one sample of seven: a tail is
then not underestimated because its extreme is small by chance. In a million windows of 2,000 rows, heavy tails (Cauchy,
Student's t of 0.5 to 5 degrees of freedom, lognormal, Pareto) break the rule in at most 4, against profiles of 1,000 or
10,000 rows; normal values times 100 in 0.5 % of the rows break it in 9,995 windows of 10,000."""


def tail_limit(reference: NumericColumn, *, rows: int, block: int = 1) -> float | None:
    """Return the largest plausible distance of `rows` values from the finite range of the profile.

    The limit is at least 3 widths of the range. It is at least the distance that the heavier tail, continued as the
    power law 1 − F(x) ~ (x − median)^(−1/ξ), exceeds in one window of a million: M·(10⁶·n/N)^ξ from the median, for the
    extreme M of N rows. ξ is the mean of the slopes ln(M/d)/ln(k/2) of all points with k rows beyond them, 32 ≤ k ≤
    N/16, at distances d from the median: the slope of the tail's quantiles (compare Hill 1975, Annals of Statistics 3,
    1163–1174).

    None for a constant column, for fewer than 512 rows, if only a few rare values of a tail are known, and for fewer
    than 32 bins with rows: a column of few values has no tail to extrapolate. None for a suppressed column, which has
    rows beyond the ends that it shows.
    """
    if reference.min_count > 1:
        return None
    width = reference.maximum - reference.minimum
    if not 0 < width < math.inf or reference.finite // block < _TAIL_ROWS / _TAIL_PROPORTION:
        return None
    if sum(rows > 0 for rows in reference.counts) < _MIN_BINS:
        return None
    slopes = [_slope(points, reference.finite, block) for points in (_upper(reference), _lower(reference))]
    if None in slopes:
        return None
    slope = max(slope for slope in slopes if slope is not None)
    extreme = max(reference.maximum - reference.median, reference.median - reference.minimum)
    windows = max(rows / reference.finite, 1 / reference.finite) / IMPOSSIBLE
    try:
        furthest = extreme * math.pow(max(windows, 1.0), slope)
    except OverflowError:
        return None
    return max(MIN_WIDTHS * width, furthest - extreme)


def _slope(points: Iterator[tuple[float, int]], finite: int, block: int) -> float | None:
    """Return the mean slope of a tail of (distance from the median, rows beyond it); the extreme (distance, 0) is last.

    0 for a tail that ends in a frequent value; None if only a few rare values are known.
    """
    *inner, (extreme, _) = points
    tail = [(distance, beyond / block) for distance, beyond in inner if 0 < beyond <= finite * _TAIL_PROPORTION]
    known = [(distance, beyond) for distance, beyond in tail if beyond >= _TAIL_ROWS]
    if not known:
        return None if tail else 0.0
    if min(distance for distance, _ in known) <= 0:
        return None
    return fmean(math.log(max(extreme / distance, 1.0)) / math.log(beyond / _CAUTION) for distance, beyond in known)


def _upper(reference: NumericColumn) -> Iterator[tuple[float, int]]:
    infinite, median = reference.positive_infinities, reference.median
    beyond = accumulate(reversed(reference.counts[1:]), initial=-infinite)
    next(beyond)
    for edge, rows in zip(reversed(reference.edges), beyond, strict=True):
        yield edge - median, rows
    yield reference.maximum - median, 0


def _lower(reference: NumericColumn) -> Iterator[tuple[float, int]]:
    infinite, median = reference.negative_infinities, reference.median
    beyond = accumulate(reference.counts[:-1], initial=-infinite)
    next(beyond)
    for edge, rows in zip(reference.edges, beyond, strict=True):
        yield median - edge, rows
    yield median - reference.minimum, 0
