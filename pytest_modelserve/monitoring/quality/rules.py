"""What data can be said to break without any statistics: what the profile, or its user, makes impossible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pytest_modelserve.monitoring.facts import NumericFacts
from pytest_modelserve.monitoring.profiled import NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.quality.category_rates import CountedCategories
from pytest_modelserve.monitoring.quality.tails import IMPOSSIBLE, WIDTHS, reach
from pytest_modelserve.monitoring.times import age, written


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
