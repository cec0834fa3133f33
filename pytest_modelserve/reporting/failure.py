"""Evidence as the text of a failure: what was measured, against what, how sure, where, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_modelserve.evidence import Evidence, Quantity, Subject
from pytest_modelserve.reporting.figures import percentage, told_interval, verdict_reason, worded
from pytest_modelserve.reporting.sanitising import printable


def failure_text(evidence: Evidence) -> str:
    """The message of a GateFailure or GateInconclusive, several lines long; its first line stands alone."""
    return "\n".join(_lines(evidence))


def _lines(evidence: Evidence) -> Iterator[str]:
    yield f"{evidence.gate}: {printable(evidence.summary)}"
    context = _context(evidence)
    for quantity in evidence.quantities:
        if quantity.budget is not None:
            yield ""
            yield from _judged(quantity, evidence, context)
            context = ""
    yield ""
    for finding in evidence.findings:
        yield f"  {printable(finding)}"
    yield _row("candidate", _identity(evidence.subject))
    if evidence.reference is not None:
        yield _row("reference", _identity(evidence.reference))
    if evidence.advice:
        yield _row("next", printable(evidence.advice))


def _row(label: str, text: str) -> str:
    return f"  {label:<10} {text}"


def _judged(quantity: Quantity, evidence: Evidence, context: str) -> Iterator[str]:
    assert quantity.budget is not None
    assert quantity.verdict is not None
    yield _row(quantity.name, worded(quantity.value, quantity.unit) + (f"   ({context})" if context else ""))
    sample = f"{evidence.method.name}, n = {evidence.n} {evidence.n_unit}"
    if quantity.interval is None:
        yield _row("method", sample)
    else:
        levels = f"low at {percentage(quantity.interval.low_level)}, high at {percentage(quantity.interval.high_level)}"
        yield _row("interval", f"{told_interval(quantity.interval, quantity.unit)}  {levels}, {sample}")
    yield _row("budget", f"{quantity.budget.kind} {worded(quantity.budget.limit, quantity.unit)}")
    yield _row("verdict", f"{quantity.verdict}: {verdict_reason(quantity)}")


def _context(evidence: Evidence) -> str:
    """The unjudged quantities in one line: "reference 94.20 % → candidate 91.60 %"."""
    told_ones = [f"{q.name} {worded(q.value, q.unit)}" for q in evidence.quantities if q.budget is None]
    return " → ".join(told_ones) if len(told_ones) == 2 else ", ".join(told_ones)


def _identity(subject: Subject) -> str:
    digest = f"  sha256 {subject.sha256[:12]}…" if subject.sha256 else ""
    return printable(str(subject)) + digest
