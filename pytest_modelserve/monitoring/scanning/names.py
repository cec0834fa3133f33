"""How many rows have each text of a column, and how long these are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from pytest_modelserve.errors import InputError
from pytest_modelserve.monitoring.scanning.cells import Cells
from pytest_modelserve.monitoring.scanning.columns import LazyColumn
from pytest_modelserve.monitoring.scanning.lazy_rows import LazyRows
from pytest_modelserve.monitoring.scanning.totals import Totals

MAX_NAMES = 1_000_000
"""Different texts of one column that come back: about 150 MB, and each goes into its pool by a hash of its own."""


def count_names(rows: LazyRows, column: LazyColumn) -> Counter[str]:
    """How many rows have each text of `column`, null left out.

    InputError, naming the column, for more than MAX_NAMES texts.
    """
    import narwhals

    text = narwhals.col("text")
    answer = rows.answer(
        rows.frame.select(column.values.alias("text"))
        .filter(~text.is_null())
        .group_by("text")
        .agg(narwhals.len().alias("rows"))
        .head(MAX_NAMES + 1)
    )
    if len(answer) > MAX_NAMES:
        raise InputError(
            f"{rows.name}: column {column.name!r} holds more than {MAX_NAMES:,} different texts: leave it out, or keep "
            "of it what rows have in common"
        )
    return Counter(dict(zip(answer["text"].to_list(), answer["rows"].to_list(), strict=True)))


def lengths_of(names: Mapping[str, int], *, rows: int) -> tuple[Totals, Cells]:
    """The letters of all texts, of which so many rows have each."""
    by_length = Counter[int]()
    for name, count in names.items():
        by_length[len(name)] += count
    values = np.array(sorted(by_length), dtype=np.float64)
    counts = np.array([by_length[int(value)] for value in values], dtype=np.int64)
    if not values.size:
        return Totals(rows, rows), Cells.of_values(values, counts)
    mean = float(np.average(values, weights=counts))
    std = float(np.sqrt(np.average((values - mean) ** 2, weights=counts)))
    ends = float(values[0]), float(values[-1])
    told = Totals(rows, rows - int(counts.sum()), minimum=ends[0], maximum=ends[1], mean=mean, std=std)
    return told, Cells.of_values(values, counts)
