"""Memory over calls, drawn."""

from __future__ import annotations

import math

from pytest_modelserve.evidence import Budget, Interval, Quantity
from pytest_modelserve.reporting.html_report import Readings
from pytest_modelserve.reporting.plots import BOTTOM, GROWTH_LEFT as LEFT, RIGHT, TOP, axis_through, draw_growth

READINGS = Readings((5000.0, 5000.0, 7048.0, 9096.0), 100)


def quantity(low: float = 5.0, high: float = 15.0, limit: float = 10.0) -> Quantity:
    return Quantity("growth a call", 10.0, "bytes", Interval(low, high, 0.999, 0.95), Budget("at_most", limit))


def points(text: str) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in (pair.split(",") for pair in text.split())]


def test_line_budget_and_interval_start_at_the_first_reading_and_end_at_the_last_call() -> None:
    drawing = draw_growth(READINGS, quantity())
    across = axis_through((0, 300), start=LEFT, end=RIGHT, unit="count", may_be_log=False)
    up = axis_through((0, 4500), start=BOTTOM, end=TOP, unit="bytes", may_be_log=False)
    first, last = across.place(0), across.place(300)
    grown = [(0, 0), (100, 0), (200, 2048), (300, 4096)]
    assert points(drawing.line) == [(across.place(calls), up.place(by)) for calls, by in grown]
    assert points(drawing.allowed)[:2] == [(first, up.place(0)), (last, up.place(3000))]
    assert drawing.limit_at == up.place(3000)
    assert points(drawing.fan) == [(first, up.place(0)), (last, up.place(1500)), (last, up.place(4500))]


def test_memory_that_shrinks_lies_below_the_origin() -> None:
    drawing = draw_growth(Readings((9000.0, 8000.0), 10), quantity(low=-150.0))
    assert points(drawing.line)[1][1] > drawing.origin_at == points(drawing.line)[0][1]


def test_interval_with_an_open_end_is_no_fan() -> None:
    assert draw_growth(READINGS, quantity(low=-math.inf)).fan == ""
    assert draw_growth(READINGS, quantity(high=math.inf)).fan == ""


def test_words_tell_the_figures_of_the_drawing() -> None:
    drawing = draw_growth(READINGS, quantity())
    assert drawing.title == "Growth of resident memory over 300 calls"
    assert drawing.description == (
        "After 300 calls it has grown by 4.0 KiB, at most by 4.0 KiB; the budget is ≤ 10 B a call, 2.9 KiB in all."
    )
