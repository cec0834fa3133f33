"""The gate table at the end of a run: one row a gate, grouped by model, and what the run as a whole can promise."""

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
    """A line in three parts, so that a terminal can colour the verdict alone; a heading has no verdict."""

    before: str
    verdict: RowVerdict | None = None
    after: str = ""

    def __str__(self) -> str:
        return f"{self.before}{self.verdict or ''}{self.after}".rstrip()


def table_lines(rows: Sequence[Row]) -> Iterator[TableLine]:
    """The rows under the names of their models, in aligned columns."""
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
    """How many gates ended how: "34 gates: 30 PASS, 4 FAIL (all expected), 0 INCONCLUSIVE"."""
    judged = [row for row in rows if not row.superseded]
    counts = {v: sum(row.verdict == v for row in judged) for v in ("PASS", "FAIL", "INCONCLUSIVE", "CRASHED")}
    expected = sum(row.expected for row in judged)
    how_many = "all" if expected == counts["FAIL"] else expected
    failed = f" ({how_many} expected)" if expected else ""
    gates = len(judged) - counts["CRASHED"]
    crashed = f", {counts['CRASHED']} CRASHED" if counts["CRASHED"] else ""
    return (
        f"{gates} gate{'' if gates == 1 else 's'}: {counts['PASS']} PASS, {counts['FAIL']} FAIL{failed}, "
        f"{counts['INCONCLUSIVE']} INCONCLUSIVE{crashed}"
    )


def error_bound(rows: Sequence[Row]) -> float:
    """The sum of the alphas of the judged gates, at most 1: Boole's bound on any false statistical FAIL."""
    return min(1.0, sum(row.record.evidence.alpha for row in rows if row.record and not row.superseded))


def error_bound_line(rows: Sequence[Row]) -> str:
    """What the run as a whole promises about its FAILs."""
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
    """The quantity that made the verdict: the first of the worst."""
    return next(q for q in evidence.quantities if q.verdict is evidence.verdict)


def format_variant(subject: Subject, reference: Subject | None) -> str:
    """What stands beside the model's name: "int8 vs fp32", "vs training rows", or "" where the name says it all."""
    if reference is None:
        return subject.variant
    other = (reference.variant or reference.name) if reference.name == subject.name else str(reference)
    return f"{subject.variant} vs {other}".strip()


def _notes(row: Row) -> str:
    """What stands behind the verdict: the sample and whatever qualifies the row."""
    if row.record is None:
        return "its worker was lost while it ran"
    notes = [f"n {format_number(row.record.evidence.n, 'count')}"]
    if row.expected:
        notes.append("expected")
    if row.record.examples > 1:
        notes.append(f"worst of {row.record.examples} examples")
    if row.superseded:
        notes.append(f"attempt {row.record.attempt}, run again: not judged")
    elif row.reruns:
        notes.append(f"attempt {row.record.attempt}: error rates do not hold under reruns")
    return " · ".join(notes)
