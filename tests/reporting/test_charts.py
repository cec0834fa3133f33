"""Histograms, calibration and ROC curves as coordinates."""

import re

import pytest

from pytest_modelserve.reporting.charts import charts_of, draw_histogram
from pytest_modelserve.reporting.plots import BOTTOM, TOP


def bars(path):
    """The left edge and the height of each bar."""
    return [(int(x), int(height)) for x, height in re.findall(r"M(\d+) \d+v-(\d+)", path)]


def test_bars_are_as_high_as_their_shares_and_stand_side_by_side():
    chart = draw_histogram("age", {"edges": ["10", "20"], "profile": [0.5, 0.25, 0.25], "data": [0.0, 0.2, 0.8]})
    paths = dict(chart.paths)
    before, after = bars(paths["before"]), bars(paths["after"])
    height = BOTTOM - TOP
    assert [h for _, h in before] == [round(height * share / 0.8) for share in (0.5, 0.25, 0.25)]
    assert [h for _, h in after] == [round(height * share / 0.8) for share in (0.2, 0.8)]
    assert before[1][0] < after[0][0] < before[2][0] < after[1][0]
    assert [(label.text, label.anchor) for label in chart.labels] == [("80 %", "e"), ("0", "e"), ("10", ""), ("20", "")]
    assert chart.description == "The largest change is in bin 3 of 3: 25.0 % of the profile, 80.0 % of the data."


def test_long_names_of_categories_are_cut_and_printable():
    names = ["a name that is much too long for its bar", "\x1b[2J", *list("cdefghi")]
    chart = draw_histogram("c", {"categories": names, "profile": [1 / 9] * 9, "data": [1 / 9] * 9})
    shown = [label.text for label in chart.labels][2:]
    assert len(shown) == 9
    assert all(len(text) <= 9 and text.isprintable() for text in shown)


CURVE = {"label": "class 1", "confidence": [0.1, 0.9], "accuracy": [0.2, 0.7], "low": [0.1, 0.6], "high": [0.3, 0.8]}
ROC = {"false_positive_rate": [0.0, 0.5, 1.0], "true_positive_rate": [0.0, 0.75, 1.0]}


def test_curves_of_evidence_are_drawn_in_a_square(record_of):
    details = {"reliability": [CURVE], "roc": [{"label": "candidate", **ROC}]}
    calibration, roc = charts_of(record_of(details=details).evidence)
    assert (calibration.width, roc.width) == (calibration.height, roc.height)
    assert calibration.title == "Calibration of class 1"
    assert calibration.description.startswith("The largest gap is at a mean probability of 0.900, where 0.700")
    assert dict(calibration.paths)["whisker"].count("M") == 2
    assert dict(roc.paths)["line after"] == "M40 380L230 107L420 16"
    assert roc.legend == (("after", "candidate"),)


LINE = {
    "start_s": 1.0,
    "slice_s": 0.5,
    "quantile": 0.95,
    "limit_ms": 20.0,
    "median_ms": [2.0, 3.0],
    "quantile_ms": [4.0, None],
}


def test_front_of_a_search_is_drawn_over_objective_and_gate_figure(record_of):
    def point(name, ratio, figure, outcome):
        return {"name": name, "ratio": ratio, "figure": figure, "outcome": outcome, "front": outcome == "chosen"}

    points = [point("int8", 0.5, 0.002, "chosen"), point("fp16", 0.9, 0.0, "passes"), point("int4", 0.4, 0.05, "fails")]
    pareto = {
        "objective": "latency",
        "figure": "drop",
        "unit": "proportion_difference",
        "limit": 0.01,
        "points": points,
    }
    (chart,) = charts_of(record_of(details={"pareto": pareto}).evidence)
    paths = dict(chart.paths)
    assert (paths["dots"].count("M"), paths["before"].count("M")) == (2, 1)
    assert "int8" in [label.text for label in chart.labels]
    assert chart.description == "3 variants, of which 2 pass."
    assert TOP < int(re.search(r"M\d+ (\d+)H", paths["limit"])[1]) < 364


def test_load_is_drawn_over_time_and_a_slice_without_answers_at_the_top(record_of):
    (chart,) = charts_of(record_of(details={"timeline": LINE}).evidence)
    paths = dict(chart.paths)
    assert chart.description == "The slowest slice begins at 1.5 s; the budget is 20.0 ms."
    assert chart.legend == (("before", "median"), ("after", "95 % at most"))
    x, y = map(int, re.match(r"M(\d+) (\d+)l", paths["line after"]).groups())
    step = int(re.search(r"l\d+ (-\d+)", paths["line after"])[1])
    assert (x > 96, y + step) == (True, TOP)
    assert y < int(re.match(r"M\d+ (\d+)", paths["line before"])[1])
    assert (
        charts_of(record_of(details={"timeline": LINE | {"median_ms": [None], "quantile_ms": [None]}}).evidence) == []
    )


def test_roc_curve_of_an_attack_is_drawn_on_logarithmic_axes(record_of):
    curve = {"label": "likelihood ratio", "false_positive_rate": [0.001, 0.1], "true_positive_rate": [0.0, 0.1]}
    details = {"attack_roc": {"at_fpr": 0.01, "limit": 0.1, "curves": [curve]}}
    (chart,) = charts_of(record_of(details=details).evidence)
    paths = dict(chart.paths)
    assert paths["line after"] == "M40 380l253 -243"  # from (0.001, none) two of three decades to the right and up
    assert paths["limit"] == "M167 137V380M40 137H167"
    assert [label.text for label in chart.labels][:2] == ["0.001", "1"]
    assert chart.legend == (("after", "likelihood ratio"),)


def test_accuracy_over_eps_falls_from_clean_accuracy_and_has_the_budget(record_of):
    attacked = {"label": "attacked", "value": [0.9, 0.5], "low": [0.8, 0.4], "high": [0.95, 0.6]}
    details = {"accuracy_over_eps": {"eps": [0.1, 0.2], "clean": 1.0, "limit": 0.8, "series": [attacked]}}
    (chart,) = charts_of(record_of(details=details).evidence)
    paths = dict(chart.paths)
    assert chart.description == "At eps 0.2: attacked 50.0 %."
    assert int(re.match(r"M\d+ (\d+)", paths["line after"])[1]) == TOP
    assert paths["whisker"].count("M") == 2
    assert "limit" in paths


def test_images_before_and_after_are_drawn_with_their_change(record_of):
    picture = {"title": "row 3: 1 → 7", "width": 2, "before": "0f00", "after": "0f07"}
    (chart,) = charts_of(record_of(details={"pictures": [picture]}).evidence)
    assert chart.title == "row 3: 1 → 7"
    assert chart.description == "1 of 4 pixels look different."
    assert [name for name, _ in chart.paths] == [
        "level",
        "shade sf",
        "level",
        "shade s7",
        "shade sf",
        "level",
        "shade se",
    ]


@pytest.mark.parametrize(
    "details",
    [
        {"attack_roc": {"at_fpr": 0.01, "limit": 0.1, "curves": []}},
        {"timeline": {}},
        {"pictures": [{"title": "", "width": 3, "before": "0f", "after": "0f"}]},
        {"pictures": [{"title": "", "width": 2, "before": "0x", "after": "0f"}]},
        {"accuracy_over_eps": {"eps": [1, 2], "series": [{}]}},
        {"timeline": {**LINE, "median_ms": [1.0]}},
        {"roc": 3},
        {"roc": [{"label": "someone", **ROC}]},
        {"roc": [{"label": "candidate"}]},
        {"reliability": [{**CURVE, "low": [0.1]}]},
        {"reliability": [{**CURVE, "low": ["x", "y"]}]},
        {"reliability": [{key: [] if key != "label" else "" for key in CURVE}]},
        {"histograms": {"x": {"edges": [], "profile": [0.0], "data": [0.0]}}},
        {"histograms": {"x": {"edges": ["1"], "profile": [0.5, 0.5], "data": [1.0]}}},
        {"histograms": ["x"]},
    ],
)
def test_details_of_an_unknown_form_are_not_drawn(record_of, details):
    assert charts_of(record_of(details=details).evidence) == []


def test_copies_of_a_model_are_drawn_over_the_number_of_queries(record_of):
    curve = {"queries": [10, 100, 1000], "answers": [0.5, 0.8, 0.95], "labels": [0.5, 0.7, 0.8]}
    (chart,) = charts_of(record_of(details={"extraction": curve}).evidence)
    assert chart.description == "After 1,000 queries 95.0 % from the model's answers, and 80.0 % from true labels."
    assert chart.legend == (("after", "from answers"), ("before", "from true labels"))
    assert [dict(chart.paths)[f"line {name}"].count(" ") for name in ("before", "after")] == [4, 4]
    assert charts_of(record_of(details={"extraction": {"queries": [10]}}).evidence) == []
