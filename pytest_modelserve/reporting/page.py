"""The JSON document as one HTML page: intervals drawn against their budgets, evidence and samples a click away."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_modelserve.evidence import Evidence, Quantity
from pytest_modelserve.reporting.distribution import Distribution, distribution_of
from pytest_modelserve.reporting.failure import failure_text
from pytest_modelserve.reporting.figures import percentage, told, told_budget, told_interval
from pytest_modelserve.reporting.growth import Growth, growth_of
from pytest_modelserve.reporting.samples import Readings, UnreadableSamplesError, samples_of
from pytest_modelserve.reporting.sanitising import printable
from pytest_modelserve.reporting.table import headline, versus


@dataclass(frozen=True, slots=True)
class Plot:
    """Where a quantity, its interval and its budget lie on a line from 0 to 100; the budget allows one side of it."""

    value: float
    low: float
    high: float
    limit: float
    allowed_from: float
    allowed_to: float


def render_page(document: Mapping[str, Any], *, beside: Path | None = None) -> str:
    """The page as text: one file that asks for nothing else, whatever names the models bring (they are escaped).

    `beside` is the folder of the document, where the files of raw samples lie that its gates name; they are drawn into
    the page. One that is missing or damaged is a sentence there.
    """
    # Both take longer to import than the whole plugin, and most runs draw no page.
    from importlib import resources

    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    counts = dict.fromkeys(("PASS", "FAIL", "INCONCLUSIVE", "CRASHED"), 0)
    for gate in document["gates"]:
        counts[gate["verdict"]] += gate["judged"]
    return environment.get_template("page.html.j2").render(
        run=document,
        counts=counts,
        error_bound=percentage(document["false_fail_probability_at_most"]),
        rows=list(_rows(document["gates"], beside)),
    )


_NOTHING = dict.fromkeys(("model", "gate", "subject", "figures", "text", "unreadable"), "") | {
    "plot": None,
    "drawing": None,
}


def _rows(gates: list[Mapping[str, Any]], beside: Path | None) -> Iterator[dict[str, Any]]:
    for gate in gates:
        row = {"test": gate["node_id"], "verdict": gate["verdict"], "expected": gate["expected"]}
        if gate["evidence"] is None:
            yield {**_NOTHING, **row, "figures": "its worker was lost"}
            continue
        evidence = Evidence.from_json(json.dumps(gate["evidence"]))
        quantity = headline(evidence)
        yield {
            **_NOTHING,
            **row,
            "model": evidence.subject.name,
            "gate": evidence.gate,
            "subject": versus(evidence.subject, evidence.reference),
            "figures": _figures(quantity),
            "plot": plot_of(quantity),
            "text": failure_text(evidence),
            **_drawn(evidence, quantity, beside),
        }


def _drawn(evidence: Evidence, quantity: Quantity, beside: Path | None) -> dict[str, Any]:
    """The samples as a drawing, or the sentence that says why there is none."""
    try:
        return {"drawing": _drawing(evidence, quantity, beside)}
    except UnreadableSamplesError as reason:
        return {"unreadable": printable(str(reason))}


def _drawing(evidence: Evidence, quantity: Quantity, beside: Path | None) -> Distribution | Growth | None:
    samples = samples_of(evidence, quantity, beside=beside)
    if samples is None or not math.isfinite(quantity.value):
        return None
    if isinstance(samples, Readings):
        return growth_of(samples, quantity)
    return distribution_of(samples, quantity)


def _figures(quantity: Quantity) -> str:
    assert quantity.budget is not None
    interval = "" if quantity.interval is None else f" {told_interval(quantity.interval, quantity.unit)}"
    value = f"{quantity.name} {told(quantity.value, quantity.unit)}"
    return f"{value}{interval}, budget {told_budget(quantity.budget, quantity.unit)}"


def plot_of(quantity: Quantity) -> Plot | None:
    """The quantity as a drawing, or None where its value is not finite; an open end reaches the edge."""
    assert quantity.budget is not None
    if not math.isfinite(quantity.value):
        return None
    ends = (
        (quantity.value, quantity.value)
        if quantity.interval is None
        else (quantity.interval.low, quantity.interval.high)
    )
    limit = quantity.budget.limit
    finite = [end for end in (*ends, quantity.value, limit) if math.isfinite(end)]
    margin = 0.15 * (max(finite) - min(finite)) or 1.0
    start, width = min(finite) - margin, max(finite) - min(finite) + 2 * margin

    def place(x: float) -> float:
        return round(min(100.0, max(0.0, 100 * (x - start) / width)), 2)

    at_most = quantity.budget.kind == "at most"
    return Plot(
        value=place(quantity.value),
        low=place(ends[0]),
        high=place(ends[1]),
        limit=place(limit),
        allowed_from=0.0 if at_most else place(limit),
        allowed_to=place(limit) if at_most else 100.0,
    )
