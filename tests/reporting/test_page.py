"""The HTML page."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from pytest_modelserve.evidence import Budget, Interval, Quantity, Record, Subject
from pytest_modelserve.reporting import Row, RunCounts, render_page, run_document
from pytest_modelserve.reporting.page import plot_of

Maker = Callable[..., Record]


def page(*rows: Row, complete: bool = True) -> str:
    return render_page(run_document(rows, counts=RunCounts(2, 1, 1, 0), complete=complete, exit_status=0))


def test_page_tells_every_gate_and_asks_for_nothing_else(record_of: Maker) -> None:
    html = page(Row("test_a", "PASS", record_of(), "passed"), Row("test_gone", "CRASHED", None, "crashed"))
    assert "<h1>1 PASS, 0 FAIL, 0 INCONCLUSIVE, 1 CRASHED</h1>" in html
    assert "drop 0.15 pt [-0.20, 0.50], budget ≤ 1.00 pt" in html
    assert "test_gone" in html
    assert not re.search(r"(?:src|href)=|@import|url\(", html)


def test_incomplete_run_says_so(record_of: Maker) -> None:
    row = Row("test_a", "PASS", record_of(), "passed")
    assert "This run is not complete" not in page(row)
    assert "1 of 2 selected tests ended, 1 were deselected" in page(row, complete=False)


def test_names_from_a_model_file_stay_text(record_of: Maker) -> None:
    html = page(Row("test_a", "PASS", record_of(subject=Subject("<script>alert(1)</script>")), "passed"))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_plot_puts_value_interval_and_budget_on_one_line() -> None:
    plot = plot_of(Quantity("q", 2.0, "", Interval(1.0, 3.0, 0.9, 0.9), Budget("at most", 4.0)))
    assert plot
    assert 0 == plot.allowed_from < plot.low < plot.value < plot.high < plot.limit == plot.allowed_to < 100
    at_least = plot_of(Quantity("q", 2.0, "", Interval(1.0, math.inf, 0.9, 0.9), Budget("at least", 4.0)))
    assert at_least
    assert (at_least.high, at_least.allowed_to) == (100, 100)
    assert plot_of(Quantity("q", math.nan, "", budget=Budget("at most", 1.0))) is None
