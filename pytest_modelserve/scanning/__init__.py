"""Scanner of model files: static rules, then a trial in a limited child process, before anything loads the file."""

from pytest_modelserve.scanning.artifact_safety import (
    WITHOUT_LIMITS,
    check_unchanged,
    measure_artifact_safety,
    refuse_unsafe,
)
from pytest_modelserve.scanning.findings import RULES, Finding
from pytest_modelserve.scanning.sandbox import close_sandboxes
from pytest_modelserve.scanning.sarif import sarif_log
from pytest_modelserve.scanning.scan import ScanMode, ScanReport, scan_file

__all__ = [
    "RULES",
    "WITHOUT_LIMITS",
    "Finding",
    "ScanMode",
    "ScanReport",
    "check_unchanged",
    "close_sandboxes",
    "measure_artifact_safety",
    "refuse_unsafe",
    "sarif_log",
    "scan_file",
]
