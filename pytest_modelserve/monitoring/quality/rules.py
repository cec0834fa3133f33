"""What data can be said to break without any statistics: what the profile, or its user, makes impossible."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from pytest_modelserve.monitoring.timestamps import age, written

if TYPE_CHECKING:
    from pytest_modelserve.monitoring.column_profile import NumericColumn, ProfiledColumn
    from pytest_modelserve.monitoring.profiler import NumericFacts
    from pytest_modelserve.monitoring.quality.rates import CountedCategories

# How far outside a profile's range a value may lie before no tail like the profile's would reach it.


IMPOSSIBLE = 1e-6
"""What the profile makes less likely than this in a whole window is called impossible: forty gates a night for a year
are 15,000 chances."""
WIDTHS = 3
"""A value is never called impossible within so many widths of the range outside it: a range that ends abruptly shows no
tail to go by, and may still have been cut short. Of normal values, a hundredfold of three in four lies further away."""
_TAIL_SHARE = 1 / 16
"""Bins further out than this tell the tail: nearer ones tell the body, whose slope is no tail's."""
_TAIL_ROWS = 32
"""A point of the tail needs so many rows beyond it: of fewer, the extreme says too little about the slope."""
_LUCK = 2
"""Slopes are read as if the extreme of k rows were that of k/2, where it lies in one sample of seven by chance: a tail
is then not thought lighter because its extreme came out small. In a million windows of 2,000 rows, heavy tails (Cauchy,
Student's t of 0.5 to 5 degrees of freedom, lognormal, Pareto) break the rule in at most 4, against profiles of 1,000 or
10,000 rows; a hundredfold of normal values in 0.5 % of the rows breaks it in 9,995 windows of 10,000."""


def reach(reference: NumericColumn, *, rows: int, block: int = 1) -> float | None:
    """How far outside the finite range the most distant of `rows` values can lie; None where the profile cannot tell.

    At least 3 widths of the range, and at least the distance that the heavier tail, continued as the power law
    1 − F(x) ~ (x − median)^(−1/ξ), exceeds in one window of a million: M·(10⁶·n/N)^ξ from the median, for the extreme
    M of N rows. ξ is the mean of the slopes ln(M/d)/ln(k/2) from all points with k rows beyond them, 32 ≤ k ≤ N/16, at
    distances d from the median: the slope of the tail's quantiles (compare Hill 1975, Annals of Statistics 3,
    1163–1174). None for a constant column, for fewer than 512 rows, and where a few rare values are all that is known
    of a tail.
    """
    finite = reference.known - reference.negative_infinities - reference.positive_infinities
    width = reference.maximum - reference.minimum
    if not 0 < width < math.inf or finite // block < _TAIL_ROWS / _TAIL_SHARE:
        return None
    slopes = [_slope(points, finite, block) for points in (_upper(reference), _lower(reference))]
    if None in slopes:
        return None
    slope = max(slope for slope in slopes if slope is not None)
    extreme = max(reference.maximum - reference.median, reference.median - reference.minimum)
    windows = max(rows / finite, 1 / finite) / IMPOSSIBLE
    try:
        furthest = extreme * math.pow(max(windows, 1.0), slope)
    except OverflowError:
        return None
    return max(WIDTHS * width, furthest - extreme)


def _slope(points: Iterator[tuple[float, int]], finite: int, block: int) -> float | None:
    """The mean slope of one tail: of (distance from the median, rows beyond it), the extreme's (distance, 0) last.

    0 for a tail that ends in a heavy value; None where nothing but a few rare values is known of it.
    """
    *inner, (extreme, _) = points
    tail = [(distance, beyond / block) for distance, beyond in inner if 0 < beyond <= finite * _TAIL_SHARE]
    known = [(distance, beyond) for distance, beyond in tail if beyond >= _TAIL_ROWS]
    if not known:
        return None if tail else 0.0
    if min(distance for distance, _ in known) <= 0:
        return None
    return fmean(math.log(max(extreme / distance, 1.0)) / math.log(beyond / _LUCK) for distance, beyond in known)


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


def all_null(nulls: int, rows: int, reference: ProfiledColumn, *, block: int) -> str | None:
    """A sentence where every row is null and the profile has too few nulls for that, else None."""
    if nulls < rows or not _impossible(reference.nulls, reference.rows, rows, block):
        return None
    return f"column {reference.name!r} is null in every row"


def has_infinities(facts: NumericFacts, reference: NumericColumn) -> str | None:
    """A sentence where rows are infinite and none of the profile is, else None."""
    if not facts.infinities or reference.negative_infinities or reference.positive_infinities:
        return None
    return f"column {reference.name!r} is infinite in {facts.infinities:,} of {facts.rows:,} rows"


def out_of_reach(facts: NumericFacts, reference: NumericColumn, *, block: int) -> str | None:
    """A sentence where a finite value lies further outside the profile's range than its tails can be, else None."""
    apart = {facts.minimum: reference.minimum - facts.minimum, facts.maximum: facts.maximum - reference.maximum}
    value = max(apart, key=lambda extreme: apart[extreme])
    width = reference.maximum - reference.minimum
    if not facts.finite or apart[value] <= WIDTHS * width:
        return None
    furthest = reach(reference, rows=facts.finite, block=block)
    if furthest is None or apart[value] <= furthest:
        return None
    return (
        f"column {reference.name!r} holds {value:.6g}, outside [{reference.minimum:.6g}, {reference.maximum:.6g}] by "
        f"{apart[value] / width:,.1f} times the width of that range"
    )


def became_constant(facts: NumericFacts, reference: NumericColumn, *, block: int) -> str | None:
    """A sentence where all finite values are the same and the profile's are too rarely that one, else None."""
    if reference.constant or not facts.finite or facts.minimum != facts.maximum:
        return None
    bin_ = int(np.searchsorted(reference.edges, facts.minimum, side="right"))
    if not _impossible(reference.counts[bin_], reference.known, facts.finite, block):
        return None
    return f"column {reference.name!r} is {facts.minimum:.6g} in every row; in the profile it varies"


def became_one_category(counted: CountedCategories, *, block: int) -> str | None:
    """A sentence where all rows are of one category, or pool, and the profile's are too rarely of it, else None."""
    names, then, now = counted.beside
    seen = [index for index, rows in enumerate(now) if rows]
    if len(seen) != 1 or not _impossible(then[seen[0]], counted.reference.known, now[seen[0]], block):
        return None
    name = names[seen[0]]
    told = repr(name) if isinstance(name, str) else f"of pool {name}"
    return f"column {counted.reference.name!r} is {told} in every row; in the profile it varies"


def outside_vocabulary(counted: CountedCategories) -> str | None:
    """A sentence where rows are of a category that the profile, whose categories are all there are, does not have."""
    if counted.named and not counted.alone(new=True):
        return None
    which = f": {counted.listed(new=True)}" if counted.named else ""
    return f"column {counted.reference.name!r} is closed and holds categories that the profile does not have{which}"


def too_old(facts: NumericFacts, name: str, *, max_age_s: float, now: float) -> str | None:
    """A sentence where the newest time is older than `max_age_s` or later than `now`, or where there is none."""
    if not facts.finite:
        return f"column {name!r} holds no time, and its newest may be {age(max_age_s)} old"
    if facts.maximum > now:
        return f"column {name!r} holds {written(facts.maximum)}, which is later than now, {written(now)}"
    if now - facts.maximum <= max_age_s:
        return None
    return (
        f"column {name!r} ends at {written(facts.maximum)}, {age(now - facts.maximum)} before now; "
        f"it may be {age(max_age_s)} old"
    )


def told(sentences: Sequence[str | None]) -> list[str]:
    """The sentences on what is broken."""
    return [sentence for sentence in sentences if sentence]


def _impossible(usual: int, of: int, rows: int, block: int) -> bool:
    """Whether `rows`, in blocks, all do what `usual` of the profile's rows did; one more than seen is assumed."""
    return ((usual + 1) / (of + 1)) ** max(rows // block, 1) < IMPOSSIBLE
