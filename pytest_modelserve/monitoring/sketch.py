"""Sketches: a bounded number of raw rows in a profile, for the comparison of whole rows."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pytest_modelserve.errors import UsageError
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, ProfiledColumn, hash_bucket, hash_key
from pytest_modelserve.monitoring.columns import Column, escaped
from pytest_modelserve.monitoring.histogram import Floats, Integers

MAX_SKETCH = 20_000
"""The most raw rows: the features of as many, and of as many current rows, take 270 MB."""
_SEED = 20_170
"""Arbitrary: the same rows are chosen in every run."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """Raw `rows` of a data set, in order and spread evenly over all `seen` rows.

    `packed` holds them as doubles (rows, columns), with the columns in the profile's order. Categories are their place
    in the column's vocabulary, or the number of their hash bucket if that is empty. NaN is null.
    """

    seen: int
    rows: int
    columns: int
    vocabularies: tuple[tuple[str, ...], ...]
    packed: str

    @classmethod
    def of(cls, values: Floats, *, seen: int, vocabularies: tuple[tuple[str, ...], ...]) -> Sketch:
        """Return the sketch of `values` (rows, columns), out of `seen` rows."""
        data = zlib.compress(np.ascontiguousarray(values, dtype="<f8").tobytes())
        return cls(seen, values.shape[0], values.shape[1], vocabularies, base64.b64encode(data).decode())

    def values(self) -> Floats:
        """Return the rows (rows, columns)."""
        data = zlib.decompress(base64.b64decode(self.packed))
        return np.frombuffer(data, dtype="<f8").reshape(self.rows, self.columns).astype(np.float64)

    def merged(self, other: Sketch, keys: Sequence[bytes | None] = ()) -> Sketch:
        """Return a sketch of both data sets' rows; UsageError for other columns.

        Each gives rows in proportion to the rows it was made of, in all no more than the larger sketch has. `keys` are
        those of the columns' hash buckets.
        """
        if self.columns != other.columns:
            raise UsageError("other must have the same columns to be merged")
        vocabularies, mine, theirs = aligned(self, other, keys)
        seen = self.seen + other.seen
        rate = min(len(mine) / self.seen, len(theirs) / other.seen, max(len(mine), len(theirs)) / seen)
        parts = [
            values[spread(len(values), max(round(rate * sketch.seen), 1))]
            for sketch, values in ((self, mine), (other, theirs))
        ]
        return Sketch.of(np.concatenate(parts), seen=seen, vocabularies=vocabularies)

    def of_columns(self, places: Sequence[int]) -> Sketch:
        """Return the same rows with the columns at `places` alone."""
        vocabularies = tuple(self.vocabularies[place] for place in places)
        return Sketch.of(self.values()[:, list(places)], seen=self.seen, vocabularies=vocabularies)

    def content(self) -> dict[str, Any]:
        """Return all fields as JSON builtins."""
        return {
            "seen": self.seen,
            "kept": self.rows,
            "columns": self.columns,
            "vocabularies": [list(vocabulary) for vocabulary in self.vocabularies],
            "packed": self.packed,
        }

    @classmethod
    def of_content(cls, data: Mapping[str, Any]) -> Sketch:
        """Return the sketch that `content` was made of."""
        vocabularies = tuple(map(tuple, data["vocabularies"]))
        return cls(data["seen"], data["kept"], data["columns"], vocabularies, data["packed"])


def aligned(
    one: Sketch, other: Sketch, keys: Sequence[bytes | None] = ()
) -> tuple[tuple[tuple[str, ...], ...], Floats, Floats]:
    """Return the common vocabularies of two sketches, and the rows of each in terms of them.

    If one has hash buckets and the other names, the names are hashed.
    """
    vocabularies, tables = [], (one.values(), other.values())
    for column, both in enumerate(zip(one.vocabularies, other.vocabularies, strict=True)):
        key = keys[column] if keys else None
        hashed = [not words and not np.isnan(table[:, column]).all() for words, table in zip(both, tables, strict=True)]
        union = () if any(hashed) else tuple(dict.fromkeys((*both[0], *both[1])))
        for words, table in zip(both, tables, strict=True):
            if words:
                places = np.array(
                    [union.index(word) if union else hash_bucket(word, key) for word in words], dtype=np.float64
                )
                known = ~np.isnan(table[:, column])
                table[known, column] = places[table[known, column].astype(np.int64)]
        vocabularies.append(union)
    return tuple(vocabularies), *tables


def spread(rows: int, wanted: int) -> Integers:
    """Return at most `wanted` row numbers, rising: a random one in each of as many equal segments of `rows`.

    The result is the same in every run. A fixed step could coincide with a period of the data.
    """
    if wanted >= rows:
        return np.arange(rows)
    offsets = np.random.default_rng(_SEED).random(wanted)
    return np.floor((np.arange(wanted) + offsets) * rows / wanted).astype(np.int64)


def sketch_of(columns: Sequence[Column], profiled: Sequence[ProfiledColumn], *, wanted: int) -> Sketch:
    """Return a sketch of `wanted` rows, or of all if there are fewer; `profiled` are the columns' profiles."""
    seen = len(columns[0].values)
    rows = spread(seen, wanted)
    values = np.empty((len(rows), len(columns)))
    vocabularies = []
    for index, (column, reference) in enumerate(zip(columns, profiled, strict=True)):
        chosen = column.values[rows]
        vocabulary: tuple[str, ...] = ()
        if isinstance(reference, CategoricalColumn) and column.kind is not None:
            chosen = np.array([None if word is None else escaped(word) for word in chosen.tolist()], dtype=object)
            words = [word for word in chosen.tolist() if word is not None]
            vocabulary = () if reference.hashed else tuple(sorted(set(words)))
            key = hash_key(column.name, reference.key_check)
            places = {word: place for place, word in enumerate(vocabulary)} or {
                word: hash_bucket(word, key) for word in words
            }
            chosen = np.array([np.nan if word is None else places[word] for word in chosen.tolist()])
        values[:, index] = chosen
        vocabularies.append(vocabulary)
    return Sketch.of(values, seen=seen, vocabularies=tuple(vocabularies))
