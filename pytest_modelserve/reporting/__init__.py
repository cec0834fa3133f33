"""Reports of a run: the terminal table, the JSON document, and the formats that are made from it."""

from pytest_modelserve.reporting.ci import code_quality_json, ctrf_json, github_annotations
from pytest_modelserve.reporting.collector import ReportCollector, Row, RunCounts, as_json, run_document
from pytest_modelserve.reporting.exports import log_to_mlflow, otlp_json, prometheus_text, read_report
from pytest_modelserve.reporting.history import History, append_run, history_lines, read_history
from pytest_modelserve.reporting.html_report import render_history, render_page
from pytest_modelserve.reporting.markdown import markdown_report
from pytest_modelserve.reporting.report_files import add_to_history, report_to_github, write_reports
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
    "History",
    "ReportCollector",
    "Row",
    "RunCounts",
    "TableLine",
    "add_to_history",
    "append_run",
    "as_json",
    "code_quality_json",
    "ctrf_json",
    "error_bound",
    "error_bound_line",
    "failures_first",
    "github_annotations",
    "history_lines",
    "log_to_mlflow",
    "markdown_report",
    "not_judged_lines",
    "otlp_json",
    "prometheus_text",
    "read_history",
    "read_report",
    "render_history",
    "render_page",
    "report_to_github",
    "run_document",
    "summary_line",
    "table_lines",
    "write_reports",
]
