"""Scanner of model files: static rules, then a trial in a limited child process, before anything loads the file."""

from pytest_modelserve.scanning.findings import RULES, Finding
from pytest_modelserve.scanning.sandbox import close_sandboxes
from pytest_modelserve.scanning.scan import ScanReport, scan_file

__all__ = ["RULES", "Finding", "ScanReport", "close_sandboxes", "scan_file"]
