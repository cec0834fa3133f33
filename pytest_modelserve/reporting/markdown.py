"""The run as Markdown for a pull request or a job summary: failures first, in a bounded size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_modelserve.evidence.failure_text import (
    format_budget,
    format_interval,
    format_probability,
    format_value,
    printable,
)
from pytest_modelserve.reporting.entries import GROUPS, Entry, Group, context_of, entries_of, headline, short

MAX_BYTES = 64 * 1024
"""GitHub refuses a comment above 65,536 characters and a job summary above 1 MiB."""
_SIGNS: dict[Group, str] = {"failed": "❌", "inconclusive": "⚠️", "measured": "📏", "passed": "✅"}
_FOLDED: tuple[Group, ...] = ("passed", "expected", "superseded")
_LEFT_OUT = 200  # bytes kept for the line on what was left out
_MOST_TEXTS = 20


def markdown_report(document: Mapping[str, Any], *, max_bytes: int = MAX_BYTES) -> str:
    """Return the document as Markdown of at most `max_bytes` in UTF-8.

    Names are code spans, where neither markup nor mentions work. What does not fit is counted at the end; rows of
    passing gates are left out first.
    """
    entries = entries_of(document)
    lines: list[str] = []
    left_out, room = 0, max_bytes - _LEFT_OUT
    for block in _blocks(document, entries):
        size = sum(len(line.encode("utf-8", "replace")) + 1 for line in block)
        if size > room:
            left_out += 1
            continue
        lines += block
        room -= size
    if left_out:
        lines += ["", f"{left_out} more rows and texts did not fit: the JSON document and the HTML page have all."]
    return "\n".join(lines) + "\n"


def _blocks(document: Mapping[str, Any], entries: Sequence[Entry]) -> Iterator[list[str]]:
    """Yield what is written whole or not at all."""
    worst: Group = next((entry.group for entry in entries if entry.group in _SIGNS), "passed")
    yield [f"## {_SIGNS[worst]} Model gates: {headline(document)}", "", f"{code(context_of(document))}", ""]
    if not document["complete"]:
        counts = document["counts"]
        yield [
            f"**This run is not complete:** {counts['ended']} of {counts['selected']} selected tests ended, "
            f"{counts['deselected']} were deselected.",
            "",
        ]
    for group, title in GROUPS.items():
        members = [entry for entry in entries if entry.group == group]
        if members:
            yield from _group(title, members, is_folded=group in _FOLDED)
    yield from _not_judged(document["not_judged"])
    if document["false_fail_probability_at_most"]:
        bound = format_probability(document["false_fail_probability_at_most"])
        yield ["", f"Probability of any false FAIL in this run: at most {bound}, if the methods' assumptions hold."]


def _group(title: str, members: Sequence[Entry], *, is_folded: bool) -> Iterator[list[str]]:
    heading = f"{title}: {len(members)}"
    opening = [f"<details><summary>{heading}</summary>", ""] if is_folded else [f"### {heading}", ""]
    yield [*opening, "| verdict | gate | model | measured | budget | test |", "|---|---|---|---|---|---|"]
    for entry in members:
        yield [_row(entry)]
    yield ["", "</details>", ""] if is_folded else [""]
    if members[0].group in ("failed", "inconclusive"):
        for entry in members[:_MOST_TEXTS]:
            yield _text(entry)


def _not_judged(reasons: Mapping[str, str]) -> Iterator[list[str]]:
    if reasons:
        yield [f"### Not judged: {len(reasons)}", ""]
        for node_id, reason in reasons.items():
            yield [f"- {code(node_id)}: {_plain(short(printable(reason), 400))}"]


def _row(entry: Entry) -> str:
    if entry.evidence is None:
        cells = ["", "", code(short(entry.error)), "", code(entry.node_id)]
    else:
        quantity = entry.evidence.decisive
        interval = "" if quantity.interval is None else f" {format_interval(quantity.interval, quantity.unit)}"
        against = f" vs {code(entry.against)}" if entry.against else ""
        cells = [
            code(entry.gate) if entry.evidence.label else entry.gate,
            code(entry.subject) + against,
            f"{code(quantity.name)} **{format_value(quantity.value, quantity.unit)}**{interval}",
            "" if quantity.budget is None else format_budget(quantity.budget, quantity.unit),
            code(entry.node_id),
        ]
    verdict = " ".join([f"**{entry.verdict}**", *(f"({remark})" for remark in entry.remarks)])
    return f"| {' | '.join([verdict, *cells])} |"


def _text(entry: Entry) -> list[str]:
    lines = [printable(line) for line in entry.text.split("\n")]
    fence = "`" * max(3, 1 + _longest_run("\n".join(lines)))
    title = f"{_plain(entry.gate)} of {_plain(entry.subject)}"
    return [f"<details><summary>{title}</summary>", "", f"{fence}text", *lines, fence, "", "</details>", ""]


def _plain(text: str) -> str:
    """Return a text in which no character is markup, the start of a link or a mention."""
    return re.sub(r"[\\`*_\[\]<>&~@#|!$:\"]", lambda found: f"&#{ord(found[0])};", text)


def code(text: str) -> str:
    """Return a text as a code span that stays one cell of a table."""
    text = printable(text)
    # Beside a backslash a bar cannot be escaped: GitHub reads two backslashes and a bar as the end of the cell.
    text = text.replace("|", "¦" if "\\" in text else "\\|")
    if not text.strip():
        return ""
    fence = "`" * (_longest_run(text) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall(r"`+", text)), default=0)
