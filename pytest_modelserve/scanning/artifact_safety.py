"""Gate on the scan of model files: no finding of severity error that is not allowed with a reason."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

from pytest_modelserve import settings
from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.errors import ArtifactError, UsageError
from pytest_modelserve.evidence import Budget, Evidence, Method, Quantity, Subject
from pytest_modelserve.scanning.file_rules import change_of
from pytest_modelserve.scanning.scan import ScanMode, ScanReport, scan_file

_SHOWN = 8
_ASSUMPTION = "no scan finds a backdoor in the weights, or a model that is merely wrong"


def measure_artifact_safety(
    artifact: Artifact | str | os.PathLike[str], *, allow: Mapping[str, str] | None = None, scan: ScanMode = "strict"
) -> Evidence:
    """Scan a model file before anything loads it. Nothing is estimated, so the verdict is PASS or FAIL.

    Static rules read the file within bounds: links, external data, wire format, names, tensors, graphs, functions,
    loops, integer division, amplification, trees. Only a file that they do not refuse is opened, optimized and run
    once, in a process that is limited in memory, time, files, processes and network. `docs/safety.md` lists the rules.

    Args:
        artifact: The path of the file, which need not be a model; or an artifact that was opened.
        allow: Reasons by name of rules that the file may break; each stands in the report. The setting
            `modelserve_scan_allow` gives those of the project.
        scan: "strict", or "static": the rules alone, without opening the file.

    Returns:
        Evidence with the number of findings that refuse the file; its details hold every finding.

    Raises:
        UsageError: An unknown rule, a rule without a reason, or an unknown scan.
        ArtifactError: There is no such file, or it cannot be read.

    Example:
        `ms.assert_artifact_safe("model.onnx", allow={"graph.domain": "tokenizers of our own library"})`
    """
    if not isinstance(artifact, (Artifact, str, os.PathLike)):
        raise UsageError(f"artifact must be the path of a file, or an Artifact; got {type(artifact).__name__}")
    path = artifact.path if isinstance(artifact, Artifact) else artifact
    report = scan_file(path, mode=scan, allow={**settings.SCAN_ALLOW, **(allow or {})})
    subject = artifact.subject if isinstance(artifact, Artifact) else Subject(report.path.stem)
    return evidence_of(report, subject)


def evidence_of(report: ScanReport, subject: Subject) -> Evidence:
    """Return a report as the evidence of the gate."""
    refusing = [each for each in report.findings if each.refuses]
    shown = [str(each) for each in report.findings if each.severity != "note" or each.allowed]
    if len(shown) > _SHOWN:
        shown[_SHOWN:] = [f"and {len(shown) - _SHOWN} more findings"]
    rules = Counter(each.rule for each in refusing)
    what = ", ".join(rules)
    return Evidence(
        gate="artifact safety",
        subject=subject,
        quantities=(Quantity("errors", len(refusing), "count", budget=Budget("at_most", 0)),),
        n=1,
        n_unit="files",
        method=Method(
            "static rules, then opened and run once in a limited process" if report.opened else "static rules",
            assumptions=_ASSUMPTION,
        ),
        summary=f"the file is refused: {what}" if refusing else "the file breaks no rule of the scanner",
        findings=tuple(shown),
        advice=refusing[0].advice if refusing else "",
        details={"findings": [each.as_dict() for each in report.findings][:100], "opened": report.opened},
        duration_s=report.seconds,
    )


WITHOUT_LIMITS = {"trial.limits": "a check of pytest runs on systems without these limits, too"}
"""What `pytest model.onnx` and contracts allow."""


def refuse_unsafe(
    path: str | os.PathLike[str], mode: ScanMode, *, allow: Mapping[str, str] | None = None
) -> ScanReport:
    """Return the report of a scan; ArtifactError with the findings if it refuses the file."""
    report = scan_file(path, mode=mode, allow={**settings.SCAN_ALLOW, **(allow or {})})
    if not report.is_safe:
        rules = ", ".join(dict.fromkeys(each.rule for each in report.findings if each.refuses))
        raise ArtifactError(f"the scan refuses {report.path}, which is not opened: {rules}\n{report}")
    return report


def check_unchanged(report: ScanReport) -> None:
    """Raise ArtifactError if a file is not the one that was scanned: after something opened it."""
    changes = [change for path, state in report.states.items() for change in change_of(state, path)]
    if changes:
        raise ArtifactError(f"{report.path} has changed since it was scanned: {changes[0].message}")
