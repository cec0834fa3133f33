"""The JSON document in the formats of other systems: Prometheus, OpenTelemetry and MLflow. None of them is imported."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from pytest_modelserve.errors import InputError
from pytest_modelserve.evidence import SCHEMA_VERSION, Evidence, Quantity
from pytest_modelserve.evidence.evidence import snake_case
from pytest_modelserve.reporting.entries import Entry, entries_of

_VERDICTS = ("PASS", "FAIL", "INCONCLUSIVE", "measured", "ERROR", "CRASHED")
_REQUIRED = {"commit", "complete", "counts", "duration_s", "environment", "gates", "generator", "not_judged", "started"}
_FIGURES = {
    "value": "A measured quantity of a gate, in the unit of its label.",
    "interval_low": "The lower bound of the confidence interval of a quantity.",
    "interval_high": "The upper bound of the confidence interval of a quantity.",
    "budget": "The limit of a quantity.",
}


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON document that `--modelserve-json` wrote.

    Args:
        path: The file.

    Returns:
        The document, as `pytest_modelserve/evidence/schema.json` describes it.

    Raises:
        InputError: The file cannot be read, is cut short, has another schema version, or is no document of a run.

    Example:
        >>> import pytest_modelserve as ms
        >>> ms.read_report("no_such_file.json")
        Traceback (most recent call last):
            ...
        pytest_modelserve.errors.InputError: no_such_file.json cannot be read: No such file or directory
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{os.fspath(path)} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{os.fspath(path)} is no JSON document, or cut short: {error}; run pytest again") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{os.fspath(path)} has schema version {version!r}; this release reads version {SCHEMA_VERSION}: write it "
            "again with --modelserve-json"
        )
    found: dict[str, Any] = document
    if missing := _REQUIRED - found.keys():
        raise InputError(f"{os.fspath(path)} is not the document of a run: it lacks {', '.join(sorted(missing))}")
    return found


def _figures(entry: Entry) -> Iterator[tuple[Quantity, dict[str, float]]]:
    """Yield each quantity with its value, bounds and limit, as far as it has them."""
    for quantity in () if entry.evidence is None else entry.evidence.quantities:
        figures = {"value": quantity.value}
        if quantity.interval is not None:
            figures |= {"interval_low": quantity.interval.low, "interval_high": quantity.interval.high}
        if quantity.budget is not None:
            figures["budget"] = quantity.budget.limit
        yield quantity, figures


def _labels(entry: Entry, evidence: Evidence) -> dict[str, str]:
    return {
        "gate": snake_case(evidence.gate),
        "model": evidence.subject.name,
        "variant": evidence.subject.variant,
        "reference": "" if evidence.reference is None else str(evidence.reference),
        "label": evidence.label,
        "test": entry.node_id,
    }


def prometheus_text(document: Mapping[str, Any]) -> str:
    """Return the judged gates as metrics in Prometheus' text format, for the textfile collector or a push gateway.

    `modelserve_gate_value`, `_interval_low`, `_interval_high` and `_budget` have one sample for each quantity;
    `modelserve_gate_verdict` is 1 for the verdict of each gate. Source: "Exposition formats", Prometheus.

    Args:
        document: The JSON document of a run, from `ms.read_report`.

    Returns:
        The text, with a line end after each sample.

    Example:
        >>> import pytest_modelserve as ms
        >>> document = ms.read_report("evidence.json")  # doctest: +SKIP
        >>> text = ms.prometheus_text(document)  # doctest: +SKIP
    """
    samples: dict[str, list[str]] = {f"modelserve_gate_{name}": [] for name in _FIGURES}
    verdicts: list[str] = []
    counted: dict[tuple[str, ...], int] = {}
    for entry in entries_of(document):
        if entry.group == "superseded":
            continue
        labels = {"gate": "", "model": "", "test": entry.node_id}
        if entry.evidence is not None:
            labels = _labels(entry, entry.evidence)
        key = tuple(labels.values())
        counted[key] = counted.get(key, -1) + 1
        labels["call"] = str(counted[key])
        verdicts.append(f"modelserve_gate_verdict{_label_set({**labels, 'verdict': entry.verdict})} 1")
        for quantity, figures in _figures(entry):
            of_quantity = _label_set({**labels, "quantity": quantity.name, "unit": quantity.unit})
            for name, number in figures.items():
                samples[f"modelserve_gate_{name}"].append(f"modelserve_gate_{name}{of_quantity} {_number(number)}")
    started = datetime.fromisoformat(document["started"]).timestamp()
    run = {
        "modelserve_run_start_time_seconds": ("When the run started.", started),
        "modelserve_run_duration_seconds": ("How long it took.", float(document["duration_s"])),
        "modelserve_run_complete": ("1 if every collected test was selected and ended.", float(document["complete"])),
    }
    families = [
        *((name, text, [f"{name} {_number(number)}"]) for name, (text, number) in run.items()),
        ("modelserve_gate_verdict", "1 for the verdict of each gate.", verdicts),
        *((f"modelserve_gate_{name}", text, samples[f"modelserve_gate_{name}"]) for name, text in _FIGURES.items()),
    ]
    return "".join(
        f"# HELP {name} {text}\n# TYPE {name} gauge\n" + "".join(f"{line}\n" for line in lines)
        for name, text, lines in families
    )


def _label_set(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    """Return a label value with the three escapes of the format; other control characters are shown as escapes."""
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in value)
    return shown.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return "NaN" if math.isnan(value) else repr(float(value))


def otlp_json(document: Mapping[str, Any]) -> str:
    """Return the judged gates as metrics in OTLP's JSON encoding, as `POST /v1/metrics` of a collector takes them.

    Values, bounds and budgets are one gauge each. Attributes of its points are gate, model, test, quantity, unit and
    verdict; the resource is the run's environment. A number that is not finite has no point, because
    JSON has none. Source: OpenTelemetry protocol specification, "JSON Protobuf Encoding".

    Args:
        document: The JSON document of a run, from `ms.read_report`.

    Returns:
        The JSON text of one `ExportMetricsServiceRequest`.

    Example:
        >>> import pytest_modelserve as ms
        >>> document = ms.read_report("evidence.json")  # doctest: +SKIP
        >>> body = ms.otlp_json(document)  # doctest: +SKIP
    """
    started = int(datetime.fromisoformat(document["started"]).timestamp() * 1000) * 10**6
    ended = started + int(1000 * document["duration_s"]) * 10**6
    points: dict[str, list[dict[str, Any]]] = {name: [] for name in _FIGURES}
    for entry in entries_of(document):
        if entry.evidence is None or entry.group == "superseded":
            continue
        labels = {**_labels(entry, entry.evidence), "verdict": entry.verdict}
        for quantity, figures in _figures(entry):
            attributes = _attributes({**labels, "quantity": quantity.name, "unit": quantity.unit})
            for name, number in figures.items():
                if math.isfinite(number):
                    points[name].append(
                        {
                            "attributes": attributes,
                            "startTimeUnixNano": str(started),
                            "timeUnixNano": str(ended),
                            "asDouble": number,
                        }
                    )
    metrics = [
        {"name": f"modelserve.gate.{name}", "description": _FIGURES[name], "unit": "1", "gauge": {"dataPoints": found}}
        for name, found in points.items()
    ]
    environment = document["environment"]
    resource = {
        "service.name": "pytest-modelserve",
        "host.arch": environment["machine"],
        "os.type": environment["system"].lower(),
        "process.runtime.version": environment["python"],
        "vcs.ref.head.revision": document["commit"] or "",
        **{f"package.{name}": version for name, version in environment["packages"].items()},
    }
    version = document["generator"].get("pytest-modelserve", "")
    request = {
        "resourceMetrics": [
            {
                "resource": {"attributes": _attributes(resource)},
                "scopeMetrics": [{"scope": {"name": "pytest_modelserve", "version": version}, "metrics": metrics}],
            }
        ]
    }
    return json.dumps(request, ensure_ascii=False, allow_nan=False) + "\n"


def _attributes(values: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"stringValue": value}} for key, value in values.items()]


class MlflowClient(Protocol):
    """The methods of `mlflow.MlflowClient` that are called."""

    def log_metric(self, run_id: str, key: str, value: float) -> Any:
        """Add a metric to a run."""

    def set_tag(self, run_id: str, key: str, value: str) -> Any:
        """Set a tag of a run."""

    def log_text(self, run_id: str, text: str, artifact_file: str) -> Any:
        """Write a text as an artifact of a run."""


def log_to_mlflow(document: Mapping[str, Any], client: MlflowClient, run_id: str) -> None:
    """Add the judged gates to a run of MLflow: metrics, the verdicts as tags, the document and the page as artifacts.

    A metric is named "gate/model/quantity/value", with "low", "high" and "budget" beside it. Characters that MLflow
    refuses in a name become "_". Numbers that are not finite are left out.

    Args:
        document: The JSON document of a run, from `ms.read_report`.
        client: A `mlflow.MlflowClient`, or an object with its `log_metric`, `set_tag` and `log_text`.
        run_id: The id of the run in MLflow.

    Example:
        >>> import mlflow  # doctest: +SKIP
        >>> import pytest_modelserve as ms
        >>> with mlflow.start_run() as run:  # doctest: +SKIP
        ...     ms.log_to_mlflow(ms.read_report("evidence.json"), mlflow.MlflowClient(), run.info.run_id)
    """
    from pytest_modelserve.reporting.collector import as_json
    from pytest_modelserve.reporting.html_report import render_page

    used: dict[str, int] = {}
    counts = dict.fromkeys(_VERDICTS, 0)
    for entry in entries_of(document):
        if entry.group == "superseded":
            continue
        counts[entry.verdict] += 1
        if entry.evidence is None:
            continue
        labels = _labels(entry, entry.evidence)
        names = [entry.evidence.label or labels["gate"], labels["model"], labels["variant"]]
        base = "/".join(_mlflow_name(name) for name in names if name)
        used[base] = used.get(base, 0) + 1
        base += f"/{used[base]}" if used[base] > 1 else ""
        client.set_tag(run_id, f"modelserve/{base}"[:250], entry.verdict)
        for quantity, figures in _figures(entry):
            for name, number in figures.items():
                if math.isfinite(number):
                    key = f"{base[:150]}/{_mlflow_name(quantity.name)[:60]}/{name.removeprefix('interval_')}"
                    client.log_metric(run_id, key, number)
    for verdict, number in counts.items():
        client.log_metric(run_id, f"modelserve/{verdict}", float(number))
    client.log_text(run_id, as_json(dict(document)), "modelserve/evidence.json")
    client.log_text(run_id, render_page(document), "modelserve/evidence.html")


def _mlflow_name(name: str) -> str:
    """Return a name of letters, digits and "_-. ", as MLflow allows, without a "." alone, which would be a folder."""
    return re.sub(r"[^\w\-. ]", "_", name, flags=re.ASCII).strip(". ") or "_"
