"""The terminal table of gates at the end of a run, and the error rate of the whole run."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from pytest_modelserve.evidence.failure_text import (
    MEASURED,
    format_budget,
    format_interval,
    format_number,
    format_probability,
    format_value,
    labeled_gate,
    printable,
)

if TYPE_CHECKING:
    from pytest_modelserve.evidence import Interval, Subject
    from pytest_modelserve.evidence.evidence import Unit
    from pytest_modelserve.reporting.collector import Row

_NO_VERDICT = "no verdict"
_ERROR_WIDTH = 120
_INDENT = " " * 6
# Widths that are tried for a column: its longest cell, and these quantiles of the lengths that occur.
_PARTS = (1.0, 0.9, 0.75, 0.5, 0.25, 0.0)
VERDICTS = ("PASS", "FAIL", "INCONCLUSIVE")


@dataclass(frozen=True, slots=True)
class TableLine:
    """A line in three parts, so that only the verdict is colored; a heading has no verdict."""

    before: str
    verdict: str | None = None
    after: str = ""

    def __str__(self) -> str:
        return f"{self.before}{self.verdict or ''}{self.after}".rstrip()


def table_lines(rows: Sequence[Row], width: int | None = None) -> Iterator[TableLine]:
    """Return the rows in aligned columns, grouped by model; failures come first, and models with failures.

    Lines fit into `width` characters where it is given: columns narrow, then each row takes two lines. The name of the
    test is written as far as there is room, and always below a row that needs attention.
    """
    groups: dict[str, list[Row]] = {}
    for row in failures_first(rows):
        groups.setdefault(_NO_VERDICT if row.record is None else row.record.evidence.subject.name, []).append(row)
    layout = _Layout.of([row for row in rows if row.record is not None], rows, width)
    for model, members in groups.items():
        yield TableLine(printable(model))
        for row in members:
            yield from layout.lines(row, members)


@dataclass(frozen=True, slots=True)
class _Layout:
    """The widths of the columns; a longer cell pushes the rest of its row, and a row that is too long is folded.

    `columns` is None where every row takes two lines.
    """

    columns: tuple[int, ...] | None
    verdict: int
    width: int | None

    @classmethod
    def of(cls, gates: Sequence[Row], rows: Sequence[Row], width: int | None) -> _Layout:
        """Return the columns that fold the fewest rows of `gates` and displace the fewest cells.

        Columns narrow one after the other, each time the one that costs least; the best of all steps counts.
        """
        verdict = max((len(row.verdict or MEASURED) for row in rows), default=0)
        cells = [_cells(row) for row in gates]
        sizes = [([*map(len, row)], verdict + 2 + len(_notes(gate))) for row, gate in zip(cells, gates, strict=True)]
        lengths = [sorted({len(cell) for cell in column}) for column in zip(*cells, strict=True)]
        steps = [
            sorted({column[round(part * (len(column) - 1))] for part in _PARTS}, reverse=True) for column in lengths
        ]
        columns = [column.pop(0) for column in steps]
        best = _cost(sizes, columns, width), tuple(columns)
        while best[0] and any(steps):
            tried = []
            for index, column in enumerate(steps):
                if column:
                    narrower = [*columns[:index], column[0], *columns[index + 1 :]]
                    tried.append((_cost(sizes, narrower, width), index, narrower))
            cost, index, columns = min(tried)
            steps[index].pop(0)
            best = min(best, (cost, tuple(columns)), key=lambda pair: pair[0])
        layout = cls(best[1], verdict, width)
        folded = sum(layout._is_folded(row) for row in gates)
        return cls(None, verdict, width) if 2 * folded > len(gates) else layout

    def lines(self, row: Row, group: Sequence[Row]) -> Iterator[TableLine]:
        """Return the lines of a row; `group` are the rows of the same model."""
        if row.record is None:
            yield from self._without_evidence(row, max(len(_cells(each)[0]) for each in group))
            return
        cells = _cells(row)
        figures: tuple[str, ...] = ()
        if self._is_folded(row):
            widths = self.columns or [max(len(_cells(each)[column]) for each in group) for column in (0, 1)]
            before, figures = _aligned(cells[:2], widths[:2]), cells[2:]
        else:
            assert self.columns is not None
            before = _aligned(cells, self.columns)
        line = TableLine(before, row.verdict or MEASURED, self._after(row))
        name = _test_name(printable(row.record.owner), None if self.width is None else self.width - len(str(line)) - 3)
        yield TableLine(before, line.verdict, line.after + (f" · {name}" if name else ""))
        if figures:
            yield TableLine(_INDENT + "  ".join(filter(None, figures)))
        if not name and _needs_attention(row):
            yield TableLine(_INDENT + printable(row.record.owner))

    def _is_folded(self, row: Row) -> bool:
        if self.columns is None or self.width is None:
            return self.columns is None
        line = TableLine(_aligned(_cells(row), self.columns), row.verdict or MEASURED, self._after(row))
        return len(str(line)) > self.width

    def _without_evidence(self, row: Row, longest: int) -> Iterator[TableLine]:
        before = _aligned(_cells(row), [longest])
        line = TableLine(before, row.verdict, self._after(row))
        if self.width is None or len(str(line)) <= self.width:
            yield line
        else:
            yield TableLine(before, row.verdict)
            yield TableLine(_INDENT + _notes(row))

    def _after(self, row: Row) -> str:
        return " " * (self.verdict - len(row.verdict or MEASURED) + 2) + _notes(row)


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return the cells in columns of these widths, with space for the verdict behind them."""
    line, start = "", 2
    for cell, width in zip(cells, widths, strict=True):
        if cell:
            line = (f"{line}  " if line else "").ljust(start) + cell
        start += width + 2
    return f"{line}  ".ljust(start)


def _cost(rows: Sequence[tuple[Sequence[int], int]], widths: Sequence[int], width: int | None) -> int:
    """Return how many cells do not begin where their column does, the verdict counted twice, and each folded row 8.

    `rows` are the lengths of the cells of each row, and of what follows them.
    """
    starts = [2 + sum(widths[:column]) + 2 * column for column in range(len(widths) + 1)]
    cost = 0
    for cells, after in rows:
        end = displaced = 0
        for cell, start in zip(cells, starts, strict=False):
            if cell:
                displaced += end + 2 > start
                end = max(end + 2, start) + cell
        at = max(end + 2, starts[-1])
        displaced += 2 * (at > starts[-1])
        cost += 8 if width is not None and at + after > width else displaced
    return cost


def _test_name(owner: str, room: int | None) -> str:
    """Return the name of a test, or as much of its end as there is room for: without folders, without its file; ""."""
    file, _, test = owner.rpartition("/")[2].partition("::")
    names = (owner, f"{file}::{test}" if test else file, test)
    return next((name for name in names if room is None or len(name) <= room), "")


def _needs_attention(row: Row) -> bool:
    return row.verdict not in (None, "PASS") and not row.expected and not row.superseded


def failures_first(rows: Sequence[Row]) -> list[Row]:
    """Return unexpected FAIL, ERROR and CRASHED, INCONCLUSIVE, PASS, then measurements, in the given order."""

    def rank(row: Row) -> int:
        if row.verdict is None:
            return 3
        if row.expected or row.superseded or row.verdict == "PASS":
            return 2
        return 1 if row.verdict == "INCONCLUSIVE" else 0

    return sorted(rows, key=rank)


def count_verdicts(rows: Sequence[Row]) -> str:
    """Count rows by verdict, "30 PASS, 4 FAIL (all expected), 0 INCONCLUSIVE"; superseded ones do not count."""
    counted = [row for row in rows if not row.superseded]
    counts: Counter[str] = Counter(row.verdict for row in counted if row.verdict is not None)
    return format_counts(counts, expected=sum(row.expected for row in counted))


def format_counts(counts: Mapping[str, int], *, expected: int) -> str:
    """Return the numbers of PASS, FAIL and INCONCLUSIVE, and of the other verdicts if there are any."""
    how_many = "all" if expected == counts.get("FAIL") else expected
    parts = [f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS]
    if expected:
        parts[VERDICTS.index("FAIL")] += f" ({how_many} expected)"
    return ", ".join(
        parts + [f"{number} {v}" for v, number in sorted(counts.items(), reverse=True) if number and v not in VERDICTS]
    )


def format_others(measured: int, not_judged: int) -> str:
    """Return the number of measurements without a budget and of what was not judged: " · 3 measured · 1 not judged"."""
    numbers = {MEASURED: measured, "not judged": not_judged}
    return "".join(f" · {number} {what}" for what, number in numbers.items() if number)


def summary_line(
    rows: Sequence[Row],
    without_evidence: Mapping[str, Sequence[str]] = MappingProxyType({}),
    not_judged: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the number of gates by verdict, of measurements, of what was not judged, and of tests without evidence.

    Tests count as such if they neither passed nor left evidence, an error or the reason why they judged nothing.
    """
    recorded = [row for row in rows if row.record is not None and not row.superseded]
    gates = sum(row.verdict is not None for row in recorded)
    listed = {row.node_id for row in rows if row.record is None} | not_judged.keys()
    others = {
        outcome: number
        for outcome, node_ids in without_evidence.items()
        if outcome != "passed" and (number := len(set(node_ids) - listed))
    }
    ended = ", ".join(f"{number} {outcome}" for outcome, number in others.items())
    return (
        f"{gates} gate{'' if gates == 1 else 's'}: {count_verdicts(rows)}"
        + format_others(len(recorded) - gates, len(not_judged))
        + (f" · without evidence: {ended}" if ended else "")
    )


def not_judged_lines(not_judged: Mapping[str, str]) -> Iterator[str]:
    """Return what could not be judged and why, under a heading: a reason of several gates of a file once."""
    if not_judged:
        yield "not judged"
    gates: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for node_id, reason in not_judged.items():
        file, _, gate = printable(node_id).rpartition("::")
        gates[file, _shortened(reason)].append(gate)
    for (file, reason), names in gates.items():
        if len(names) == 1:
            yield f"  {file}::{names[0]}  {reason}"
        else:
            yield f"  {file}  {reason}"
            yield from textwrap.wrap(", ".join(names), 110, initial_indent="    ", subsequent_indent="    ")


def error_bound(rows: Sequence[Row]) -> float:
    """Return Boole's bound on the probability of any false FAIL: the sum of the alphas, at most 1."""
    return min(1.0, sum(row.record.evidence.alpha for row in rows if row.record and not row.superseded))


def error_bound_line(rows: Sequence[Row]) -> str:
    """Return the sentence on the false-alarm probability of the whole run."""
    return (
        "If every subject is inside its budget (for comparisons with a profile: same distribution) and "
        "each method's stated assumptions hold, this run gives at least one statistical FAIL with probability at most "
        f"{format_probability(error_bound(rows))}, the sum of the alphas; INCONCLUSIVE is not counted."
    )


def _cells(row: Row) -> tuple[str, ...]:
    if row.record is None:
        return (printable(row.node_id),)
    evidence = row.record.evidence
    quantity = evidence.decisive
    value = format_value(quantity.value, quantity.unit)
    return (
        labeled_gate(evidence),
        printable(format_variant(evidence.subject, evidence.reference)),
        value if quantity.unit == "ratio" else f"{printable(quantity.name)} {value}",
        "" if evidence.interval is None else _interval_with_levels(evidence.interval, quantity.unit),
        "" if evidence.budget is None else format_budget(evidence.budget, quantity.unit),
    )


def _interval_with_levels(interval: Interval, unit: Unit) -> str:
    """Return the interval with the levels of both bounds: "[-0.20, 0.50] 99.9/95 %"."""
    low = format_probability(interval.low_level).removesuffix(" %")
    return f"{format_interval(interval, unit)} {low}/{format_probability(interval.high_level)}"


def format_variant(subject: Subject, reference: Subject | None) -> str:
    """Return the variants that were compared: "int8 vs fp32", "vs training rows", or ""."""
    if reference is None:
        return subject.variant
    other = (reference.variant or reference.name) if reference.name == subject.name else str(reference)
    return f"{subject.variant} vs {other}".strip()


def _notes(row: Row) -> str:
    """Return the sample size and remarks on the row, or why there is no verdict."""
    if row.record is None:
        notes = [_shortened(row.error)]
    else:
        notes = [f"n {format_number(row.record.evidence.n, 'count')}"]
        if row.record.examples > 1:
            notes.append(f"worst of {row.record.examples} examples")
    return " · ".join([*notes, *remarks(row.expected, not row.superseded, row.attempt, row.reruns)])


def _shortened(reason: str) -> str:
    text = printable(reason.partition("\n")[0])
    return text if len(text) <= _ERROR_WIDTH else f"{text[:_ERROR_WIDTH]}…"


def remarks(expected: bool, judged: bool, attempt: int, reruns: int) -> Iterator[str]:
    """Return remarks on a row: expected failure, superseded attempt, reruns."""
    if expected:
        yield "expected"
    if not judged:
        yield f"attempt {attempt}, rerun: does not count"
    elif reruns:
        yield f"attempt {attempt}: error rates do not hold under reruns"
