"""The terminal table of gates at the end of a run, and the error rate of the whole run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_modelserve.evidence.failure_text import (
    format_budget,
    format_interval,
    format_number,
    format_probability,
    format_value,
    printable,
)

if TYPE_CHECKING:
    from pytest_modelserve.evidence import Evidence, Quantity, Subject
    from pytest_modelserve.reporting.collector import Row, RowVerdict

_CRASHES = "crashed"


@dataclass(frozen=True, slots=True)
class TableLine:
    """A line in three parts, so that only the verdict is colored; a heading has no verdict."""

    before: str
    verdict: RowVerdict | None = None
    after: str = ""

    def __str__(self) -> str:
        return f"{self.before}{self.verdict or ''}{self.after}".rstrip()


def table_lines(rows: Sequence[Row]) -> Iterator[TableLine]:
    """Return the rows in aligned columns, grouped by model."""
    cells = {id(row): _cells(row) for row in rows}
    widths = [max((len(row[column]) for row in cells.values()), default=0) for column in range(5)]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_CRASHES if row.record is None else row.record.evidence.subject.name, []).append(row)
    verdict_width = max((len(row.verdict) for row in rows), default=0)
    for model, members in groups.items():
        yield TableLine(printable(model))
        for row in members:
            padded = [cell.ljust(width) for cell, width in zip(cells[id(row)], widths, strict=True)]
            space = " " * (verdict_width - len(row.verdict) + 2)
            yield TableLine("  " + "  ".join(padded) + "  ", row.verdict, space + _notes(row))


def summary_line(rows: Sequence[Row]) -> str:
    """Return the number of gates by verdict: "34 gates: 30 PASS, 4 FAIL (all expected), 0 INCONCLUSIVE"."""
    counted = [row for row in rows if not row.superseded]
    counts = {v: sum(row.verdict == v for row in counted) for v in ("PASS", "FAIL", "INCONCLUSIVE", "CRASHED")}
    expected = sum(row.expected for row in counted)
    how_many = "all" if expected == counts["FAIL"] else expected
    failed = f" ({how_many} expected)" if expected else ""
    gates = len(counted) - counts["CRASHED"]
    crashed = f", {counts['CRASHED']} CRASHED" if counts["CRASHED"] else ""
    return (
        f"{gates} gate{'' if gates == 1 else 's'}: {counts['PASS']} PASS, {counts['FAIL']} FAIL{failed}, "
        f"{counts['INCONCLUSIVE']} INCONCLUSIVE{crashed}"
    )


def error_bound(rows: Sequence[Row]) -> float:
    """Return Boole's bound on the probability of any false FAIL: the sum of the alphas, at most 1."""
    return min(1.0, sum(row.record.evidence.alpha for row in rows if row.record and not row.superseded))


def error_bound_line(rows: Sequence[Row]) -> str:
    """Return the sentence on the false-alarm probability of the whole run."""
    return (
        "If every subject is inside its budget (for drift and data quality: same distribution as the profile) and "
        "each method's stated assumptions hold, this run gives at least one statistical FAIL with probability at most "
        f"{format_probability(error_bound(rows))}, the sum of the alphas; INCONCLUSIVE is not counted."
    )


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    if row.record is None:
        return (printable(row.node_id), "", "", "", "")
    evidence = row.record.evidence
    quantity = headline(evidence)
    assert quantity.budget is not None
    value = format_value(quantity.value, quantity.unit)
    return (
        evidence.gate,
        printable(format_variant(evidence.subject, evidence.reference)),
        value if quantity.unit == "ratio" else f"{quantity.name} {value}",
        "" if quantity.interval is None else format_interval(quantity.interval, quantity.unit),
        format_budget(quantity.budget, quantity.unit),
    )


def headline(evidence: Evidence) -> Quantity:
    """Return the quantity that decides the verdict: the first with the worst one."""
    return next(q for q in evidence.quantities if q.verdict is evidence.verdict)


def format_variant(subject: Subject, reference: Subject | None) -> str:
    """Return the variants that were compared: "int8 vs fp32", "vs training rows", or ""."""
    if reference is None:
        return subject.variant
    other = (reference.variant or reference.name) if reference.name == subject.name else str(reference)
    return f"{subject.variant} vs {other}".strip()


def _notes(row: Row) -> str:
    """Return the sample size and remarks on the row."""
    if row.record is None:
        return "its worker crashed"
    notes = [f"n {format_number(row.record.evidence.n, 'count')}"]
    if row.expected:
        notes.append("expected")
    if row.record.examples > 1:
        notes.append(f"worst of {row.record.examples} examples")
    if row.superseded:
        notes.append(f"attempt {row.record.attempt}, rerun: does not count")
    elif row.reruns:
        notes.append(f"attempt {row.record.attempt}: error rates do not hold under reruns")
    return " · ".join(notes)
