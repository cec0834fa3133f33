"""The text of a failure: what was measured, against what, with which interval, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_modelserve.errors import printable as printable  # the name under which every report imports it

if TYPE_CHECKING:
    from pytest_modelserve.evidence.evidence import Budget, Evidence, Interval, Quantity, Subject, Unit


MEASURED = "measured"
"""What stands in the place of a verdict where there is no budget."""

MAX_LINES = 18  # a failure should fit on a screen with the call above it
_LINES_OF_QUANTITY = 5  # with the empty line before it


def failure_text(evidence: Evidence) -> str:
    """Return the whole text of evidence; its first line is a summary."""
    judged = [quantity for quantity in evidence.quantities if quantity.budget is not None or evidence.verdict is None]
    return "\n".join(_lines(evidence, judged, evidence.findings))


def failure_message(evidence: Evidence) -> str:
    """Return the message of a GateFailure or GateInconclusive: the failure text, in at most MAX_LINES.

    A longer text keeps the decisive quantity, the first findings, then the quantities with the worst verdicts.
    """
    text = failure_text(evidence)
    if text.count("\n") < MAX_LINES:
        return text
    judged = [quantity for quantity in evidence.quantities if quantity.budget is not None]
    others = [quantity for quantity in judged if quantity is not evidence.decisive]
    others.sort(key=lambda quantity: ("FAIL", "INCONCLUSIVE", "PASS").index(str(quantity.verdict)))
    room = MAX_LINES - len(_ends(evidence)) - 3 - _LINES_OF_QUANTITY  # summary, empty line and the rest have 3
    findings = evidence.findings[:room]
    left_out = others[(room - len(findings)) // _LINES_OF_QUANTITY :]
    counts = {"more quantities": len(left_out), "more findings": len(evidence.findings) - len(findings)}
    numbers = ", ".join(f"{name}: {number}" for name, number in counts.items() if number)
    rest = _row("the rest", f"{numbers}; --modelserve-html=PATH and --modelserve-json=PATH write all")
    return "\n".join(_lines(evidence, [q for q in judged if q not in left_out], findings, rest))


def labeled_gate(evidence: Evidence) -> str:
    """Return the title of the gate with the label of the call: "accuracy parity [night images]"."""
    return f"{evidence.gate} [{printable(evidence.label)}]" if evidence.label else evidence.gate


def evidence_line(evidence: Evidence) -> str:
    """Return evidence in one line: "size of digits: PASS, size 88 B ≤ 1.0 KiB, n = 1 files"."""
    quantity = evidence.decisive
    interval = "" if evidence.interval is None else f" {format_interval(evidence.interval, quantity.unit)}"
    budget = "" if evidence.budget is None else f" {format_budget(evidence.budget, quantity.unit)}"
    subject = printable(f"{evidence.subject}{'' if evidence.reference is None else f' vs {evidence.reference}'}")
    return (
        f"{labeled_gate(evidence)} of {subject}: {evidence.verdict or MEASURED}, {printable(quantity.name)} "
        f"{format_value(quantity.value, quantity.unit)}{interval}{budget}, "
        f"n = {evidence.n} {evidence.n_unit}"
    )


def _lines(
    evidence: Evidence, judged: Sequence[Quantity], findings: Sequence[str], rest: str | None = None
) -> Iterator[str]:
    yield f"{labeled_gate(evidence)}: {printable(evidence.summary)}"
    context = _context(evidence)
    for quantity in judged:
        yield ""
        yield from _quantity_lines(quantity, evidence, context)
        context = ""
    yield ""
    for finding in findings:
        yield f"  {printable(finding)}"
    if rest is not None:
        yield rest
    yield from _ends(evidence)


def _ends(evidence: Evidence) -> list[str]:
    """Return the last lines: the models and what to do next."""
    lines = [_row("candidate", _identity(evidence.subject))]
    if evidence.reference is not None:
        lines.append(_row("reference", _identity(evidence.reference)))
    if evidence.advice:
        lines.append(_row("next", printable(evidence.advice)))
    return lines


def _row(label: str, text: str) -> str:
    return f"  {label:<10} {text}"


def _quantity_lines(quantity: Quantity, evidence: Evidence, context: str) -> Iterator[str]:
    value = format_in_words(quantity.value, quantity.unit) + (f"   ({context})" if context else "")
    yield _row(printable(quantity.name), value)
    size = printable(f"n = {evidence.n} {evidence.n_unit}")
    sample = f"{printable(evidence.method.name)}, {size}"
    if quantity.interval is None:
        has_intervals = any(each.interval is not None for each in evidence.quantities)
        yield _row("sample", size) if has_intervals else _row("method", sample)  # the method is that of the intervals
    else:
        low, high = map(format_probability, (quantity.interval.low_level, quantity.interval.high_level))
        interval = format_interval(quantity.interval, quantity.unit)
        yield _row("interval", f"{interval}  low at {low}, high at {high}, {sample}")
    if quantity.budget is None:
        return
    kind = quantity.budget.kind.replace("_", " ")
    argument = f" ({printable(quantity.budget.argument)})" if quantity.budget.argument else ""
    yield _row("budget", f"{kind} {format_in_words(quantity.budget.limit, quantity.unit)}{argument}")
    yield _row("verdict", f"{quantity.verdict}: {verdict_reason(quantity)}")


def _context(evidence: Evidence) -> str:
    """Return the quantities without a budget in one line: "reference 94.20 % → candidate 91.60 %"."""
    if evidence.verdict is None:  # each has lines of its own
        return ""
    reported = [
        f"{printable(q.name)} {format_in_words(q.value, q.unit)}" for q in evidence.quantities if q.budget is None
    ]
    return " → ".join(reported) if len(reported) == 2 else ", ".join(reported)


def _identity(subject: Subject) -> str:
    digest = f"  sha256 {subject.sha256[:12]}…" if subject.sha256 else ""
    return printable(str(subject)) + digest


def format_number(value: float, unit: Unit) -> str:
    """Return `value` without its unit, as in an interval."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return _NUMBER_FORMATS[unit](value)


def format_value(value: float, unit: Unit) -> str:
    """Return `value` with its unit: "94.20 %", "2.60 pt", "× 0.83", "38.2 dB"."""
    return _UNIT_FORMATS.get(unit, "{}").format(format_number(value, unit))


def format_in_words(value: float, unit: Unit) -> str:
    """Return `value` as `format_value` does, with "points" in place of "pt": "2.60 points"."""
    text = format_value(value, unit)
    return text.replace(" pt", " points") if unit == "proportion_difference" else text


def format_interval(interval: Interval, unit: Unit) -> str:
    """Return both bounds without unit: "[1.42, 3.33]"."""
    return f"[{format_number(interval.low, unit)}, {format_number(interval.high, unit)}]"


def format_budget(budget: Budget, unit: Unit) -> str:
    """Return the budget in short form: "≤ 1.00 pt"."""
    return f"{'≤' if budget.kind == 'at_most' else '≥'} {format_value(budget.limit, unit)}"


def format_probability(probability: float) -> str:
    """Return a probability in percent: two significant digits below 0.5, six above ("3.4 %", "99.98 %")."""
    digits = 2 if probability < 0.5 else 6
    return f"{float(f'{100 * probability:.{digits}g}'):g} %"


def verdict_reason(quantity: Quantity) -> str:
    """Return the reason for the verdict: where the interval lies relative to the budget."""
    assert quantity.budget is not None
    beyond = "above" if quantity.budget.kind == "at_most" else "below"
    what = "the value lies" if quantity.interval is None else "the whole interval lies"
    match quantity.verdict:
        case "PASS":
            return f"{what} inside the budget"
        case "FAIL":
            return f"{what} {beyond} the budget"
        case _:
            return "the interval contains the limit of the budget"


def _significant(value: float) -> str:
    """Return three significant digits, with an exponent only below 0.001 and from a million on."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def _milliseconds(value: float) -> str:
    """Return `value` with its unit: microseconds below 0.1 ms."""
    return f"{_significant(1000 * value)} µs" if 0 < abs(value) < 0.1 else f"{_significant(value)} ms"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(value) >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


_NUMBER_FORMATS: dict[Unit, Callable[[float], str]] = {
    "proportion": lambda value: f"{100 * value:.2f}",
    "proportion_difference": lambda value: f"{100 * value:.2f}",
    "ratio": lambda value: f"{value:.2f}",
    "tolerance": _significant,
    "cosine": lambda value: f"{value:.5f}",
    "dB": lambda value: f"{value:.1f}",
    "ms": _milliseconds,
    "bytes": _bytes,
    "count": lambda value: f"{value:.0f}" if math.isfinite(value) else str(value),
    "": _significant,
}
_UNIT_FORMATS: dict[Unit, str] = {
    "proportion": "{} %",
    "proportion_difference": "{} pt",
    "ratio": "× {}",
    "tolerance": "{} × tolerance",
    "dB": "{} dB",
}
