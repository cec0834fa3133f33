"""What an engine tells of whole columns at once: rows, nulls, infinities, the range and the moments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_modelserve.monitoring.profiled import NumericColumn, ProfiledColumn
from pytest_modelserve.monitoring.scanning.columns import LazyColumn
from pytest_modelserve.monitoring.scanning.lazy_rows import LazyRows

if TYPE_CHECKING:
    import narwhals


@dataclass(frozen=True, slots=True)
class Totals:
    """A column: all `rows`, the `nulls` among them (NaN too), infinities, and the rest's range, mean and deviation.

    `below` and `above` are the finite values outside the range of the column that it is held against. `stranger` is a
    value that this one's kind cannot hold, the fraction of a whole number say; None where there is none.
    """

    rows: int
    nulls: int
    negative_infinities: int = 0
    positive_infinities: int = 0
    minimum: float = 0.0
    maximum: float = 0.0
    mean: float = 0.0
    std: float = 0.0
    below: int = 0
    above: int = 0
    stranger: float | None = None

    @property
    def known(self) -> int:
        """The rows that are not null."""
        return self.rows - self.nulls

    @property
    def finite(self) -> int:
        """The rows that are neither null nor infinite."""
        return self.known - self.negative_infinities - self.positive_infinities


def totals(rows: LazyRows, columns: Sequence[LazyColumn], like: Mapping[str, ProfiledColumn]) -> list[Totals]:
    """The totals of each of `columns`, which are one query; `like` are columns by name to hold them against."""
    import narwhals

    asked = [narwhals.len().alias("rows")]
    for index, column in enumerate(columns):
        # As columns of their own, values are computed once for all that is asked of them.
        values = replace(column, values=narwhals.col(str(index)))
        asked += [expression.alias(f"{key} {index}") for key, expression in _asked(values, like).items()]
    frame = rows.frame.select(*(column.values.alias(str(index)) for index, column in enumerate(columns)))
    row = rows.answer(frame.select(*asked)).row(0, named=True)
    told = [{key: row.get(f"{key} {index}") for key in _KEYS} for index in range(len(columns))]
    return [_totals(rows, column, int(row["rows"]), found) for column, found in zip(columns, told, strict=True)]


_KEYS = ("nulls", "finite", "negative", "positive", "minimum", "maximum", "mean", "std", "below", "above", "stranger")


def _asked(column: LazyColumn, like: Mapping[str, ProfiledColumn]) -> dict[str, narwhals.Expr]:
    values = column.values
    asked = {"nulls": values.null_count()}
    if column.kind in (None, "category"):
        return asked
    finite = _finite(values) if column.kind == "float" else values
    asked |= {"minimum": finite.min(), "maximum": finite.max(), "mean": finite.mean(), "std": finite.std(ddof=0)}
    if column.kind == "float":
        # NaN is what is neither null nor finite nor infinite. DuckDB sees none where it is asked for NaN: it takes the
        # range that a Parquet file states of a column, which leaves NaN out, for a proof that there is none.
        asked |= {
            "finite": finite.count(),
            "negative": _count(values == -math.inf),
            "positive": _count(values == math.inf),
        }
    reference = like.get(column.name)
    if isinstance(reference, NumericColumn) and column.kind != "category":
        if reference.finite:
            asked |= {"below": _count(finite < reference.minimum), "above": _count(finite > reference.maximum)}
        if (strange := _strange(column, reference)) is not None:
            asked["stranger"] = strange
    return asked


def _strange(column: LazyColumn, reference: NumericColumn) -> narwhals.Expr | None:
    import narwhals

    values = column.values
    known = narwhals.when(values.is_finite() | (values.abs() == math.inf)).then(values)
    if reference.kind == "boolean" and column.kind != "boolean":
        return narwhals.when((known != 0) & (known != 1)).then(known).min()
    if reference.kind == "integer" and column.kind == "float":
        finite = _finite(values)
        return narwhals.when(finite != finite.floor()).then(finite).min()
    return None


def _finite(values: narwhals.Expr) -> narwhals.Expr:
    import narwhals

    return narwhals.when(values.is_finite()).then(values)


def _count(condition: narwhals.Expr) -> narwhals.Expr:
    """How often a condition holds. Its sum would do, if Spark had sums of conditions."""
    import narwhals

    return narwhals.when(condition).then(1).otherwise(0).sum()


def _totals(rows: LazyRows, column: LazyColumn, n: int, told: Mapping[str, Any]) -> Totals:
    counts = {key: int(told[key] or 0) for key in ("nulls", "negative", "positive", "below", "above")}
    infinite = counts["negative"] + counts["positive"]
    nan = n - counts["nulls"] - infinite - int(told["finite"]) if column.kind == "float" else 0
    minimum, maximum = (float(told[key]) if told[key] is not None else 0.0 for key in ("minimum", "maximum"))
    mean, std = told["mean"], told["std"]
    if minimum == maximum:
        mean, std = minimum, 0.0
    elif not (math.isfinite(mean) and math.isfinite(std)):
        mean, std = _scaled_moments(rows, column, max(-minimum, maximum))
    return Totals(
        rows=n,
        nulls=counts["nulls"] + nan,
        negative_infinities=counts["negative"],
        positive_infinities=counts["positive"],
        minimum=minimum,
        maximum=maximum,
        mean=min(max(float(mean), minimum), maximum),
        std=float(std),
        below=counts["below"],
        above=counts["above"],
        stranger=None if told["stranger"] is None else float(told["stranger"]),
    )


def _scaled_moments(rows: LazyRows, column: LazyColumn, largest: float) -> tuple[float, float]:
    """Mean and deviation where the sum of the squares is beyond what a double holds: of the values over the largest."""
    scale = math.ldexp(1.0, math.frexp(largest)[1] - 1)
    values = _finite(column.values) / scale
    mean, std = rows.answer(rows.frame.select(values.mean().alias("mean"), values.std(ddof=0).alias("std"))).row(0)
    return mean * scale, std * scale
