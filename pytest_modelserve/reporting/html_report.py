"""The JSON document as one HTML page: what needs a decision first, each interval against its budget, drawings, filters.

The page is one file. A content security policy lets it load nothing and run nothing but its own script.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_modelserve.evidence import Environment, Evidence, Quantity
from pytest_modelserve.evidence.failure_text import (
    format_budget,
    format_interval,
    format_probability,
    format_value,
    printable,
)
from pytest_modelserve.reporting.charts import Chart, charts_of, draw_history
from pytest_modelserve.reporting.entries import GROUPS, Entry, Group, entries_of, headline
from pytest_modelserve.reporting.history import History, format_time
from pytest_modelserve.reporting.plots import Distribution, Growth, draw_distribution, draw_growth
from pytest_modelserve.reporting.samples import Readings, UnreadableSamplesError, samples_of

_MOST_SERIES = 4
_OPEN = 10
"""The gates of a group that are open at first: more than these nobody reads without choosing."""


@dataclass(frozen=True, slots=True)
class Plot:
    """The positions of a quantity, its interval and its budget on a line from 0 to 100; `limit` is None without one."""

    value: float
    low: float
    high: float
    limit: float | None
    allowed_from: float
    allowed_to: float


def render_page(document: Mapping[str, Any], *, folder: Path | None = None, history: History | None = None) -> str:
    """Return the page as one self-contained HTML text; every name from outside is escaped.

    `folder` is the folder of the document with its sample files, which are drawn into the page. A missing or damaged
    file is reported in its gate. `history` adds the earlier builds of each gate.
    """
    entries = entries_of(document)
    script = _load("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    numbers = {group: sum(entry.group == group for entry in entries) for group in GROUPS}
    bound = document["false_fail_probability_at_most"]
    return _render(
        "page.html.j2",
        run=document,
        headline=headline(document),
        started=format_time(document["started"]),
        environment=_environment_rows(document),
        script=script,
        script_digest=digest,
        bound=format_probability(bound) if bound else "",
        groups={group: (title, numbers[group]) for group, title in GROUPS.items() if numbers[group]},
        models=_choices(entry.evidence.subject.name for entry in entries if entry.evidence is not None),
        gates=_choices(entry.evidence.gate for entry in entries if entry.evidence is not None),
        rows=list(_rows(document, entries, numbers, folder, history)),
        problems=() if history is None else history.problems,
        not_judged={printable(name): printable(reason) for name, reason in document["not_judged"].items()},
        without_evidence={
            outcome: list(map(printable, node_ids)) for outcome, node_ids in document["without_evidence"].items()
        },
    )


def render_history(history: History) -> str:
    """Return each quantity over builds as one self-contained HTML page, those that changed first."""
    charts: dict[str, list[tuple[str, Chart]]] = {}
    for series in sorted(history.series.values(), key=lambda series: not series.changes):
        if (chart := draw_history(series, history.builds)) is not None:
            charts.setdefault(series.model, []).append((series.gate, chart))
    changed = sum(bool(series.changes) for series in history.series.values())
    return _render("history.html.j2", history=history, charts=charts, changed=changed)


def render_tuning(
    evidence: Evidence, *, headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
    """Return the table of a search over variants, with its drawing, as one self-contained HTML page."""
    return _render("tuning.html.j2", headings=headings, rows=rows, notes=notes, charts=charts_of(evidence))


def _load(name: str) -> str:
    from importlib import resources

    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, FunctionLoader, StrictUndefined  # most runs write no page, and the import is slow

    environment = Environment(
        loader=FunctionLoader(_load), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(style=_load("page.css"), **values)


def _choices(names: Iterator[str]) -> list[str]:
    return sorted({printable(name) for name in names}, key=str.lower)


def _environment_rows(document: Mapping[str, Any]) -> dict[str, str]:
    """Return when, from which commit, where and with which versions the run was made."""
    found = document["environment"]
    rows = {
        "commit": document["commit"] or "",
        "took": f"{document['duration_s']:.0f} s",
        "host": f"{found['cpus']} CPUs, {found['cpu'] or found['machine']}, {found['system']} {found['machine']}",
        "Python": found["python"],
        **found["packages"],
    }
    return {printable(name): printable(str(value)) for name, value in rows.items() if value}


def _rows(
    document: Mapping[str, Any],
    entries: Sequence[Entry],
    numbers: Mapping[Group, int],
    folder: Path | None,
    history: History | None,
) -> Iterator[dict[str, Any]]:
    of_run = document["environment"]
    for entry in entries:
        opens = entry.group in ("failed", "inconclusive") and numbers[entry.group] <= _OPEN
        row: dict[str, Any] = {"entry": entry, "is_open": opens, "model": "", "gate": "", "plot": None, "changed": ""}
        evidence = entry.evidence
        if evidence is not None:
            decisive = evidence.decisive
            row |= {
                "model": printable(evidence.subject.name),
                "gate": printable(evidence.gate),
                "plot": plot_of(decisive),
                "quantities": [_quantity_row(quantity, evidence) for quantity in evidence.quantities],
                "facts": _facts(evidence, of_run),
                "findings": list(map(printable, evidence.findings)),
                "advice": printable(evidence.advice),
                **_drawn(evidence, decisive, folder),
            }
            if history is not None:
                row |= _over_builds(entry, evidence, history, row["drawings"])
        yield row


def _over_builds(entry: Entry, evidence: Evidence, history: History, drawings: Sequence[Any]) -> dict[str, Any]:
    """Return the drawings with those of the decisive quantity and of changed ones over builds, and the last change."""
    found = [series for q in evidence.quantities if (series := history.series.get((entry.identity, q.name)))]
    shown = [series for series in found if series.changes or series.quantity == printable(evidence.decisive.name)]
    changed = [history.builds[series.builds[series.changes[-1].at]].started for series in found if series.changes]
    over_builds = (draw_history(series, history.builds) for series in shown[:_MOST_SERIES])
    return {
        "drawings": [*drawings, *filter(None, over_builds)],
        "changed": f"changed {format_time(max(changed))[:10]}" if changed else "",
    }


def _quantity_row(quantity: Quantity, evidence: Evidence) -> dict[str, Any]:
    interval = quantity.interval
    levels = ""
    if interval is not None:
        levels = f"low {format_probability(interval.low_level)}, high {format_probability(interval.high_level)}"
    argument = "" if quantity.budget is None else quantity.budget.argument
    return {
        "name": printable(quantity.name),
        "value": format_value(quantity.value, quantity.unit),
        "interval": "" if interval is None else format_interval(interval, quantity.unit),
        "levels": levels,
        "budget": "" if quantity.budget is None else format_budget(quantity.budget, quantity.unit),
        "argument": printable(argument),
        "verdict": quantity.verdict or "",
        "plot": plot_of(quantity) if len(evidence.quantities) > 1 and quantity.budget is not None else None,
    }


def _facts(evidence: Evidence, of_run: Mapping[str, Any]) -> dict[str, str]:
    """Return the method, the models and the place where the gate was measured, as far as it is not that of the run."""
    models = {"candidate": evidence.subject, "reference": evidence.reference}
    method = evidence.method
    facts = {
        "sample": f"n = {evidence.n:,} {evidence.n_unit}",
        "method": method.name,
        "source": method.source,
        "assumptions": method.assumptions,
        **{name: f"{model}, sha256 {model.sha256[:16]}…" for name, model in models.items() if model and model.sha256},
        "error rates": _rates(evidence),
        "measured on": _other_environment(evidence.environment, of_run),
        "took": f"{evidence.duration_s:.2f} s",
    }
    return {name: printable(text) for name, text in facts.items() if text}


def _rates(evidence: Evidence) -> str:
    passing = "" if evidence.confidence is None else f"PASS at confidence {format_probability(evidence.confidence)}"
    failing = f"false FAIL with probability at most {format_probability(evidence.alpha)}" if evidence.alpha else ""
    return ", ".join(filter(None, (passing, failing)))


def _other_environment(environment: Environment, of_run: Mapping[str, Any]) -> str:
    here = {"Python": environment.python, "CPU": environment.cpu, "CPUs": environment.cpus, **environment.packages}
    there = {"Python": of_run["python"], "CPU": of_run["cpu"], "CPUs": of_run["cpus"], **of_run["packages"]}
    return ", ".join(f"{name} {value}" for name, value in here.items() if value != there.get(name))


def _drawn(evidence: Evidence, quantity: Quantity, folder: Path | None) -> dict[str, Any]:
    """Return the drawings of a gate, and the reason why its samples are not drawn, if there are any."""
    drawings: list[Chart | Distribution | Growth] = []
    unreadable = ""
    try:
        drawing = _sample_drawing(evidence, quantity, folder)
        drawings += [] if drawing is None else [drawing]
    except UnreadableSamplesError as reason:
        unreadable = printable(str(reason))
    return {"drawings": [*drawings, *charts_of(evidence)], "unreadable": unreadable}


def _sample_drawing(evidence: Evidence, quantity: Quantity, folder: Path | None) -> Distribution | Growth | None:
    samples = samples_of(evidence, quantity, folder=folder)
    if samples is None or not math.isfinite(quantity.value):
        return None
    if isinstance(samples, Readings):
        return None if quantity.budget is None else draw_growth(samples, quantity)
    return draw_distribution(samples, quantity)


def plot_of(quantity: Quantity) -> Plot | None:
    """Return the interval plot, or None if there is no finite value, or neither interval nor budget.

    An infinite bound reaches the edge.
    """
    interval, budget = quantity.interval, quantity.budget
    if not math.isfinite(quantity.value) or (interval is None and budget is None):
        return None
    ends = (quantity.value, quantity.value) if interval is None else (interval.low, interval.high)
    limits = [] if budget is None else [budget.limit]
    finite = [end for end in (*ends, quantity.value, *limits) if math.isfinite(end)]
    margin = 0.15 * (max(finite) - min(finite)) or 1.0
    start, width = min(finite) - margin, max(finite) - min(finite) + 2 * margin

    def place(x: float) -> float:
        return round(min(100.0, max(0.0, 100 * (x - start) / width)), 1)

    limit = None if budget is None else place(budget.limit)
    at_most = budget is not None and budget.kind == "at_most"
    return Plot(
        value=place(quantity.value),
        low=place(ends[0]),
        high=place(ends[1]),
        limit=limit,
        allowed_from=0.0 if limit is None or at_most else limit,
        allowed_to=0.0 if limit is None else limit if at_most else 100.0,
    )
