"""The gates of the JSON document as every report reads them: their group, their figures in one line, their place."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pytest_modelserve.evidence import Evidence, Quantity
from pytest_modelserve.evidence.failure_text import (
    MEASURED,
    failure_text,
    format_budget,
    format_interval,
    format_value,
    labeled_gate,
    printable,
)
from pytest_modelserve.reporting.terminal import format_counts, format_others, remarks

Group = Literal["failed", "inconclusive", "measured", "passed", "expected", "superseded"]
GROUPS: dict[Group, str] = {
    "failed": "Failed",
    "inconclusive": "Inconclusive",
    "measured": "Measured, without a budget",
    "passed": "Passed",
    "expected": "Failed as expected",
    "superseded": "Attempts that were run again",
}
"""Each group with its title, in the order of the reports: what needs a decision comes first."""
_SHORT = 120


@dataclass(frozen=True, slots=True)
class Entry:
    """One gate of the document, or one test that ended without a verdict, whose `evidence` is None.

    `verdict` is PASS, FAIL, INCONCLUSIVE, ERROR, CRASHED, or "measured" for evidence without a budget. All texts are
    printable.
    """

    group: Group
    verdict: str
    node_id: str
    file: str
    line: int | None
    outcome: str
    evidence: Evidence | None
    error: str
    remarks: tuple[str, ...]
    reruns: int
    identity: str

    @property
    def fingerprint(self) -> str:
        """The sha256 of the identity."""
        return hashlib.sha256(self.identity.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def gate(self) -> str:
        """The title of the gate with its label."""
        return "no verdict" if self.evidence is None else labeled_gate(self.evidence)

    @property
    def subject(self) -> str:
        """The model and its variant, or the name of the test that has no evidence."""
        return self.node_id if self.evidence is None else printable(str(self.evidence.subject))

    @property
    def against(self) -> str:
        """The reference, or "" if there is none."""
        reference = None if self.evidence is None else self.evidence.reference
        return "" if reference is None else printable(str(reference))

    @property
    def summary(self) -> str:
        """One sentence on the result."""
        return self.error if self.evidence is None else printable(self.evidence.summary)

    @property
    def figures(self) -> str:
        """The value that decides with its interval and budget: "drop 2.60 pt [1.36, 3.33], budget ≤ 1.00 pt"."""
        return short(self.error) if self.evidence is None else figures_of(self.evidence.decisive)

    @property
    def text(self) -> str:
        """The whole failure text, also of a PASS."""
        return self.error if self.evidence is None else failure_text(self.evidence)


def figures_of(quantity: Quantity) -> str:
    """Return a quantity with its interval and its budget, if it has them."""
    interval = "" if quantity.interval is None else f" {format_interval(quantity.interval, quantity.unit)}"
    budget = "" if quantity.budget is None else f", budget {format_budget(quantity.budget, quantity.unit)}"
    return f"{printable(quantity.name)} {format_value(quantity.value, quantity.unit)}{interval}{budget}"


def short(text: str, most: int = _SHORT) -> str:
    """Return at most `most` characters of a text."""
    return text if len(text) <= most else f"{text[:most]}…"


def entries_of(document: Mapping[str, Any]) -> list[Entry]:
    """Return the gates of a document, those that need a decision first."""
    order = list(GROUPS)
    return sorted(map(_entry, document["gates"]), key=lambda entry: order.index(entry.group))


def headline(document: Mapping[str, Any]) -> str:
    """Return the counts in one line: "30 PASS, 2 FAIL (1 expected), 0 INCONCLUSIVE · 3 measured"."""
    judged = [gate for gate in document["gates"] if gate["judged"]]
    counts = Counter(gate["verdict"] for gate in judged if gate["verdict"] is not None)
    expected = sum(gate["expected"] for gate in judged)
    measured = sum(gate["verdict"] is None for gate in judged)
    return format_counts(counts, expected=expected) + format_others(measured, len(document["not_judged"]))


def context_of(document: Mapping[str, Any]) -> str:
    """Return when, from which commit, where and with which versions the run was made."""
    environment = document["environment"]
    return printable(
        " · ".join(
            [
                document["started"].replace("T", " ").replace("+00:00", " UTC"),
                *([f"commit {document['commit']}"] if document["commit"] else []),
                f"{environment['cpus']} CPUs, {environment['cpu'] or environment['machine']}, {environment['system']}",
                f"Python {environment['python']}",
                *(f"{name} {version}" for name, version in environment["packages"].items()),
            ]
        )
    )


def identity_of(gate: Mapping[str, Any]) -> str:
    """Return the key of a gate that is the same in every run: test, gate, label, models and position, as JSON text."""
    evidence = gate["evidence"]
    if evidence is None:
        return json.dumps([gate["owner"], gate["error"]])
    models = [evidence["subject"], evidence["reference"] or {"name": "", "variant": ""}]
    names = [f"{model['name']} / {model['variant']}".removesuffix(" / ") for model in models]
    return json.dumps([gate["owner"], evidence["gate"], evidence["label"], *names, gate["index"]], ensure_ascii=False)


def _entry(gate: Mapping[str, Any]) -> Entry:
    evidence = gate["evidence"]
    verdict = gate["verdict"] or MEASURED
    return Entry(
        group=_group(gate, verdict),
        verdict=verdict,
        node_id=printable(gate["node_id"]),
        file=printable(gate["file"]),
        line=gate["line"],
        outcome=gate["outcome"],
        evidence=None if evidence is None else Evidence.from_json(json.dumps(evidence)),
        error=printable(gate["error"] or ""),
        remarks=tuple(remarks(gate["expected"], gate["judged"], gate["attempt"], gate["reruns"])),
        reruns=gate["reruns"],
        identity=identity_of(gate),
    )


def _group(gate: Mapping[str, Any], verdict: str) -> Group:
    if not gate["judged"]:
        return "superseded"
    if gate["expected"]:
        return "expected"
    of_verdict: dict[str, Group] = {"PASS": "passed", "INCONCLUSIVE": "inconclusive", MEASURED: "measured"}
    return of_verdict.get(verdict, "failed")
