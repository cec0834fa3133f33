"""The HTML page and the samples that it draws."""

import math
import platform
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from pytest_modelserve.evidence import Budget, Interval, Quantity, Recorder, Subject, keep_samples, recording
from pytest_modelserve.reporting import Row, RunCounts, render_page, run_document
from pytest_modelserve.reporting.html_report import plot_of
from pytest_modelserve.reporting.samples import Readings, Sample, UnreadableSamplesError, samples_of


def page(*rows, complete=True, folder=None, without_evidence=None):
    document = run_document(
        rows,
        started=1_790_000_000.0,
        root=Path(__file__).parent,
        counts=RunCounts(2, 1, 1, 0),
        complete=complete,
        exit_status=0,
        without_evidence=without_evidence or {},
    )
    return render_page(document, folder=folder)


def test_page_tells_every_gate_and_asks_for_nothing_else(record_of):
    html = page(
        Row("test_a", "PASS", record_of(), "passed"),
        Row("test_gone", "CRASHED", None, "crashed", error="its worker crashed"),
    )
    assert "<h1>1 PASS, 0 FAIL, 0 INCONCLUSIVE, 1 CRASHED</h1>" in html
    assert "drop 0.15 pt [-0.20, 0.50], budget ≤ 1.00 pt" in html
    assert "test_gone" in html
    assert not re.search(r"(?:src|href)=|@import|url\(| on\w+=", html)


def test_page_says_when_where_and_with_what_it_was_made(record_of):
    html = page(Row("test_a", "PASS", record_of(), "passed"))
    assert "2026-09-21 14:13 UTC" in html
    for name, value in (("Python", platform.python_version()), ("numpy", np.__version__)):
        assert html.count(f"<dt>{name}</dt><dd>{value}</dd>") == 1
    assert "measured on" not in html


def test_gate_that_was_measured_elsewhere_says_where(record_of):
    record = record_of()
    elsewhere = replace(record.evidence.environment, python="3.99.0", cpus=999)
    html = page(Row("t", "PASS", replace(record, evidence=replace(record.evidence, environment=elsewhere)), "passed"))
    assert "<dt>measured on</dt><dd>Python 3.99.0, CPUs 999</dd>" in html


def test_page_has_no_sentence_on_error_rates_without_a_statistical_gate(record_of):
    size = (Quantity("files", 88.0, "bytes", budget=Budget("at_most", 100)),)
    sentence = "gives at least one statistical FAIL"
    assert sentence in page(Row("test_a", "PASS", record_of(), "passed"))
    assert sentence not in page(Row("test_a", "PASS", record_of(quantities=size, alpha=0.0), "passed"))


def test_incomplete_run_says_so(record_of):
    row = Row("test_a", "PASS", record_of(), "passed")
    assert "This run is not complete" not in page(row)
    assert "1 of 2 selected tests ended, 1 were deselected" in page(row, complete=False)


def test_errors_reruns_and_tests_without_evidence_stand_on_the_page(record_of):
    html = page(
        Row("test_a", "FAIL", record_of(0.02, 0.03), "rerun", superseded=True, reruns=1),
        Row("test_a", "PASS", record_of(attempt=2), "passed", attempt=2, reruns=1),
        Row("test_lost", "ERROR", None, "failed", error="setup: FileNotFoundError: <m.onnx>"),
        without_evidence={"skipped": ["test_b"]},
    )
    assert "<title>modelserve: 1 PASS, 0 FAIL, 0 INCONCLUSIVE, 1 ERROR</title>" in html
    assert "setup: FileNotFoundError: &lt;m.onnx&gt;" in html
    assert "<small>test_lost</small>" in html
    assert "attempt 1, rerun: does not count" in html
    assert "attempt 2: error rates do not hold under reruns" in html
    assert "Tests without evidence of their own, skipped: 1" in html


def test_names_from_a_model_file_stay_text(record_of):
    html = page(Row("test_a", "PASS", record_of(subject=Subject("<script>alert(1)</script>")), "passed"))
    assert html.count("<script>") == 1
    assert "&lt;script&gt;alert" in html


def test_every_name_from_outside_is_text(nasty_document):
    tags = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append((tag, dict(attrs)))

    html = render_page(nasty_document)
    Reader().feed(html)
    assert [tag for tag, _ in tags].count("script") == html.count("</script>") == 1
    assert "img" not in {tag for tag, _ in tags}
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on") or name == "src"]
    assert "\x1b" not in html


def test_plot_puts_value_interval_and_budget_on_one_line():
    plot = plot_of(Quantity("q", 2.0, "", Interval(1.0, 3.0, 0.9, 0.9), Budget("at_most", 4.0)))
    assert plot
    assert 0 == plot.allowed_from < plot.low < plot.value < plot.high < plot.limit == plot.allowed_to < 100
    at_least = plot_of(Quantity("q", 2.0, "", Interval(1.0, math.inf, 0.9, 0.9), Budget("at_least", 4.0)))
    assert at_least
    assert (at_least.high, at_least.allowed_to) == (100, 100)
    assert plot_of(Quantity("q", math.nan, "", budget=Budget("at_most", 1.0))) is None


def latency(make, folder, *, n=3000, **changes):
    """A record of a latency gate whose raw samples lie in `folder`."""
    wall = np.random.default_rng(0).lognormal(0.0, 0.5, n)
    with recording(Recorder("t", "t", samples=folder / "samples")):
        entry = keep_samples(wall_ms=wall, cpu_ms=0.9 * wall)
    quantity = Quantity("p95", 2.2, "ms", Interval(2.0, 2.5, 0.999, 0.95), Budget("at_most", 4.0))
    settings = {
        "gate": "latency p95",
        "quantities": (quantity,),
        "n_unit": "calls",
        "details": {"quantile": 0.95, **entry},
    }
    return make(**{**settings, **changes})  # fmt: skip


def test_samples_beside_the_document_are_drawn_with_words_for_those_who_do_not_see(record_of, tmp_path):
    html = page(Row("test_a", "PASS", latency(record_of, tmp_path), "passed"), folder=tmp_path)
    (figure,) = re.findall(r"<figure>.*</figure>", html, re.DOTALL)
    svg = ElementTree.fromstring(re.findall(r"<svg.*</svg>", figure, re.DOTALL)[0])
    label = svg.get("aria-label") or ""
    assert label.startswith("Share of 3,000 calls that took at most this long. From ")
    assert "The budget is ≤ 4.00 ms." in label
    assert {path.get("class") for path in svg.iter("path")} == {"axis", "level", "limit", "second", "curve", "bar"}
    limit = next(path for path in svg.iter("path") if path.get("class") == "limit")
    allowed = next(rect for rect in svg.iter("rect"))
    end = int(allowed.get("x") or 0) + int(allowed.get("width") or 0)
    assert limit.get("d") == f"M{end} 8V164"


def test_measurement_without_a_budget_is_drawn_without_one(record_of, tmp_path):
    quantity = Quantity("p95", 2.2, "ms", Interval(2.0, 2.5, 0.999, 0.95))
    record = latency(record_of, tmp_path, quantities=(quantity,), alpha=0.0)
    html = page(Row("m.onnx::latency", None, record, "passed"), folder=tmp_path)
    svg = ElementTree.fromstring(re.findall(r"<figure>\s*(<svg.*?</svg>)", html, re.DOTALL)[0])
    assert {path.get("class") for path in svg.iter("path")} == {"axis", "level", "second", "curve", "bar"}
    assert "The budget is" not in html
    assert "<b>measured</b>" in html


def test_growth_of_memory_is_drawn(record_of):
    quantity = Quantity("growth per call", 10.0, "bytes", Interval(5.0, 15.0, 0.999, 0.95), Budget("at_most", 10.0))
    details = {"resident_bytes": [5000, 7000, 9000], "calls_per_segment": 100}
    html = page(Row("t", "PASS", record_of(quantities=(quantity,), details=details), "passed"))
    svg = ElementTree.fromstring(re.findall(r"<figure>\s*(<svg.*</svg>)", html, re.DOTALL)[0])
    assert [polygon.get("class") for polygon in svg.iter("polygon")] == ["ok", "fan"]
    assert "Growth of resident memory over 200 calls" in html


def test_missing_samples_are_one_quiet_sentence(record_of, tmp_path):
    row = Row("test_a", "PASS", latency(record_of, tmp_path), "passed")
    html = page(row)
    assert (
        len(re.findall(r"The samples are only available with --modelserve-json: samples/[0-9a-f]{64}\.npz\.", html))
        == 1
    )
    assert "<figure>" not in html
    assert "p95 2.20 ms" in html


def opened(html):
    return len(re.findall(r'<details class="gate [^>]* open>', html))


def test_what_needs_a_decision_stands_first_and_open_unless_it_is_too_much(run_of_all_kinds, record_of):
    html = render_page(run_of_all_kinds)
    titles = ["Failed: 2", "Inconclusive: 2", "Measured, without a budget: 1", "Passed: 1", "Failed as expected: 1"]
    assert re.findall(r"<h2>(.*)</h2>", html) == [*titles, "Attempts that were run again: 1"]
    assert opened(html) == 4
    assert "Not judged: 1" in html
    assert opened(page(*[Row("t", "FAIL", record_of(0.02, 0.03), "failed")] * 11)) == 0


def test_nothing_in_a_drawing_is_markup(record_of, tmp_path):
    quantity = Quantity("<i>&", 2.2, "ms", Interval(2.0, 2.5, 0.999, 0.95), Budget("at_most", 4.0))
    record = latency(record_of, tmp_path, quantities=(quantity,), n_unit="</title><script>")
    html = page(Row("t", "PASS", record, "passed"), folder=tmp_path)
    assert html.count("<script>") == 1
    assert "<i>" not in html
    assert "&lt;/title&gt;&lt;script&gt; that took" in html
    reason = record_of(details={"samples": {"not_written": "<script>\x1b[2J"}})
    assert "&lt;script&gt;\\x1b[2J" in page(Row("t", "PASS", reason, "passed"))


def test_two_hundred_gates_fit_half_a_megabyte_and_ask_for_nothing_else(record_of, tmp_path):
    drawn = Row("tests/test_release.py::test_a", "PASS", latency(record_of, tmp_path, n=50_000), "passed")
    plain = Row("tests/test_release.py::test_b", "PASS", record_of(node_id="tests/test_release.py::test_b"), "passed")
    html = page(*[drawn] * 60, *[plain] * 140, folder=tmp_path)
    assert html.count("<figure>") == 60
    assert len(html.encode()) < 500_000
    assert not re.search(r"(?:src|href)=|@import|url\(|https?:", html)


def kept(folder, **arrays):
    """The entry for `details` that a gate of a run with a document in `folder` gets."""
    with recording(Recorder("t", "t", samples=folder / "samples")):
        return keep_samples(**{name: np.array(values, dtype=float) for name, values in arrays.items()})


def evidence(make, details, *, name="p95", unit="ms"):
    quantity = Quantity(name, 2.0, unit, Interval(1.0, 3.0, 0.999, 0.95), Budget("at_most", 4.0))
    return make(quantities=(quantity,), n_unit="calls", details=details).evidence


def found(it, folder=None):
    return samples_of(it, it.quantities[0], folder=folder)


def test_latency_is_read_from_beside_the_document_by_both_clocks(record_of, tmp_path):
    details = {"quantile": 0.95, **kept(tmp_path, wall_ms=[3, 1, 2], cpu_ms=[2, 1, 1])}
    sample = found(evidence(record_of, details), tmp_path)
    assert sample == Sample("calls", "took at most this long", 0.95, (1.0, 2.0, 3.0), (1.0, 1.0, 2.0))


def test_undisturbed_time_is_drawn_before_wall_time(record_of, tmp_path):
    details = {"quantile": 0.95, **kept(tmp_path, wall_ms=[3, 9, 2], undisturbed_ms=[3, 1, 2])}
    sample = found(evidence(record_of, details), tmp_path)
    assert sample == Sample(
        "calls", "took at most this long undisturbed", 0.95, (1.0, 2.0, 3.0), (2.0, 3.0, 9.0), "wall time"
    )


def test_load_is_drawn_from_due_time_and_by_service_time(record_of, tmp_path):
    details = {"quantile": 0.95, **kept(tmp_path, latency_ms=[3, 9, math.inf], service_ms=[3, 1, math.inf])}
    assert found(evidence(record_of, details), tmp_path) == Sample(
        "calls", "were answered at most this long after they were due", 0.95, (3.0, 9.0), (1.0, 3.0), "service time"
    )


def test_log_ratios_become_ratios(record_of, tmp_path):
    details = kept(tmp_path, log_ratios=[math.log(2), 0.0])
    sample = found(evidence(record_of, details, unit="ratio"), tmp_path)
    assert isinstance(sample, Sample)
    assert (sample.level, sample.values) == (0.5, pytest.approx((1.0, 2.0)))


def test_starts_are_told_by_the_clock_of_their_budget(record_of):
    details = {"session": [3, 4], "first call": [1, 1], "session CPU": [2, 3], "first call CPU": [1, 0.5]}
    wall = found(evidence(record_of, details, name="start"))
    assert wall == Sample("calls", "took at most this long", 0.5, (4.0, 5.0), (3.0, 3.5))
    disturbed = found(evidence(record_of, {**details, "run delay": [1.0, 0.5]}, name="start"))
    assert disturbed == Sample("calls", "took at most this long undisturbed", 0.5, (3.0, 4.5), (4.0, 5.0), "wall time")
    cpu = found(evidence(record_of, details, name="start CPU"))
    assert cpu == Sample("calls", "took at most this CPU time", 0.5, (3.0, 3.5))


def test_memory_and_leaks_travel_in_the_evidence(record_of):
    added = found(evidence(record_of, {"added_bytes": [3, 1]}, unit="bytes"))
    assert added == Sample("calls", "added at most this much memory", 0.5, (1.0, 3.0))
    resident = found(evidence(record_of, {"resident_bytes": [3, 1, 4], "calls_per_segment": 5}, unit="bytes"))
    assert resident == Readings((3.0, 1.0, 4.0), 5)


@pytest.mark.parametrize(
    "details",
    [{}, {"interim_analyses": [20]}, {"added_bytes": []}, {"resident_bytes": [1], "calls_per_segment": 5}],
    ids=["nothing", "no sample", "no process", "one reading"],
)
def test_gate_without_samples_has_none(record_of, details):
    assert found(evidence(record_of, details)) is None


def test_time_that_was_up_before_the_first_pair_leaves_no_sample(record_of, tmp_path):
    assert found(evidence(record_of, kept(tmp_path, log_ratios=[]), unit="ratio"), tmp_path) is None


def refusal(it, folder):
    with pytest.raises(UnreadableSamplesError) as caught:
        found(it, folder)
    return str(caught.value)


def test_file_that_is_missing_damaged_or_was_not_written_is_a_sentence(record_of, tmp_path):
    entry = kept(tmp_path, log_ratios=[0.0, 0.1])
    it, file = evidence(record_of, entry, unit="ratio"), entry["samples"]["file"]
    assert refusal(it, None) == f"The samples are only available with --modelserve-json: {file}."
    assert refusal(it, tmp_path / "x") == f"The samples cannot be read: {file}: No such file or directory."
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(it, tmp_path) == f"The samples are damaged: the content of {file} does not match its sha256."
    full = evidence(record_of, {"samples": {"not_written": "No space left on device"}})
    assert refusal(full, tmp_path) == "The samples were not written: No space left on device."


@pytest.mark.parametrize(
    "details",
    [
        {"samples": {"file": "../../etc/passwd"}},
        {"samples": {"file": "/etc/passwd"}},
        {"samples": {}},
        {"samples": None},
        {"added_bytes": "many"},
        {"added_bytes": [None]},
        {"resident_bytes": [1, 2]},
        {"first call CPU": [1], "session CPU": [1, 2]},
    ],
)
def test_details_of_another_form_are_a_sentence_and_no_file_elsewhere_is_read(record_of, tmp_path, details):
    told = refusal(evidence(record_of, details), tmp_path)
    assert told == "The samples have an unknown format."
