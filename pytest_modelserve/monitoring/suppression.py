"""Suppressed profiles: no count of fewer rows than `min_count`, and nothing from which single rows can be computed.

A profile is suppressed when it is saved, after merging. Counts are those of a random four fifths of the rows, drawn for
each column by itself, so that two files of nearly the same rows do not show which counts a row adds to. Then counts
below `min_count` are pooled (Sweeney 2002, International Journal of Uncertainty, Fuzziness and Knowledge-Based Systems
10, 557-570), and ends, sums and edges that single rows decide are replaced.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from pytest_modelserve.errors import UsageError
from pytest_modelserve.monitoring.column_profile import HASH_BUCKETS, OTHERS, CategoricalColumn, NumericColumn
from pytest_modelserve.monitoring.dependence import Dependence
from pytest_modelserve.monitoring.histogram import Floats, Integers
from pytest_modelserve.settings import project_key

KEPT = 0.8
"""The proportion of the rows that is counted. Adding a row changes a count of c rows by 0.8, and chance changes it by
0.4·√c, between two files by 0.57·√c: 1.8 rows at 10."""
_LARGEST = 10**9
"""numpy draws without replacement from fewer rows; of more, drawing with replacement is the same but for 10⁻⁹."""
_SLACK = 2.0**-20
"""The relative distance of an end that many rows share from its edge: wider than float32 rounds."""
_FINEST = 1074
_STEPS = 4
"""Steps in which a block and an inflation double: 19 %."""
_PART = 64
"""Edges between bins of many rows move by at most this part of a bin."""


def suppressed_columns(
    columns: Sequence[NumericColumn | CategoricalColumn], *, min_count: int, digest: str
) -> tuple[NumericColumn | CategoricalColumn, ...]:
    """Return the columns of a profile with this digest, suppressed; UsageError for too few rows.

    Which rows are counted follows from the project key and the digest, so that the same profile always gives the same
    file; without a key it is drawn anew each time.
    """
    rows = int(KEPT * columns[0].rows / min_count) * min_count
    if rows < 2 * min_count:
        needed = math.ceil(2 * min_count / KEPT)
        raise UsageError(
            f"min_count={min_count} needs a profile of at least {needed:,} rows; this one has {columns[0].rows:,}: "
            "profile more rows, or give a smaller min_count"
        )
    key = project_key()
    seed = secrets.token_bytes(16) if key is None else _keyed(key, f"{min_count} {digest}")
    rng = np.random.default_rng(int.from_bytes(seed))
    return tuple(
        _categories(column, min_count, rows, rng)
        if isinstance(column, CategoricalColumn)
        else _numbers(column, min_count, rows, rng)
        for column in columns
    )


def _keyed(key: bytes, text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16, key=key, person=b"counted rows").digest()


def _drawn(counts: ArrayLike, rows: int, rng: np.random.Generator) -> Integers:
    """Return how many of `rows` rows, drawn without replacement, have each of these counts (kinds,)."""
    every = np.array(counts, dtype=np.int64)
    total = int(every.sum())
    if total >= _LARGEST:
        return np.asarray(rng.multinomial(rows, every / total), dtype=np.int64)
    return np.asarray(rng.multivariate_hypergeometric(every, rows, method="marginals"), dtype=np.int64)


def _without_few_nulls(nulls: int, counts: Integers, min_count: int) -> tuple[int, Integers]:
    """Count fewer nulls than `min_count` with the largest count, and fewer other rows with the nulls."""
    if 0 < nulls < min_count:
        counts[int(counts.argmax())] += nulls
        return 0, counts
    known = int(counts.sum())
    return (nulls + known, np.zeros_like(counts)) if known < min_count else (nulls, counts)


def _dependence(found: Dependence, rows: int, rng: np.random.Generator) -> Dependence:
    """Return the dependence, randomly rounded: the correlation to standard errors, the rest to powers of 2^(1/4).

    A row that moves one of them by little changes what is rounded to rarely: rounded to the nearest, two profiles of
    nearly the same rows would differ whenever a limit lies between them.
    """
    if not found.pairs:
        return replace(found, rows=min(found.rows, rows))
    pairs = min(found.pairs, rows)
    up = rng.random(3).tolist()
    correlation = math.floor(found.correlation * math.sqrt(found.pairs) + up[0]) / math.sqrt(pairs)
    block, inflation = (
        2.0 ** (math.floor(_STEPS * math.log2(max(value, 1.0)) + part) / _STEPS)
        for value, part in zip((found.block, found.inflation), up[1:], strict=True)
    )
    return Dependence(rows, pairs, min(max(correlation, -1.0), 1.0), block, inflation)


# Categories.


def _categories(column: CategoricalColumn, min_count: int, rows: int, rng: np.random.Generator) -> CategoricalColumn:
    nulls, *of_names = _drawn([column.nulls, *column.counts], rows, rng).tolist()
    nulls, counts = _without_few_nulls(nulls, np.array(of_names, dtype=np.int64), min_count)
    shared = replace(
        column, rows=rows, nulls=nulls, min_count=min_count, dependence=_dependence(column.dependence, rows, rng),
        categories=(), counts=(rows - nulls,), key_check="",
    )  # fmt: skip
    if column.hashed:
        # A hash without a key is no secret: every text can be tried.
        buckets = HASH_BUCKETS if column.key_check else 1
        while True:
            pooled = tuple(int(counts[bucket::buckets].sum()) for bucket in range(buckets))
            if buckets == 1 or all(not count or count >= min_count for count in pooled):
                return replace(shared, counts=pooled, key_check=column.key_check if buckets > 1 else "")
            buckets //= 2
    named = {
        name: count
        for name, count in zip(column.categories, counts.tolist(), strict=True)
        if count >= min_count and name != OTHERS
    }
    if not named:
        return shared
    others = rows - nulls - sum(named.values())
    if others < min_count:  # too few to be shown: they count with the most frequent category
        named[max(named, key=lambda name: named[name])] += others
        others = 0
    return replace(shared, categories=tuple(named), counts=(*named.values(), others))


# Numbers.


def _numbers(column: NumericColumn, min_count: int, rows: int, rng: np.random.Generator) -> NumericColumn:
    below, above = column.negative_infinities, column.positive_infinities
    exact = np.array(column.counts, dtype=np.int64)
    exact[0] -= below
    exact[-1] -= above
    nulls, below, above, *of_bins = _drawn([column.nulls, below, above, *exact], rows, rng).tolist()
    of_bins[0] += below
    of_bins[-1] += above
    nulls, counts = _without_few_nulls(nulls, np.array(of_bins, dtype=np.int64), min_count)
    known = rows - nulls
    below, above = (infinite if known and infinite >= min_count else 0 for infinite in (below, above))
    shared = replace(
        column, rows=rows, nulls=nulls, negative_infinities=below, positive_infinities=above, min_count=min_count,
        dependence=_dependence(column.dependence, rows, rng), below=0, above=0, sums=None, at_minimum=0, at_maximum=0,
        backward=None if column.backward is None else int(column.backward / min_count + rng.random()) * min_count,
        minimum=0.0, maximum=0.0, mean=0.0, std=0.0, edges=(), counts=(known,),
    )  # fmt: skip
    if not known or not column.edges or known == below + above:
        return shared
    if column.kind == "boolean":
        return _booleans(shared, column, counts, min_count)
    value = None if below or above else _shared_value(column, min_count, rows, rng)
    if value is not None:
        around = _ends(column, value, value)
        return replace(shared, minimum=value, maximum=value, mean=value, edges=around, counts=(0, known, 0))
    ends = _shared_ends(column, min_count)
    edges, cumulated = _moved_edges(column, exact, np.cumsum(counts)[:-1], ends, min_count // 2)
    edges, cumulated = _pooled(edges, cumulated, known, ends, below, above, min_count)
    if not edges.size:
        return shared
    minimum = float(edges[0]) if ends[0] is None else column.minimum
    maximum = float(np.nextafter(edges[-1], -math.inf)) if ends[1] is None else column.maximum
    if ends[0] is None:
        minimum = min(minimum, maximum) if len(edges) == 1 else minimum
    elif len(edges) == 1:
        maximum = max(minimum, maximum)
    counts = np.diff(cumulated, prepend=0, append=known)
    mean, std = _moments(edges, counts, minimum, maximum, below, above)
    return replace(
        shared, minimum=minimum, maximum=maximum, mean=mean, std=std, edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )  # fmt: skip


def _booleans(shared: NumericColumn, column: NumericColumn, counts: Integers, min_count: int) -> NumericColumn:
    """Return the counts of both values; fewer than `min_count` of one count with the other."""
    true = int(counts[np.searchsorted(column.edges, 1.0, side="right") :].sum())
    known = int(counts.sum())
    if true < min_count or known - true < min_count:
        true = 0 if true < known - true else known
    share = true / known
    return replace(
        shared, maximum=1.0, mean=share, std=math.sqrt(share * (1 - share)), edges=(-0.5, 0.5, 1.5),
        counts=(0, known - true, true, 0),
    )  # fmt: skip


def _shared_value(column: NumericColumn, min_count: int, rows: int, rng: np.random.Generator) -> float | None:
    """Return the value that all known rows but fewer than `min_count` of those drawn share, if there is one."""
    ends = (column.minimum, column.at_minimum), (column.maximum, column.at_maximum)
    for value, shares in ((column.minimum, column.known),) if column.constant else ends:
        if shares and _drawn([column.nulls, column.known - shares, shares], rows, rng)[1] < min_count:
            return value
    return None


def _ends(column: NumericColumn, minimum: float, maximum: float) -> tuple[float, float]:
    """Return edges just outside the ends."""
    whole = column.kind == "integer"
    slack = [0.5 if whole else abs(end) * _SLACK or 2.0**-500 for end in (minimum, maximum)]
    below, above = math.nextafter(minimum, -math.inf), math.nextafter(maximum, math.inf)  # of integers beyond 2⁵³
    return min(minimum - slack[0], below), max(maximum + slack[1], above)


def _shared_ends(column: NumericColumn, min_count: int) -> tuple[float | None, float | None]:
    """Return the edges outside minimum and maximum, each None unless many rows have that value."""
    low, high = _ends(column, column.minimum, column.maximum)
    return (
        low if column.at_minimum >= 2 * min_count else None,
        high if column.at_maximum >= 2 * min_count else None,
    )


def _moved_edges(
    column: NumericColumn,
    exact: Integers,
    cumulated: Integers,
    ends: tuple[float | None, float | None],
    most: int,
) -> tuple[Floats, Integers]:
    """Return the edges, each moved past at most `most` rows to a short number, and the rows below each.

    An edge halfway between two values would give one of them away to whoever knows the other.
    """
    edges = column.edges
    last = len(edges) - 1
    low, high = (-math.inf if ends[0] is None else ends[0]), (math.inf if ends[1] is None else ends[1])
    found: dict[float, int] = {}
    for index, edge in enumerate(edges):
        first, rows = index, 0
        while first > 0 and rows + exact[first] <= most:
            rows += int(exact[first])
            first -= 1
        final, rows = index, 0
        while final < last and rows + exact[final + 1] <= most:
            rows += int(exact[final + 1])
            final += 1
        if first == final:  # many rows on both sides: values beside it are nearer than they are to each other
            before, after = edges[max(index - 1, 0)], edges[min(index + 1, last)]
            moved = _short_number(edge - (edge - before) / _PART, edge + (after - edge) / _PART)
            below = int(cumulated[index])
        else:
            moved = _short_number(max(edges[first], low), min(edges[final], high))
            below = _rows_below(moved, column, cumulated)
        if low < moved < high:
            found[moved] = below
    ordered = sorted(found)
    return np.array(ordered, dtype=np.float64), np.array([found[edge] for edge in ordered], dtype=np.int64)


def _short_number(low: float, high: float) -> float:
    """Return the number in [low, high] with the fewest binary digits behind the point, or the most zeros before it."""
    if low <= 0 <= high:
        return 0.0
    exponent = math.frexp(max(abs(low), abs(high)))[1]
    while exponent > -_FINEST:
        step = math.ldexp(1.0, exponent)
        number = math.ceil(low / step) * step
        if number <= high:
            return number
        exponent -= 1
    return low


def _rows_below(value: float, column: NumericColumn, cumulated: Integers) -> int:
    """Return the rows below a value, interpolated between the edges; of integers over the integers between them."""
    edges = np.array(column.edges)
    place = int(np.searchsorted(edges, value, side="right"))
    if place == 0 or place == len(edges):
        return int(cumulated[0 if place == 0 else -1])
    ends = [float(edges[place - 1]), value, float(edges[place])]
    low, middle, high = map(math.ceil, ends) if column.kind in ("integer", "boolean") else ends
    part = (middle - low) / (high - low) if high > low else 0.0
    before, after = (int(rows) for rows in cumulated[place - 1 : place + 1])
    return before + round(part * (after - before))


def _pooled(
    edges: Floats,
    cumulated: Integers,
    known: int,
    ends: tuple[float | None, float | None],
    below: int,
    above: int,
    min_count: int,
) -> tuple[Floats, Integers]:
    """Return those edges, and the ends, between which there are at least `min_count` rows."""
    kept = [] if ends[0] is None else [(ends[0], below)]
    start = below
    limit = known - above - min_count
    for edge, rows in zip(edges.tolist(), cumulated.tolist(), strict=True):
        if rows - start >= min_count and rows <= limit:
            kept.append((edge, rows))
            start = rows
    if ends[1] is not None and known - above - start >= min_count:
        kept.append((ends[1], known - above))
    return np.array([edge for edge, _ in kept]), np.array([rows for _, rows in kept], dtype=np.int64)


def _moments(
    edges: Floats, counts: Integers, minimum: float, maximum: float, below: int, above: int
) -> tuple[float, float]:
    """Return mean and standard deviation of rows in the middle of their bins."""
    weights = counts.astype(np.float64)
    weights[0] -= below
    weights[-1] -= above
    ends = np.concatenate(([min(minimum, edges[0])], edges, [max(maximum, edges[-1])]))
    middle = np.clip(ends[:-1] / 2 + ends[1:] / 2, minimum, maximum)
    total = weights.sum()
    if not total:
        return 0.0, 0.0
    mean = float(weights @ middle / total)
    scale = float(np.abs(middle - mean).max())
    return mean, scale * math.sqrt(float(weights @ ((middle - mean) / (scale or 1.0)) ** 2 / total))
