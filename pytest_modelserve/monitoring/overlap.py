"""The overlap gate: rows of evaluation data that also occur in the training data."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError, unknown_choice
from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Interval,
    Method,
    Quantity,
    Subject,
    Verdict,
    check_error_rates,
    levels_for,
)
from pytest_modelserve.monitoring.column_profile import NumericColumn
from pytest_modelserve.monitoring.columns import KIND_NAMES, Column
from pytest_modelserve.monitoring.duplicates import number_keys
from pytest_modelserve.monitoring.profile import ReferenceProfile, array_names
from pytest_modelserve.monitoring.read_options import ReadOptions, names_of
from pytest_modelserve.monitoring.readers import Data, Table, read_table
from pytest_modelserve.monitoring.row_digests import read_from_data, row_digests
from pytest_modelserve.monitoring.schema import matched_columns
from pytest_modelserve.stats import binomial_bounds

_LISTED = 50
_SHOWN = 10
_REPEATED = 0.001
"""Proportion of copies among the training rows from which on a finding names it."""


def measure_overlap(
    evaluation: Data,
    training: Data | ReferenceProfile | str | os.PathLike[str],
    *,
    max_overlap: float = 0.0,
    row_digest_key: str | None = None,
    tolerance: float | Mapping[str, float] | None = None,
    exclude: Collection[str] = (),
    confidence: float = 0.95,
    alpha: float = 0.001,
    name: str | None = None,
) -> Evidence:
    """Measure the proportion of evaluation rows that also occur in the training data.

    The accuracy on such rows does not carry over to others. Copies are found by digests of rows: equal in every column,
    whatever the dtype, with null equal to null. Floats are compared in the lower precision. A profile made with
    `row_digest_key` is enough. Of more than a million different training rows it keeps a random sample, and the
    proportion has exact binomial bounds. `tolerance` also finds near copies: rows that differ from some training row by
    at most the tolerance in every number. It needs the training rows themselves.

    Args:
        evaluation: Rows in memory or files, as for `reference_profile`; of an array the other axes are flattened.
        training: The same of the training data, or its profile or the path of one (`.json`).
        max_overlap: Largest proportion of rows that may occur in the training data. Rows of few categories coincide by
            chance: allow for it here.
        row_digest_key: The key of the profile.
        tolerance: Largest difference of a number: for all numeric columns in standard deviations of the training
            column, or by name in units of the column. Other columns have to be equal.
        exclude: Columns that are not compared, such as ids and labels.
        confidence: Confidence of PASS, where a sample of the training rows is compared.
        alpha: Error rate of FAIL, where a sample of the training rows is compared.
        name: The name of the evaluation data in reports. Default: the stem of the file, or "data".

    Returns:
        The evidence; `details` has the numbers of the first 50 rows, and of the training rows that they equal.

    Raises:
        UsageError: For a profile without digests, a missing or wrong key, and values out of range.
        InputError: For data that cannot be read, and columns that do not fit.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> rows = np.random.default_rng(0).normal(size=(1000, 5))
        >>> profile = ms.reference_profile(rows[:800], row_digest_key="secret")
        >>> ms.measure_overlap(rows[800:], profile, row_digest_key="secret").verdict.name
        'PASS'
        >>> ms.measure_overlap(rows[790:], profile, row_digest_key="secret").details["rows"]
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    started = time.perf_counter()
    check_error_rates(confidence=confidence, alpha=alpha)
    if not 0 <= max_overlap < 1:
        raise UsageError(f"max_overlap must be at least 0 and below 1, got {max_overlap}")
    profile = _profile(training)
    if profile is not None:
        if tolerance is not None:
            raise UsageError("tolerance needs the training rows, and a profile has none: pass the rows, or remove it")
        table, found, known = _in_profile(evaluation, profile, row_digest_key, exclude, name)
        match = _Match(found, known)
        subject_of_training, repeated = Subject(profile.name, sha256=profile.digest), profile.duplicates
        chance = 0.0 if repeated is None else repeated.rows / max(repeated.total, 1)
    else:
        if row_digest_key is not None:
            raise UsageError("row_digest_key is the key of a profile, and training holds rows: remove it")
        table, trained = _tables(evaluation, training, exclude, name)
        match = _in_rows(table.columns, trained.columns, tolerance)
        subject_of_training = Subject(trained.name)
        chance = 0.0
    budget = Budget.of("max_overlap", max_overlap)
    quantity = _quantity(match, budget, confidence, alpha)
    n, rows = table.rows, np.flatnonzero(match.found)
    sampled = quantity.interval is not None
    return Evidence(
        gate="overlap",
        subject=Subject(table.name),
        reference=subject_of_training,
        quantities=(quantity, *_context(match, tolerance)),
        n=int(match.known.sum()),
        n_unit="rows",
        method=_method(tolerance, sampled=sampled),
        summary=_summary(quantity, len(rows)),
        confidence=confidence if sampled else None,
        alpha=alpha if sampled else 0.0,
        findings=tuple(_findings(match, n, chance)),
        advice=""
        if quantity.verdict is Verdict.PASS
        else "remove these rows from the evaluation data, or split the data by an id before training"
        if rows.size
        else "compare with the training rows themselves instead of a sample of their digests",
        details={
            "rows": rows[:_LISTED].tolist(),
            "training_rows": [] if match.partners is None else match.partners[rows[:_LISTED]].tolist(),
        },
        duration_s=time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Match:
    """Which rows (n,) occur in the training data, and for which that is known; `exact` are those without a difference.

    `partners` (n,) are the numbers of the training rows, where these are known.
    """

    found: NDArray[np.bool_]
    known: NDArray[np.bool_]
    exact: NDArray[np.bool_] | None = None
    partners: NDArray[np.intp] | None = None


def _profile(training: object) -> ReferenceProfile | None:
    """Return the profile that `training` is, or is the path of; None for rows."""
    if isinstance(training, ReferenceProfile):
        return training
    if isinstance(training, (str, os.PathLike)) and Path(training).suffix.lower() == ".json":
        return ReferenceProfile.load(training)
    return None


def _in_profile(
    evaluation: Data, profile: ReferenceProfile, key: str | None, exclude: Collection[str], name: str | None
) -> tuple[Table, NDArray[np.bool_], NDArray[np.bool_]]:
    digests = profile.row_digests
    if digests is None and "row digests" in profile.left_out:
        raise UsageError(
            f"the profile {profile.name!r} has no row digests, because it was saved with min_count="
            f"{profile.min_count}: use the profile that it was made of, or pass the training rows"
        )
    if digests is None:
        raise UsageError(
            f"the profile {profile.name!r} has no row digests: make it with reference_profile(..., "
            "row_digest_key=...), or pass the training rows"
        )
    if key is None or not digests.has_key(key):
        what = "missing" if key is None else "not the key that the profile was made with"
        raise UsageError(f"row_digest_key is {what}: pass the key of the profile {profile.name!r}")
    reading = replace(profile.reading, exclude=(*profile.reading.exclude, *names_of(exclude, "exclude")))
    table = read_table(_flat(evaluation), names=array_names(profile), name=name, options=reading, kinds=profile.kinds)
    pairs = matched_columns(table.with_lengths_of(profile.length_sources), profile)
    columns = read_from_data([column for column, _ in pairs])
    if tuple(sorted(column.name for column in columns)) != digests.columns:
        raise InputError(f"{table.name} lacks columns of the row digests: {', '.join(digests.columns)}")
    rounded = [_like_profile(column, profile.column(column.name)) for column in columns]
    found = digests.find(row_digests(columns, key))
    if all(one is other for one, other in zip(columns, rounded, strict=True)):
        return table, *found
    return table, *max(digests.find(row_digests(rounded, key)), found, key=lambda each: int((each[0] & each[1]).sum()))


def _like_profile(column: Column, kept: object) -> Column:
    """Return a column of floats rounded to 32 bits if those of the profile seem to be; InputError for the reverse."""
    if column.kind != "float" or not isinstance(kept, NumericColumn):
        return column
    ends = np.array([kept.minimum, kept.maximum])
    with np.errstate(over="ignore"):
        is_rounded = (ends.astype(np.float32) == ends).all()
    if column.values.dtype.itemsize < 8 and not is_rounded:
        raise InputError(
            f"column {column.name!r} holds {column.values.dtype}, and the profile's rows were not rounded to it, so "
            "that no row can equal one: give the evaluation rows as float64, from their source"
        )
    return _rounded(column, np.dtype(np.float32)) if is_rounded and (ends % 1).any() else column


def _tables(evaluation: Data, training: Any, exclude: Collection[str], name: str | None) -> tuple[Table, Table]:
    """Return both data sets with their columns in the same order; InputError for columns that do not fit."""
    options = ReadOptions(exclude=names_of(exclude, "exclude"))
    table = read_table(_flat(evaluation), name=name, options=options)
    trained = read_table(
        _flat(training), name=None if isinstance(training, (str, os.PathLike)) else "training", options=options
    )
    ours, theirs = ({column.name: column for column in each.columns} for each in (table, trained))
    for one, other, what in ((ours, theirs, "training"), (theirs, ours, "evaluation")):
        missing = [column for column in one if column not in other]
        if missing:
            names = ", ".join(map(repr, missing[:5]))
            raise InputError(f"{what} has no column {names}: exclude=({missing[0]!r},) leaves it out of the comparison")
    for column, kind in ((each, each.kind) for each in ours.values()):
        expected = theirs[column.name].kind
        if kind and expected and kind != expected and {kind, expected} & {"category", "datetime"}:
            raise InputError(
                f"column {column.name!r} holds {KIND_NAMES[kind]} in the evaluation data and {KIND_NAMES[expected]} in "
                "the training data"
            )
    pairs = [(column, theirs[column.name]) for column in table.columns]
    return (
        replace(table, columns=tuple(_rounded(one, other.values.dtype) for one, other in pairs)),
        Table(trained.name, tuple(_rounded(other, one.values.dtype) for one, other in pairs)),
    )


def _rounded(column: Column, dtype: np.dtype[Any]) -> Column:
    """Return a column of floats in the precision of `dtype`, if that is lower: a rounded copy is a copy."""
    if not (
        column.kind == "float"
        and column.values.dtype.kind == dtype.kind == "f"
        and dtype.itemsize < column.values.dtype.itemsize
    ):
        return column
    with np.errstate(over="ignore"):
        return replace(column, values=column.values.astype(dtype))


def _flat(data: Any) -> Any:
    return data.reshape(len(data), -1) if isinstance(data, np.ndarray) and data.ndim > 2 else data


def _in_rows(
    columns: tuple[Column, ...], trained: tuple[Column, ...], tolerance: float | Mapping[str, float] | None
) -> _Match:
    ours, theirs = row_digests(columns, "rows in memory"), row_digests(trained, "rows in memory")
    order = np.argsort(theirs, kind="stable")
    places = np.minimum(np.searchsorted(theirs, ours, sorter=order), theirs.size - 1)
    partners = order[places]
    exact, known = theirs[partners] == ours, np.ones(ours.size, dtype=np.bool_)
    if tolerance is None:
        return _Match(exact, known, exact, partners)
    near, nearest = _near(columns, trained, _tolerances(trained, tolerance))
    return _Match(exact | near, known, exact, np.where(exact, partners, nearest))


def _tolerances(trained: tuple[Column, ...], tolerance: float | Mapping[str, float]) -> dict[str, float]:
    """Return the tolerance of each numeric column that has one above 0."""
    numeric = {column.name: column for column in trained if column.values.dtype.kind != "O" and column.kind}
    if isinstance(tolerance, Mapping):
        for name, value in tolerance.items():
            if name not in numeric:
                raise UsageError(f"tolerance: {unknown_choice('numeric column', name, numeric)}")
            _check_tolerance(f"tolerance[{name!r}]", value)
        return {name: float(value) for name, value in tolerance.items() if value > 0}
    _check_tolerance("tolerance", tolerance)
    found = {}
    for name, column in numeric.items():
        finite = column.values[np.isfinite(column.values)].astype(np.float64)
        found[name] = tolerance * float(finite.std()) if finite.size else 0.0
    return {name: value for name, value in found.items() if value > 0}


def _check_tolerance(name: str, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise UsageError(f"{name} must be a number of at least 0, got {value!r}")


def _near(
    columns: tuple[Column, ...], trained: tuple[Column, ...], tolerances: Mapping[str, float]
) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Return which rows (n,) have a training row within the tolerances, and the number of the nearest one.

    A k-d tree over numbers in units of their tolerance (Bentley 1975). What has to be equal is one more coordinate, in
    which different values are far apart.
    """
    from scipy.spatial import cKDTree

    n, far = len(columns[0].values), 4.0
    equal = np.zeros(n + len(trained[0].values), dtype=np.int64)
    coordinates = []
    for ours, theirs in zip(columns, trained, strict=True):
        if ours.name not in tolerances:
            equal = _numbered(equal, _codes(ours, theirs))
            continue
        values = np.concatenate([ours.values.astype(np.float64), theirs.values.astype(np.float64)])
        finite = np.isfinite(values)
        equal = _numbered(equal, np.where(finite, 0, np.where(np.isnan(values), 1, np.where(values > 0, 2, 3))))
        coordinates.append(np.where(finite, values, 0.0) / tolerances[ours.name])
    points = np.stack([*coordinates, far * equal], axis=1)
    tree = cKDTree(points[n:])
    # Rounding of the division must not separate rows that differ by exactly the tolerance.
    distances, nearest = tree.query(points[:n], p=np.inf, distance_upper_bound=1 + 1e-9)
    near = np.isfinite(distances)
    return near, np.where(near, nearest, 0)


def _codes(ours: Column, theirs: Column) -> NDArray[np.int64]:
    """Return one number for each different value of both columns, (n + m,)."""
    if "O" in (ours.values.dtype.kind, theirs.values.dtype.kind):
        numbers: dict[Any, int] = {}
        values = [None if value != value else value for each in (ours, theirs) for value in each.values.tolist()]
        return np.array([numbers.setdefault(value, len(numbers)) for value in values], dtype=np.int64)
    keys = np.concatenate([number_keys(each.values, each.exact) for each in (ours, theirs)])
    return _ranks(keys)


def _numbered(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return one number for each different pair of numbers, (n,) each."""
    return _ranks(one * (int(other.max()) + 1) + other)


def _ranks(values: NDArray[Any]) -> NDArray[np.int64]:
    return np.asarray(np.unique(values, return_inverse=True)[1].reshape(-1), dtype=np.int64)


def _quantity(match: _Match, budget: Budget, confidence: float, alpha: float) -> Quantity:
    """Return the proportion of rows that were found: exact, or with bounds if it is not known for all rows."""
    known, found = int(match.known.sum()), int(match.found.sum())
    if known == match.known.size:
        return Quantity("overlap", found / known, "proportion", budget=budget)
    if not known:
        return Quantity("overlap", 0.0, "proportion", Interval(0.0, 1.0, 1 - alpha, confidence), budget)
    low, high = levels_for(budget, confidence=confidence, alpha=alpha)
    bounds = binomial_bounds(found, known, low_level=low, high_level=high)
    return Quantity("overlap", bounds.estimate, "proportion", Interval.of(bounds), budget)


def _context(match: _Match, tolerance: object) -> tuple[Quantity, ...]:
    if tolerance is None or match.exact is None:
        return ()
    return (Quantity("equal rows", int(match.exact.sum()), "count"),)


def _method(tolerance: object, *, sampled: bool) -> Method:
    if tolerance is not None:
        return Method("every row by its nearest training row", "Bentley 1975, Communications of the ACM 18:509-517")
    if not sampled:
        return Method("every row by its digest", "BLAKE2, RFC 7693, 64 bits")
    return Method(
        "exact binomial bounds over a sample of digests",
        "bottom-k sketch, Cohen & Kaplan 2007; Clopper & Pearson 1934, Biometrika 26",
        "few evaluation rows equal each other",
    )


def _summary(quantity: Quantity, found: int) -> str:
    if quantity.verdict is Verdict.INCONCLUSIVE:
        return "the stored sample of digests does not decide whether rows occur in the training data"
    if quantity.verdict is Verdict.FAIL:
        return "evaluation rows occur in the training data"
    return "few enough rows occur in the training data" if found else "no row occurs in the training data"


def _findings(match: _Match, n: int, chance: float) -> list[str]:
    rows, findings = np.flatnonzero(match.found), []
    if rows.size:
        shown = ", ".join(map(str, rows[:_SHOWN])) + (", …" if rows.size > _SHOWN else "")
        findings.append(f"{rows.size:,} of {int(match.known.sum()):,} rows occur in the training data: rows {shown}")
        if match.partners is not None:
            findings.append(f"row {rows[0]} is training row {match.partners[rows[0]]}")
    if not match.known.all():
        findings.append(
            f"known for {int(match.known.sum()):,} of {n:,} rows: the profile keeps a sample of the digests"
        )
    if rows.size and chance > _REPEATED:
        findings.append(f"{100 * chance:.1f} % of the training rows equal an earlier one: rows may coincide by chance")
    return findings
