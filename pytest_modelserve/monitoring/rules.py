"""What data can be said to break without any statistics: what the profile makes impossible."""

from __future__ import annotations

from collections import Counter

import numpy as np

from pytest_modelserve.monitoring.facts import NumericFacts
from pytest_modelserve.monitoring.profiled import CategoricalColumn, NumericColumn, ProfiledColumn

_IMPOSSIBLE = 1e-6
"""A column is called constant, or all null, where the profile makes that less likely than this: a handful of rows may
well be equal by chance. Forty gates a night for a year are 15,000 chances."""


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


def became_constant(facts: NumericFacts, reference: NumericColumn, *, block: int) -> str | None:
    """A sentence where all finite values are the same and the profile's are too rarely that one, else None."""
    if reference.constant or not facts.finite or facts.minimum != facts.maximum:
        return None
    bin_ = int(np.searchsorted(reference.edges, facts.minimum, side="right"))
    if not _impossible(reference.counts[bin_], reference.known, facts.finite, block):
        return None
    return f"column {reference.name!r} is {facts.minimum:.6g} in every row; in the profile it varies"


def became_one_category(counts: Counter[str], reference: CategoricalColumn, *, block: int) -> str | None:
    """A sentence where all rows are of one category and the profile's are too rarely of it, else None."""
    if len(counts) != 1:
        return None
    _, then, now = reference.beside(counts)
    usual = next(rows for rows, seen in zip(then, now, strict=True) if seen)
    if not _impossible(usual, reference.known, counts.total(), block):
        return None
    return f"column {reference.name!r} is {next(iter(counts))!r} in every row; in the profile it varies"


def _impossible(usual: int, of: int, rows: int, block: int) -> bool:
    """Whether `rows`, in blocks, all do what `usual` of the profile's rows did; one more than seen is assumed."""
    return ((usual + 1) / (of + 1)) ** max(rows // block, 1) < _IMPOSSIBLE
