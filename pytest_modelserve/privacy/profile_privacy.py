"""Profile privacy gate: what the file of a reference profile gives away about single rows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_modelserve.errors import UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Subject
from pytest_modelserve.monitoring import ReferenceProfile
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, ProfiledColumn
from pytest_modelserve.monitoring.profile import as_profile

_SHOWN = 12
_WEAK_KEYS = (
    "secret", "key", "password", "passwd", "test", "testing", "changeme", "change me", "default", "admin", "root",
    "1234", "12345", "123456", "12345678", "0123456789", "qwerty", "abc", "abc123", "letmein", "salt", "pepper",
    "hash", "token", "private", "project", "modelserve", "pytest", "pytest_modelserve", "profile", "training", "data",
    "foo", "bar", "a", "x", "0", "1",
)  # fmt: skip
"""Keys of row digests that an attacker tries first."""


def measure_profile_privacy(profile: ReferenceProfile | str | os.PathLike[str], *, min_count: int) -> Evidence:
    """Measure what a profile gives away about fewer than `min_count` rows.

    PASS: every count of rows is 0 or at least `min_count`; minimum, maximum and edges are not those of fewer rows;
    there are no exact sums, no raw rows, no hashes of texts without a project key, and no row digests with a key that
    is easy to guess. `profile.save(path, min_count=...)` writes such a profile.

    This is not differential privacy: with hundreds of columns, whoever knows a whole row can test whether it was
    counted (Homer et al. 2008, PLoS Genetics 4, e1000167).

    Args:
        profile: The profile, or the path of its file.
        min_count: The smallest number of rows that a count may have, at least 2 (10 is usual).

    Returns:
        The evidence. Each finding names its place and what to do; `details` holds all of them.

    Raises:
        UsageError: `min_count` is below 2, or `profile` is no profile.
        ArtifactError: The file is missing or damaged.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> whole = ms.reference_profile({"age": np.random.default_rng(0).integers(18, 90, 1000)})
        >>> ms.measure_profile_privacy(whole, min_count=10).verdict.name
        'FAIL'
        >>> ms.measure_profile_privacy(whole.suppressed(10), min_count=10).verdict.name
        'PASS'
    """
    started = time.perf_counter()
    if isinstance(min_count, bool) or not isinstance(min_count, int) or min_count < 2:
        raise UsageError(f"min_count must be a number of rows of at least 2 (10, for example); got {min_count!r}")
    profile = as_profile(profile, None)
    found = list(_disclosures(profile, min_count))
    counts = [count for column in profile.columns for count in _counts(column) if count]
    smallest = [] if not counts else [Quantity("smallest count", min(counts), "count", budget=_budget(min_count))]
    lines = [each.line for each in found]
    return Evidence(
        gate="profile privacy",
        subject=Subject(profile.name, sha256=profile.digest),
        quantities=(Quantity("disclosures", len(found), "count", budget=Budget("at_most", 0)), *smallest),
        n=profile.rows,
        n_unit="rows",
        method=Method(
            "every count, end, sum and hash of the profile",
            "Sweeney 2002, IJUFKS 10:557-570; Dinur & Nissim 2003, PODS",
            "the reader has this file, and no other profile of nearly the same rows",
        ),
        summary=f"the profile gives away rows in {len(found)} places"
        if found
        else f"the profile says nothing about fewer than {min_count} rows",
        findings=(*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])),
        advice="" if not found else _advice(profile, min_count),
        details={"disclosures": [[each.place, each.what, each.remedy] for each in found[:100]]},
        duration_s=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True)
class _Disclosure:
    """Something of a profile that gives rows away: its place, what it says, and what to do."""

    place: str
    what: str
    remedy: str = "save with min_count="

    @property
    def line(self) -> str:
        return f"{self.place}: {self.what}; {self.remedy}"


def _budget(min_count: int) -> Budget:
    return Budget.of("min_count", min_count)


def _advice(profile: ReferenceProfile, min_count: int) -> str:
    if profile.min_count > 1:
        return f"save the profile that it was made of with profile.save(path, min_count={min_count})"
    texts = any(isinstance(column, CategoricalColumn) and column.hashed for column in profile.columns)
    keyed = ", with MODELSERVE_PROJECT_KEY set before it is profiled to keep hashes of texts" * texts
    return f"save it with profile.save(path, min_count={min_count}){keyed}"


def _disclosures(profile: ReferenceProfile, min_count: int) -> Iterator[_Disclosure]:
    if profile.sketch is not None:
        yield _Disclosure(
            "sketch", f"{profile.sketch.rows:,} raw rows", "save with min_count=, or without sketch_rows="
        )
    if profile.row_digests is not None and any(map(profile.row_digests.has_key, _WEAK_KEYS)):
        yield _Disclosure(
            "row digests", "their key is easy to guess, so that every row can be tested", "use a random row_digest_key"
        )
    if profile.associations is not None:
        yield _Disclosure("associations", "exact sums over pairs of columns: differences of them are those of few rows")
    if profile.duplicates is not None:
        yield _Disclosure(
            "duplicates", "the exact number of equal rows: with a row more, it tells whether that row is there"
        )
    for column in profile.columns:
        yield from _of_column(column, min_count)


def _of_column(column: ProfiledColumn, min_count: int) -> Iterator[_Disclosure]:
    place = f"column {column.name!r}"
    small = [count for count in _counts(column) if 0 < count < min_count]
    suppressed = column.min_count >= min_count
    if isinstance(column, CategoricalColumn):
        if column.hashed and len(column.counts) > 1 and not column.key_check:
            yield _Disclosure(
                place,
                "texts in hash buckets without a key: every guess can be tried",
                "set MODELSERVE_PROJECT_KEY and profile again, or save with min_count=",
            )
    elif not suppressed and column.finite:
        yield _Disclosure(place, "exact sums or moments: whoever knows all other rows computes the last one")
        ends = [
            name
            for name, rows in (("minimum", column.at_minimum), ("maximum", column.at_maximum))
            if rows < min_count and column.kind != "boolean"
        ]
        if ends:
            yield _Disclosure(place, f"{' and '.join(ends)} of fewer than {min_count} rows")
        if column.kind != "boolean":
            yield _Disclosure(place, "edges that lie halfway between two values")
    if small:
        yield _Disclosure(place, f"{len(small):,} counts of fewer than {min_count} rows, the smallest of {min(small)}")
    elif not suppressed and isinstance(column, CategoricalColumn):
        yield _Disclosure(place, "exact counts: with a row more, they tell the category of that row")


def _counts(column: ProfiledColumn) -> Sequence[int]:
    """Return every number of rows that the column says."""
    if isinstance(column, CategoricalColumn):
        return (column.nulls, *column.counts)
    infinities = column.negative_infinities, column.positive_infinities
    outer = column.counts[0] - infinities[0], column.counts[-1] - infinities[1]
    others = column.below, column.above, column.backward or 0
    inner = column.counts[1:-1] if len(column.counts) > 1 else ()
    return (column.nulls, *infinities, *outer, *inner, *others)
