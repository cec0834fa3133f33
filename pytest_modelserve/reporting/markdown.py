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
from pytest_modelserve.reporting.history import History, describe_change

MAX_BYTES = 64 * 1024
"""GitHub refuses a comment above 65,536 characters and a job summary above 1 MiB."""
_SIGNS: dict[Group, str] = {"failed": "❌", "inconclusive": "⚠️", "passed": "✅", "measured": "📏"}
_FOLDED: tuple[Group, ...] = ("passed", "expected", "superseded")
_FRAME = 6 * 1024
"""Bytes for what is always written: headings, the context of at most 1,000 characters, and what was left out."""
_MOST_TEXTS = 20
_RECENT = 10
_NO_BREAK = "\u00a0"


def markdown_report(document: Mapping[str, Any], *, history: History | None = None, max_bytes: int = MAX_BYTES) -> str:
    """Return the document as Markdown of at most `max_bytes` in UTF-8.

    With a history, quantities that changed in one of the last ten builds are listed. Names are code spans, where
    neither markup nor mentions work. What does not fit is counted at the end; rows of passing gates are left out first.
    """
    entries = entries_of(document)
    lines: list[str] = []
    left_out, room = 0, max_bytes - _FRAME
    for block, is_frame in _blocks(document, entries, history):
        size = 0 if is_frame else sum(len(line.encode("utf-8", "replace")) + 1 for line in block)
        if size > room:
            left_out += 1
            continue
        lines += block
        room -= size
    if left_out:
        lines += ["", f"{left_out} more rows and texts did not fit: the JSON document and the HTML page have all."]
    return "\n".join(lines) + "\n"


_Block = tuple[list[str], bool]
"""Lines that are written together, and whether they are always written."""


def _blocks(document: Mapping[str, Any], entries: Sequence[Entry], history: History | None) -> Iterator[_Block]:
    found = {entry.group for entry in entries}
    sign = next((sign for group, sign in _SIGNS.items() if group in found), "✅")
    context = code(short(context_of(document), 1000))
    yield [f"## {sign} Model gates: {headline(document)}", "", context, ""], True
    if not document["complete"]:
        counts = document["counts"]
        incomplete = (
            f"**This run is not complete:** {counts['ended']} of {counts['selected']} selected tests ended, "
            f"{counts['deselected']} were deselected."
        )
        yield [incomplete, ""], True
    for group, title in GROUPS.items():
        members = [entry for entry in entries if entry.group == group]
        if members:
            yield from _group(title, members, is_folded=group in _FOLDED)
    yield from _not_judged(document["not_judged"])
    if history is not None:
        yield from _changes(history)
    if document["false_fail_probability_at_most"]:
        bound = format_probability(document["false_fail_probability_at_most"])
        yield (
            ["", f"Probability of any false FAIL in this run: at most {bound}, if the methods' assumptions hold."],
            True,
        )


def _group(title: str, members: Sequence[Entry], *, is_folded: bool) -> Iterator[_Block]:
    heading = f"{title}: {len(members)}"
    opening = [f"<details><summary>{heading}</summary>", ""] if is_folded else [f"### {heading}", ""]
    yield [*opening, "| verdict | gate | model | measured | budget | test |", "|---|---|---|---|---|---|"], True
    for entry in members:
        yield [_row(entry)], False
    yield ["", "</details>", ""] if is_folded else [""], True
    if members[0].group in ("failed", "inconclusive"):
        for entry in members[:_MOST_TEXTS]:
            yield _text(entry), False


def _not_judged(reasons: Mapping[str, str]) -> Iterator[_Block]:
    if reasons:
        yield [f"### Not judged: {len(reasons)}", ""], True
        for node_id, reason in reasons.items():
            yield [f"- {code(node_id)}: {_plain(short(printable(reason), 400))}"], False


def _changes(history: History) -> Iterator[_Block]:
    recent = [
        (series, change)
        for series in history.series.values()
        for change in series.changes[-1:]
        if series.builds[change.at] >= len(history.builds) - _RECENT
    ]
    if recent:
        yield [f"### Changed in the last {_RECENT} of {len(history.builds)} builds: {len(recent)}", ""], True
        for series, change in recent:
            what = f"{code(series.model)} {_plain(series.gate)}, {_plain(series.quantity)}"
            yield [f"- {what}: {_plain(describe_change(series, change, history.builds))}"], False


def _row(entry: Entry) -> str:
    test = code(entry.node_id.rpartition("::")[2])  # the whole name makes the table too wide to read
    if entry.evidence is None:
        cells = ["", "", code(short(entry.error)), "", test]
    else:
        quantity = entry.evidence.decisive
        interval = "" if quantity.interval is None else f" {format_interval(quantity.interval, quantity.unit)}"
        against = f"<br>vs {code(entry.against)}" if entry.against else ""
        value = f"**{format_value(quantity.value, quantity.unit)}**{interval}"
        budget = "" if quantity.budget is None else format_budget(quantity.budget, quantity.unit)
        cells = [
            _plain(entry.gate),
            code(entry.subject) + against,
            f"{_plain(printable(quantity.name))} {value.replace(' ', _NO_BREAK)}",
            budget.replace(" ", _NO_BREAK),
            test,
        ]
    verdict = " ".join([f"**{entry.verdict}**", *(f"({remark})" for remark in entry.remarks)])
    return f"| {' | '.join([verdict, *cells])} |"


def _text(entry: Entry) -> list[str]:
    lines = [printable(line) for line in entry.text.split("\n")]
    lines.append(f"  test       {entry.node_id}")
    fence = "`" * max(3, 1 + _longest_run("\n".join(lines)))
    title = f"{_plain(entry.gate)} of {_plain(entry.subject)}"
    return [f"<details><summary>{title}</summary>", "", f"{fence}text", *lines, fence, "", "</details>", ""]


def _plain(text: str) -> str:
    """Return a text in which nothing is markup, a link, a mention or the number of an issue."""
    text = re.sub(r"[\\`*_\[\]<>&~|!$:\"]", lambda found: f"&#{ord(found[0])};", text.replace("www.", "www\u200b."))
    # GitHub looks for mentions and numbers of issues in the decoded text.
    return re.sub(r"[@#](?!\d+;)", lambda found: f"{found[0]}\u200b", text)


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
