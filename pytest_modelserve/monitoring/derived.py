"""Columns that are made of others: the lengths of texts, and the numbers of an embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pytest_modelserve.monitoring.kinds import Column

if TYPE_CHECKING:
    from pytest_modelserve.monitoring.profiled import ProfiledColumn

EMBEDDING_BINS = 32
"""Bins of each number of an embedding, for there are hundreds of them: 1 KB each, 750 KB of an embedding of 768. Where
a normal distribution moves or widens, its largest distance at 31 even quantiles is over 0.997 of that anywhere."""


def length_name(source: str) -> str:
    """What the lengths of the texts in column `source` are called."""
    return f"{source} (length)"


def part_name(source: str, index: int) -> str:
    """What number `index` of the embedding `source` is called."""
    return f"{source}[{index}]"


def is_length(column: Column | ProfiledColumn) -> bool:
    """Whether a column, of data or of a profile, holds the lengths of another one's texts."""
    return column.source is not None and column.name == length_name(column.source)


def lengths(column: Column) -> Column:
    """The letters of each text in `column`, NaN where it is null."""
    known = (np.nan if text is None else len(text) for text in column.values)
    values = np.fromiter(known, dtype=np.float64, count=len(column.values)) if column.kind else column.values
    return Column(length_name(column.name), column.kind and "integer", values, source=column.name)
