"""Reports of scans in SARIF 2.1.0, which code hosts show as alerts."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pytest_modelserve.scanning.findings import RULES
from pytest_modelserve.scanning.scan import ScanReport

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def sarif_log(reports: Sequence[ScanReport]) -> dict[str, Any]:
    """Return one run with the findings of all reports; an allowed finding is suppressed with its reason."""
    names = sorted({each.rule for report in reports for each in report.findings})
    places = {name: place for place, name in enumerate(names)}
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "pytest-modelserve",
                        "version": metadata.version("pytest-modelserve"),
                        "rules": [_rule(name) for name in names],
                    }
                },
                "results": [
                    {
                        "ruleId": each.rule,
                        "ruleIndex": places[each.rule],
                        "level": each.severity,
                        "message": {"text": f"{each.place}: {each.message}. {each.advice}"},
                        "locations": [{"physicalLocation": {"artifactLocation": {"uri": _uri(report.path)}}}],
                        **(_suppressed(each.allowed) if each.allowed else {}),
                    }
                    for report in reports
                    for each in report.findings
                ],
            }
        ],
    }


def _rule(name: str) -> dict[str, Any]:
    rule = RULES[name]
    return {
        "id": name,
        "shortDescription": {"text": rule.title},
        "help": {"text": rule.advice},
        "defaultConfiguration": {"level": rule.severity},
    }


def _suppressed(reason: str) -> dict[str, Any]:
    return {"suppressions": [{"kind": "external", "justification": reason}]}


def _uri(path: Path) -> str:
    return path.absolute().as_uri() if path.is_absolute() else quote(path.as_posix())
