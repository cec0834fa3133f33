"""Documents of many runs in one folder: each quantity over builds, with its change points."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.evidence import SCHEMA_VERSION, Budget, Evidence
from pytest_modelserve.evidence.evidence import Unit
from pytest_modelserve.evidence.failure_text import (
    MEASURED,
    format_budget,
    format_probability,
    format_value,
    labeled_gate,
    printable,
)
from pytest_modelserve.reporting.entries import identity_of

if TYPE_CHECKING:
    from pytest_modelserve.stats import ChangePoint

Key = tuple[str, str]
"""The identity of a gate and the name of one of its quantities."""
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60
ERROR_RATE = 0.05


@dataclass(frozen=True, slots=True)
class Point:
    """One quantity in one run; `budget` is None if it had none."""

    value: float
    budget: Budget | None
    verdict: str


@dataclass(frozen=True, slots=True)
class Build:
    """One run: when it started, from which commit, with which versions, and its quantities."""

    started: str
    commit: str
    versions: Mapping[str, str]
    points: Mapping[Key, Point]


@dataclass(frozen=True, slots=True)
class Series:
    """One quantity over builds, as far as it was measured and finite: the numbers of the builds, and its points."""

    model: str
    gate: str
    quantity: str
    unit: Unit
    builds: tuple[int, ...]
    points: tuple[Point, ...]
    changes: tuple[ChangePoint, ...] = ()

    @property
    def values(self) -> list[float]:
        """The values in the order of the builds."""
        return [point.value for point in self.points]


@dataclass(frozen=True, slots=True)
class History:
    """The runs of a folder by time; `problems` has one sentence for each file that was skipped."""

    builds: tuple[Build, ...]
    series: Mapping[Key, Series]
    problems: tuple[str, ...]

    def with_changes(self, error_rate: float = ERROR_RATE) -> History:
        """Return the history with the change points of its series, whose false ones have one error rate."""
        from pytest_modelserve.stats import change_points

        found = change_points({key: each.values for key, each in self.series.items()}, error_rate=error_rate)
        return replace(self, series={key: replace(each, changes=found[key]) for key, each in self.series.items()})


def append_run(folder: Path, document: Mapping[str, Any]) -> Path:
    """Add the document of a run to a folder, as one file that is replaced atomically; return its path.

    Details and findings are left out: a year of nightly runs with 200 gates then takes 150 MB instead of 1 GB.
    Raises UsageError if the folder cannot be written.
    """
    from pytest_modelserve._files import write_file

    content = json.dumps(_shortened(document), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
    time = "".join(c for c in document["started"].partition("+")[0] if c not in "-:")
    path = folder / f"{time}Z-{hashlib.sha256(content).hexdigest()[:8]}.json"
    try:
        write_file(path, [content])
    except OSError as error:
        raise UsageError(_refusal(folder, error)) from error
    return path


def check_folder(folder: Path) -> None:
    """Make the folder; raise UsageError if it cannot be written, before a run that would lose its document."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(_refusal(folder, error)) from error


def _refusal(folder: Path, error: OSError) -> str:
    return f"--modelserve-history: cannot write to {folder}: {error.strerror or error}; use a writable folder"


def _shortened(document: Mapping[str, Any]) -> dict[str, Any]:
    def without(evidence: dict[str, Any]) -> dict[str, Any]:
        return {**evidence, "details": {}, "findings": [], "shortened": ["details", "findings"]}

    gates = [{**gate, "evidence": gate["evidence"] and without(gate["evidence"])} for gate in document["gates"]]
    return {**document, "gates": gates}


def read_history(folder: Path, *, last: int = 100) -> History:
    """Return the last runs of a folder by time. A file that is cut short or of another kind is skipped, with a reason.

    Raises InputError if the folder cannot be read.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json" and not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error
    builds: list[Build] = []
    problems: list[str] = []
    shown: dict[Key, Series] = {}
    for path in paths[-last:]:
        try:
            builds.append(_build(json.loads(path.read_text(encoding="utf-8")), shown))
        except OSError as error:
            problems.append(f"{printable(path.name)} was skipped: {error.strerror or error}")
        except (ValueError, KeyError, TypeError, AttributeError):
            problems.append(f"{printable(path.name)} was skipped: cut short, or not the document of a run")
    order = sorted(range(len(builds)), key=lambda number: builds[number].started)
    ordered = tuple(builds[number] for number in order)
    return History(ordered, {key: _filled(each, key, ordered) for key, each in shown.items()}, tuple(problems))


def _build(document: dict[str, Any], shown: dict[Key, Series]) -> Build:
    """Return one run, and add the quantities that are new to `shown`; raise an error for another document."""
    if document["schema_version"] != SCHEMA_VERSION:
        raise ValueError(document["schema_version"])
    environment = document["environment"]
    versions = {"Python": environment["python"], "CPU": environment["cpu"], **environment["packages"]}
    points: dict[Key, Point] = {}
    of_document: dict[Key, Series] = {}
    for gate in document["gates"]:
        if gate["evidence"] is None or not gate["judged"]:
            continue
        evidence, identity = Evidence.from_json(json.dumps(gate["evidence"])), identity_of(gate)
        for quantity in evidence.quantities:
            key = (identity, quantity.name)
            of_document[key] = Series(
                printable(str(evidence.subject)),
                labeled_gate(evidence),
                printable(quantity.name),
                quantity.unit,
                (),
                (),
            )
            points[key] = Point(quantity.value, quantity.budget, quantity.verdict or MEASURED)
    build = Build(str(document["started"]), printable(document["commit"] or ""), versions, points)
    shown.update(of_document)
    return build


def _filled(series: Series, key: Key, builds: Sequence[Build]) -> Series:
    measured = [
        (number, build.points[key])
        for number, build in enumerate(builds)
        if key in build.points and math.isfinite(build.points[key].value)
    ]
    return replace(series, builds=tuple(n for n, _ in measured), points=tuple(point for _, point in measured))


def history_lines(history: History, *, error_rate: float = ERROR_RATE) -> Iterator[str]:
    """Yield the history for a terminal: one line with a drawing for each quantity, and one for each change point."""
    builds, series = history.builds, [each for each in history.series.values() if each.points]
    for problem in history.problems:
        yield f"warning: {problem}"
    if not builds:
        yield "no run was found; --modelserve-history DIR adds one"
        return
    first, latest = format_time(builds[0].started), format_time(builds[-1].started)
    yield f"{len(builds)} builds from {first} to {latest}, {len(series)} quantities"
    models: dict[str, list[Series]] = {}
    for each in sorted(series, key=lambda each: not each.changes):
        models.setdefault(each.model, []).append(each)
    gate_width = max((len(each.gate) for each in series), default=0)
    name_width = max((len(each.quantity) for each in series), default=0)
    width = max((len(sparkline(each)) for each in series), default=0)
    for model, members in models.items():
        yield model
        for each in members:
            point = each.points[-1]
            budget = "" if point.budget is None else f"  {format_budget(point.budget, each.unit)}"
            verdict = "" if point.verdict == MEASURED else f"  {point.verdict}"
            value = format_value(point.value, each.unit)
            names = f"{each.gate:{gate_width}}  {each.quantity:{name_width}}"
            yield f"  {names}  {sparkline(each):{width}}  {value}{budget}{verdict}"
            for change in each.changes:
                yield f"    changed {describe_change(each, change, builds)}"
    yield from _summary(series, error_rate)


def _summary(series: Sequence[Series], error_rate: float) -> Iterator[str]:
    from pytest_modelserve.stats.change_points import FEWEST_VALUES

    changed = sum(bool(each.changes) for each in series)
    short = sum(len(each.points) < FEWEST_VALUES for each in series)
    untested = f"; {short} have fewer than {FEWEST_VALUES} builds and were not tested" if short else ""
    yield f"{changed} of {len(series)} quantities changed{untested}"
    yield (
        "If nothing changed, any change point is shown with probability at most "
        f"{format_probability(error_rate)}. A trend, or builds that depend on their neighbors, count as a change."
    )


def describe_change(series: Series, change: ChangePoint, builds: Sequence[Build]) -> str:
    """Return one change point: "0.20 pt → 2.40 pt from 2026-11-20 10:12 UTC on, commit …: onnxruntime 1.22 → 1.23"."""
    before, after = builds[series.builds[change.at - 1]], builds[series.builds[change.at]]
    commit = f", commit {after.commit[:12]}" if after.commit else ""
    versions = [
        f"{name} {before.versions.get(name) or 'none'} → {after.versions.get(name) or 'none'}"
        for name in {**before.versions, **after.versions}
        if before.versions.get(name) != after.versions.get(name)
    ]
    values = f"{format_value(change.before, series.unit)} → {format_value(change.after, series.unit)}"
    text = f"{values} from {format_time(after.started)} on{commit} (p {change.p_value:.2g})"
    return printable(f"{text}; with it {', '.join(versions)}" if versions else text)


def format_time(started: str) -> str:
    """Return the start of a run to the minute: "2026-11-20 10:12 UTC"."""
    return printable(started.replace("T", " ")[:16]) + (" UTC" if started.endswith("+00:00") else "")


def sparkline(series: Series) -> str:
    """Return the last 60 values as bars, with a line before each change point."""
    low, high = min(series.values), max(series.values)
    at = {change.at for change in series.changes}
    bars = []
    for number, value in enumerate(series.values):
        level = round((len(_BARS) - 1) * (value - low) / (high - low)) if high > low else 3
        bars.append(("│" if number in at else "") + _BARS[level])
    return "".join(bars[-_WIDTH:])
