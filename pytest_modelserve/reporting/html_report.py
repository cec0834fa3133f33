"""The JSON document as one HTML page: intervals against budgets, with evidence and samples in each row."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from pytest_modelserve.evidence import Evidence, Quantity
from pytest_modelserve.evidence.failure_text import (
    MEASURED,
    failure_text,
    format_budget,
    format_interval,
    format_probability,
    format_value,
    labeled_gate,
    printable,
)
from pytest_modelserve.reporting.plots import Distribution, Growth, draw_distribution, draw_growth
from pytest_modelserve.reporting.terminal import VERDICTS, format_variant, remarks

_MEDIAN = 0.5
_DRAWN = ("log_ratios", "wall_ms", "cpu_ms", "undisturbed_ms")
_FILE = re.compile(r"samples/([0-9a-f]{64})\.npz")


class UnreadableSamplesError(Exception):
    """Samples cannot be drawn; the message is one sentence for the page."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Sorted values in the unit of the quantity, whose quantile `level` has the budget.

    `of` names the observations ("calls"), `that` completes "the share of calls that …" ("took at most this long").
    `second` are the values by `second_clock`, or () if they were not measured.
    """

    of: str
    that: str
    level: float
    values: tuple[float, ...]
    second: tuple[float, ...] = ()
    second_clock: str = "CPU time"


@dataclass(frozen=True, slots=True)
class Readings:
    """Resident memory in bytes after every `calls_each` calls, in order."""

    resident: tuple[float, ...]
    calls_each: int


def samples_of(evidence: Evidence, quantity: Quantity, *, folder: Path | None) -> Sample | Readings | None:
    """Return the samples behind `quantity`, or None if there are none.

    `folder` is the folder of the document, which holds the sample files. Raises UnreadableSamplesError for a file that
    is missing or whose content does not match the sha256 in its name.
    """
    details = evidence.details
    try:
        if "resident_bytes" in details:
            return _readings(details)
        sample = _sample(details, quantity, evidence.n_unit, folder)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnreadableSamplesError("The samples have an unknown format.") from error
    return sample if sample is not None and sample.values else None


def _sample(details: Mapping[str, Any], quantity: Quantity, unit: str, folder: Path | None) -> Sample | None:
    if "added_bytes" in details:
        return Sample(unit, "added at most this much memory", _MEDIAN, _ascending(details["added_bytes"]))
    if "first call CPU" in details:
        return _starts(details, quantity, unit)
    return _timing_sample(details, unit, folder) if "samples" in details else None


def _readings(details: Mapping[str, Any]) -> Readings | None:
    resident = tuple(map(float, details["resident_bytes"]))
    return Readings(resident, int(details["calls_per_segment"])) if len(resident) > 1 else None


def _starts(details: Mapping[str, Any], quantity: Quantity, unit: str) -> Sample:
    """Return session creation plus first call, by the clock of the budget."""
    cpu = _ascending(map(sum, zip(details["session CPU"], details["first call CPU"], strict=True)))
    if quantity.name == "start CPU":
        return Sample(unit, "took at most this CPU time", _MEDIAN, cpu)
    wall = list(map(sum, zip(details["session"], details["first call"], strict=True)))
    if "run delay" in details:
        undisturbed = _ascending(time - delay for time, delay in zip(wall, details["run delay"], strict=True))
        return Sample(unit, "took at most this long undisturbed", _MEDIAN, undisturbed, _ascending(wall), "wall time")
    return Sample(unit, "took at most this long", _MEDIAN, _ascending(wall), cpu)


def _timing_sample(details: Mapping[str, Any], unit: str, folder: Path | None) -> Sample | None:
    entry = details["samples"]
    if "not_written" in entry:
        raise UnreadableSamplesError(f"The samples were not written: {entry['not_written']}.")
    arrays = _arrays(str(entry["file"]), folder)
    if "log_ratios" in arrays:
        ratios = tuple(map(math.exp, arrays["log_ratios"]))
        return Sample(unit, "had at most this ratio of candidate to reference time", _MEDIAN, ratios)
    if "wall_ms" not in arrays:
        return None
    level, wall = details["quantile"], arrays["wall_ms"]
    if "undisturbed_ms" in arrays:
        return Sample(
            unit, "took at most this long undisturbed", level, arrays["undisturbed_ms"], wall, second_clock="wall time"
        )
    return Sample(unit, "took at most this long", level, wall, arrays.get("cpu_ms", ()))


def _arrays(file: str, folder: Path | None) -> dict[str, tuple[float, ...]]:
    """Return the arrays to draw from a sample file, sorted and finite."""
    name = _FILE.fullmatch(file)
    if name is None:
        raise ValueError(file)
    if folder is None:
        raise UnreadableSamplesError(f"The samples are only available with --modelserve-json: {file}.")
    try:
        content = (folder / file).read_bytes()
    except OSError as error:
        raise UnreadableSamplesError(f"The samples cannot be read: {file}: {error.strerror or error}.") from error
    if hashlib.sha256(content).hexdigest() != name[1]:
        raise UnreadableSamplesError(f"The samples are damaged: the content of {file} does not match its sha256.")
    import numpy as np

    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files if key in _DRAWN}
    except (BadZipFile, EOFError, OSError) as error:
        raise ValueError(file) from error
    return {key: tuple(np.sort(array[np.isfinite(array)]).tolist()) for key, array in found.items()}


def _ascending(values: Any) -> tuple[float, ...]:
    return tuple(sorted(value for value in map(float, values) if math.isfinite(value)))


@dataclass(frozen=True, slots=True)
class Plot:
    """The positions of a quantity, its interval and its budget on a line from 0 to 100."""

    value: float
    low: float
    high: float
    limit: float
    allowed_from: float
    allowed_to: float


def render_page(document: Mapping[str, Any], *, folder: Path | None = None) -> str:
    """Return the page as one self-contained HTML text; names from model files are escaped.

    `folder` is the folder of the document with its sample files, which are drawn into the page. A missing or damaged
    file is reported in its row.
    """
    # Imported here because most runs write no page, and both imports are slow.
    from importlib import resources

    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(lambda name: resources.files(__package__).joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    counts = dict.fromkeys((*VERDICTS, "ERROR", "CRASHED", MEASURED), 0)
    for gate in document["gates"]:
        counts[gate["verdict"] or MEASURED] += gate["judged"]
    return environment.get_template("page.html.j2").render(
        run=document,
        context=_context(document),
        counts=", ".join(f"{number} {verdict}" for verdict, number in counts.items() if number or verdict in VERDICTS),
        error_bound=format_probability(document["false_fail_probability_at_most"]),
        rows=list(_rows(document["gates"], folder)),
        without_evidence={
            outcome: list(map(printable, node_ids)) for outcome, node_ids in document["without_evidence"].items()
        },
    )


def _context(document: Mapping[str, Any]) -> str:
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


_NOTHING = dict.fromkeys(("model", "gate", "subject", "figures", "text", "unreadable"), "") | {
    "plot": None,
    "drawing": None,
}


def _rows(gates: list[Mapping[str, Any]], folder: Path | None) -> Iterator[dict[str, Any]]:
    for gate in gates:
        row = {
            "test": printable(gate["node_id"]),
            "verdict": gate["verdict"] or MEASURED,
            "expected": gate["expected"],
            "remarks": list(remarks(gate["expected"], gate["judged"], gate["attempt"], gate["reruns"])),
        }
        if gate["evidence"] is None:
            yield {**_NOTHING, **row, "figures": printable(gate["error"])}
            continue
        evidence = Evidence.from_json(json.dumps(gate["evidence"]))
        quantity = evidence.decisive
        yield {
            **_NOTHING,
            **row,
            "model": evidence.subject.name,
            "gate": labeled_gate(evidence),
            "subject": format_variant(evidence.subject, evidence.reference),
            "figures": _figures(quantity),
            "plot": plot_of(quantity),
            "text": failure_text(evidence),
            **_drawn(evidence, quantity, folder),
        }


def _drawn(evidence: Evidence, quantity: Quantity, folder: Path | None) -> dict[str, Any]:
    """Return the drawing of the samples, or the reason why there is none."""
    try:
        return {"drawing": _drawing(evidence, quantity, folder)}
    except UnreadableSamplesError as reason:
        return {"unreadable": printable(str(reason))}


def _drawing(evidence: Evidence, quantity: Quantity, folder: Path | None) -> Distribution | Growth | None:
    samples = samples_of(evidence, quantity, folder=folder)
    if samples is None or quantity.budget is None or not math.isfinite(quantity.value):
        return None
    if isinstance(samples, Readings):
        return draw_growth(samples, quantity)
    return draw_distribution(samples, quantity)


def _figures(quantity: Quantity) -> str:
    interval = "" if quantity.interval is None else f" {format_interval(quantity.interval, quantity.unit)}"
    value = f"{quantity.name} {format_value(quantity.value, quantity.unit)}"
    budget = "" if quantity.budget is None else f", budget {format_budget(quantity.budget, quantity.unit)}"
    return f"{value}{interval}{budget}"


def plot_of(quantity: Quantity) -> Plot | None:
    """Return the interval plot, or None without a budget or a finite value; an infinite bound reaches the edge."""
    if quantity.budget is None or not math.isfinite(quantity.value):
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

    at_most = quantity.budget.kind == "at_most"
    return Plot(
        value=place(quantity.value),
        low=place(ends[0]),
        high=place(ends[1]),
        limit=place(limit),
        allowed_from=0.0 if at_most else place(limit),
        allowed_to=place(limit) if at_most else 100.0,
    )
