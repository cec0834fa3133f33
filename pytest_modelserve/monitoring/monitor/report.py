"""The evidence of a monitor, with its findings and advice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pytest_modelserve.evidence import Budget, Evidence, Interval, Method, Quantity, Subject, Verdict, worst_verdict
from pytest_modelserve.monitoring.monitor.stream_evidence import Change, Evaluation, Evaluator

_MAX_FINDINGS = 5
_MAX_CHANGES = 40
"""With more changes, evidence would be longer than a test report holds."""
_CONFIDENCE = 0.95
_LARGEST_LOG = 690.0
"""The largest e-value that is shown is e to this power, near the largest double."""

_METHOD = Method(
    "e-process, a mixture over the start of the change",
    "Ville 1939; Robbins 1970; Howard et al. 2021; Clopper & Pearson 1934 (rates of the reference)",
    "rows are independent, or count as their estimated dependence leaves; means of a slot are normal; without a "
    "change all true values lie within the tolerance",
)


def alarm_evidence(
    found: Evaluation,
    evaluator: Evaluator,
    *,
    name: str,
    alpha: float,
    windows: int,
    latest: int,
    title: Callable[[int], str],
    revised: tuple[str, str] | None,
    duration_s: float,
) -> Evidence:
    """Return the evidence of all windows so far.

    `title` names a slot, and `revised` is a window whose labels came, with the verdict before.
    """
    quantities = [
        Quantity(
            "e-value",
            math.exp(min(found.log_e, _LARGEST_LOG)),
            "",
            budget=Budget("at_most", math.exp(found.log_limit), f"alpha={alpha:g}"),
        )
    ]
    short = _too_few_rows(found, evaluator)
    worst = _least_resolved(found, evaluator)
    if worst is not None and not found.alarmed:
        stream, resolution = evaluator.streams[worst], float(found.resolutions[worst])
        quantities.append(
            Quantity(
                "resolution",
                resolution,
                stream.unit,
                Interval(0.0, resolution, _CONFIDENCE, _CONFIDENCE),
                Budget("at_most", stream.tolerated, stream.argument),
            )
        )
    verdict = worst_verdict(quantities)
    return Evidence(
        gate="alarm",
        subject=Subject(name),
        quantities=tuple(quantities),
        n=windows,
        n_unit="windows",
        method=_METHOD,
        summary=_summary(verdict, found, title, windows),
        confidence=_CONFIDENCE,
        alpha=alpha,
        findings=_findings(verdict, found, evaluator, short, title, revised),
        advice=_advice(verdict, found, evaluator, short, title, over=latest >= evaluator.life),
        details={
            "log10_e_value": round(found.log_e / math.log(10), 3),
            "windows": windows,
            "latest": title(latest),
            "changes": [_change(change, title) for change in found.changes[:_MAX_CHANGES]],
            "changed_streams": len(found.changes),
            "too_few_rows": [evaluator.streams[place].name for place in short[:20]],
        },
        duration_s=duration_s,
    )


def _least_resolved(found: Evaluation, evaluator: Evaluator) -> int | None:
    """Return the stream whose resolution is the largest multiple of its tolerance; None without any."""
    judged = np.flatnonzero((evaluator.tolerated > 0) | (found.rows == 0))
    if not judged.size:
        return None
    with np.errstate(divide="ignore"):
        return int(judged[np.round(found.resolutions[judged] / evaluator.tolerated[judged], 6).argmax()])


def _too_few_rows(found: Evaluation, evaluator: Evaluator) -> list[int]:
    """Return the streams with too few rows, those with fewest first."""
    return sorted(evaluator.unresolved(found).tolist(), key=lambda place: (found.rows[place], place))


def _summary(verdict: Verdict, found: Evaluation, title: Callable[[int], str], windows: int) -> str:
    if verdict is Verdict.FAIL:
        first, *others = _by_column(found.changes)
        name = repr(first.stream.column) if first.stream.column else first.stream.name
        more = f" and {len(others)} more" if others else ""
        return f"{name}{more} changed by more than is tolerated, since {title(first.since)}"
    if verdict is Verdict.INCONCLUSIVE:
        return f"no alarm in {_count(windows, 'window')}, but too few rows to distinguish the tolerated shift from none"
    return f"no alarm in {_count(windows, 'window')}"


def _findings(
    verdict: Verdict,
    found: Evaluation,
    evaluator: Evaluator,
    short: list[int],
    title: Callable[[int], str],
    revised: tuple[str, str] | None,
) -> tuple[str, ...]:
    changes = _by_column(found.changes)
    findings = [_describe(change, title) for change in changes[:_MAX_FINDINGS]]
    if len(changes) > _MAX_FINDINGS:
        findings.append(f"{len(changes) - _MAX_FINDINGS} more changed")
    if revised is not None and revised[1] and revised[1] != verdict:
        findings.append(f"the labels of {revised[0]} revised the verdict: {revised[1]} → {verdict}")
    if verdict is Verdict.INCONCLUSIVE:
        findings += _missing_rows(found, evaluator, short)
    return tuple(findings)


def _missing_rows(found: Evaluation, evaluator: Evaluator, short: list[int]) -> list[str]:
    """Return a sentence for each tolerance that needs more rows, on the stream that needs most."""
    needed, references = evaluator.needed_rows()
    groups: dict[str, list[int]] = {}
    for place in sorted(short, key=lambda place: (-np.round(references[place]), place)):
        groups.setdefault(evaluator.streams[place].argument, []).append(place)
    findings = []
    for argument, alike in groups.items():
        worst = alike[0]
        more = f" and {_count(len(alike) - 1, 'more stream')}" if len(alike) > 1 else ""
        takes = (
            f"takes {needed[worst]:,.0f}"
            if math.isfinite(needed[worst])
            else f"takes a reference of {references[worst]:,.0f} rows instead of {evaluator.reference_rows[worst]:,.0f}"
        )
        findings.append(
            f"{evaluator.streams[worst].name}{more}: {found.rows[worst]:,.0f} rows so far, and {argument} {takes}"
        )
    return findings[:_MAX_FINDINGS]


def _advice(
    verdict: Verdict,
    found: Evaluation,
    evaluator: Evaluator,
    short: list[int],
    title: Callable[[int], str],
    *,
    over: bool,
) -> str:
    if verdict is Verdict.FAIL:
        return (
            f"compare the rows since {title(found.changes[0].earliest)} with earlier ones; if the change is meant to "
            "stay, make a new reference from them, and start a monitor with a new state file"
        )
    if verdict is Verdict.INCONCLUSIVE:
        needed, references = evaluator.needed_rows()
        never = [place for place in short if math.isinf(needed[place])]
        if never:
            rows = max(references[place] for place in never)
            return f"make the reference from about {rows:,.0f} rows, and check as many, or tolerate a larger shift"
        more = max(needed[place] - found.rows[place] for place in short)
        return f"check about {more:,.0f} more rows, or tolerate a larger shift"
    if over:
        return (
            f"the life of {evaluator.life} slots is over, and new changes are found later: make a new reference and "
            "start a monitor with a new state file"
        )
    return ""


def _by_column(changes: Sequence[Change]) -> list[Change]:
    """Return the first change of each column."""
    found: dict[str, Change] = {}
    for change in changes:
        found.setdefault(change.stream.column or change.stream.name, change)
    return list(found.values())


def _describe(change: Change, title: Callable[[int], str]) -> str:
    stream = change.stream
    span = title(change.earliest)
    if change.latest != change.earliest:
        span += f" to {title(change.latest)}"
    return f"{stream.name}: {_shift(change)} since {title(change.since)} (start with probability 90 %: {span})"


def _shift(change: Change) -> str:
    stream = change.stream
    if stream.kind == "rate":
        before = stream.events / stream.rows
        return f"{100 * before:.2f} % → {100 * (before + change.shift):.2f} %"
    if stream.unit == "proportion_difference":
        return f"{100 * change.shift:+.2f} points"
    return f"{change.shift:+.3g}{' sd' if stream.sd == 1 else ''}"


def _change(change: Change, title: Callable[[int], str]) -> dict[str, Any]:
    return {
        "stream": change.stream.name,
        "shift": round(change.shift, 6),
        "since": title(change.since),
        "earliest": title(change.earliest),
        "latest": title(change.latest),
        "since_slot": change.since,
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
