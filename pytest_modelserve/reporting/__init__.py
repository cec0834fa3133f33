"""Reports of a run: the terminal table, the JSON document and the HTML page."""

from pytest_modelserve.reporting.collector import ReportCollector, Row, RunCounts, as_json, run_document, write_report
from pytest_modelserve.reporting.html_report import render_page
from pytest_modelserve.reporting.terminal import (
    TableLine,
    error_bound,
    error_bound_line,
    failures_first,
    not_judged_lines,
    summary_line,
    table_lines,
)

__all__ = [
    "ReportCollector",
    "Row",
    "RunCounts",
    "TableLine",
    "as_json",
    "error_bound",
    "error_bound_line",
    "failures_first",
    "not_judged_lines",
    "render_page",
    "run_document",
    "summary_line",
    "table_lines",
    "write_report",
]
