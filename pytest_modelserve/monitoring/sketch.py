"""A bounded number of raw rows that a profile may keep: what tests of all columns at once compare with."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_modelserve.errors import UsageError
from pytest_modelserve.monitoring.column_profile import CategoricalColumn, ProfiledColumn, pool_of

if TYPE_CHECKING:
    from pytest_modelserve.monitoring.columns import Column
    from pytest_modelserve.monitoring.histogram import Floats, Integers

MAX_SKETCH = 20_000
"""Raw rows at most: the features of as many, and of as many current ones, take 270 MB."""
_SEED = 20_170
"""Any number: the rows chosen are the same in every run."""


@dataclass(frozen=True, slots=True)
class Sketch:
    """So many `kept` rows of a data set, in order and spread evenly over all `seen` rows: raw values, kept on request.

    `packed` holds them as doubles (kept, columns), the columns in the profile's order: numbers as they are, categories
    as their place in the column's vocabulary, or the number of their pool where that is empty; NaN is null.
    """

    seen: int
    kept: int
    columns: int
    vocabularies: tuple[tuple[str, ...], ...]
    packed: str

    @classmethod
    def of(cls, values: Floats, *, seen: int, vocabularies: tuple[tuple[str, ...], ...]) -> Sketch:
        """The sketch of these `values` (kept, columns), out of `seen` rows."""
        data = zlib.compress(np.ascontiguousarray(values, dtype="<f8").tobytes())
        return cls(seen, values.shape[0], values.shape[1], vocabularies, base64.b64encode(data).decode())

    def values(self) -> Floats:
        """The rows (kept, columns)."""
        data = zlib.decompress(base64.b64decode(self.packed))
        return np.frombuffer(data, dtype="<f8").reshape(self.kept, self.columns).astype(np.float64)

    def merged(self, other: Sketch) -> Sketch:
        """A sketch of both data sets' rows: each gives rows in proportion to those it stands for, no more in all than
        the larger sketch has, spread evenly over what it kept. UsageError for other columns.
        """
        if self.columns != other.columns:
            raise UsageError("sketches merge where they have the same columns")
        vocabularies, mine, theirs = aligned(self, other)
        seen = self.seen + other.seen
        rate = min(len(mine) / self.seen, len(theirs) / other.seen, max(len(mine), len(theirs)) / seen)
        parts = [
            values[spread(len(values), max(round(rate * sketch.seen), 1))]
            for sketch, values in ((self, mine), (other, theirs))
        ]
        return Sketch.of(np.concatenate(parts), seen=seen, vocabularies=vocabularies)

    def content(self) -> dict[str, Any]:
        """All of it as JSON builtins."""
        return {
            "seen": self.seen,
            "kept": self.kept,
            "columns": self.columns,
            "vocabularies": [list(vocabulary) for vocabulary in self.vocabularies],
            "packed": self.packed,
        }

    @classmethod
    def of_content(cls, data: Mapping[str, Any]) -> Sketch:
        """What `content` was made of."""
        vocabularies = tuple(map(tuple, data["vocabularies"]))
        return cls(data["seen"], data["kept"], data["columns"], vocabularies, data["packed"])


def aligned(one: Sketch, other: Sketch) -> tuple[tuple[tuple[str, ...], ...], Floats, Floats]:
    """The vocabularies of both sketches together, and the rows of either in terms of them.

    Where one has pools and the other names, the names go into their pools.
    """
    vocabularies, tables = [], (one.values(), other.values())
    for column, both in enumerate(zip(one.vocabularies, other.vocabularies, strict=True)):
        pooled = [not words and not np.isnan(table[:, column]).all() for words, table in zip(both, tables, strict=True)]
        union = () if any(pooled) else tuple(dict.fromkeys((*both[0], *both[1])))
        for words, table in zip(both, tables, strict=True):
            if words:
                places = np.array([union.index(word) if union else pool_of(word) for word in words], dtype=np.float64)
                known = ~np.isnan(table[:, column])
                table[known, column] = places[table[known, column].astype(np.int64)]
        vocabularies.append(union)
    return tuple(vocabularies), *tables


def spread(rows: int, wanted: int) -> Integers:
    """At most `wanted` numbers of rows, rising: one at random in each of as many equal stretches of `rows`.

    The same ones every time. At random, because a fixed step may fall in with a period of the data.
    """
    if wanted >= rows:
        return np.arange(rows)
    inside = np.random.default_rng(_SEED).random(wanted)
    return np.floor((np.arange(wanted) + inside) * rows / wanted).astype(np.int64)


def sketch_of(columns: Sequence[Column], profiled: Sequence[ProfiledColumn], *, wanted: int) -> Sketch:
    """A sketch of `wanted` rows in memory, or of all where there are fewer; `profiled` are the columns' profiles."""
    seen = len(columns[0].values)
    rows = spread(seen, wanted)
    values = np.empty((len(rows), len(columns)))
    vocabularies = []
    for index, (column, reference) in enumerate(zip(columns, profiled, strict=True)):
        chosen = column.values[rows]
        vocabulary: tuple[str, ...] = ()
        if isinstance(reference, CategoricalColumn) and column.kind is not None:
            words = [word for word in chosen.tolist() if word is not None]
            vocabulary = () if reference.pooled else tuple(sorted(set(words)))
            places = {word: place for place, word in enumerate(vocabulary)} or {word: pool_of(word) for word in words}
            chosen = np.array([np.nan if word is None else places[word] for word in chosen.tolist()])
        values[:, index] = chosen
        vocabularies.append(vocabulary)
    return Sketch.of(values, seen=seen, vocabularies=tuple(vocabularies))
