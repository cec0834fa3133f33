"""Documents of many runs: what is kept, what is skipped, and what changed when."""

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest

from pytest_modelserve import InputError, UsageError
from pytest_modelserve.evidence import Budget, Interval, Quantity
from pytest_modelserve.reporting import (
    Row,
    append_run,
    history_lines,
    markdown_report,
    read_history,
    render_history,
    render_page,
)

DAY = 86_400
SCHEMA = json.loads((Path(__file__).parents[2] / "pytest_modelserve" / "evidence" / "schema.json").read_text("utf-8"))


@pytest.fixture
def append(record_of, document_of, tmp_path):
    """Add a run in which the p95 of a model is `value` to the history, one a day from 1 October 2026 on."""

    def add(day, value, **changes):
        quantity = Quantity("p95", value, "ms", Interval(value - 0.1, value + 0.1, 0.999, 0.95), Budget("at_most", 4.0))
        details, findings = {"quantile": 0.95}, ("a finding",)
        settings = {"quantities": (quantity,), "gate": "latency p95", "details": details, "findings": findings}
        record = record_of(node_id="t", reference=None, **settings)
        started = datetime(2026, 10, 1, 2, 30, tzinfo=UTC).timestamp() + DAY * day
        document = document_of(Row("t", record.evidence.verdict.value, record, "passed"), started=started)
        document.update(changes)
        return append_run(tmp_path / "history", document)

    return add


def lines(folder, **settings):
    return list(history_lines(read_history(folder, **settings).with_changes()))


def test_run_is_one_valid_document_without_what_is_long(append):
    path = append(0, 2.0)
    assert path.name.startswith("20261001T023000Z-")
    document = json.loads(path.read_text("utf-8"))
    jsonschema.validate(document, SCHEMA)
    evidence = document["gates"][0]["evidence"]
    assert (evidence["details"], evidence["findings"], evidence["shortened"]) == ({}, [], ["details", "findings"])
    assert list(path.parent.iterdir()) == [path]


def test_runs_of_the_same_second_are_both_kept(append):
    first, second = append(0, 2.0), append(0, 2.5)
    assert first != second
    assert len(read_history(first.parent).builds) == 2


def test_change_is_shown_with_its_build_and_the_versions_that_came_with_it(append, document_of):
    environment = document_of()["environment"]
    other = {**environment, "packages": {**environment["packages"], "onnxruntime": "9.9"}}
    for day in range(24):
        value = (2.0 if day < 14 else 3.0) + 0.01 * (day * 7 % 5)
        path = append(day, value, commit=f"{day:02}" * 20, environment=other if day >= 14 else environment)
    shown = lines(path.parent)
    assert shown[0] == "24 builds from 2026-10-01 02:30 UTC to 2026-10-24 02:30 UTC, 1 quantities"
    assert shown[1] == "digits_cnn / int8-static"
    gate, title, name, drawing, *figures = shown[2].split()
    assert (gate, title, name, figures) == ("latency", "p95", "p95", ["3.01", "ms", "≤", "4.00", "ms", "PASS"])
    assert re.fullmatch("▁{14}│[▇█]{10}", drawing)
    before = environment["packages"]["onnxruntime"]
    assert shown[3].startswith("    changed 2.02 ms → 3.02 ms from 2026-10-15 02:30 UTC on, commit 141414141414 (p ")
    assert shown[3].endswith(f"; with it onnxruntime {before} → 9.9")
    assert shown[4] == "1 of 1 quantities changed"
    assert "probability at most 5 %" in shown[5]


def test_history_without_change_and_a_short_one_say_so(append):
    for day in range(3):
        path = append(day, 2.0 + 0.1 * day)
    assert "0 of 1 quantities changed; 1 have fewer than 8 builds and were not tested" in lines(path.parent)


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "shape", "version"])
def test_damaged_file_is_reported_and_the_others_are_kept(append, damage):
    for day in range(3):
        path = append(day, 2.0)
    text = path.read_text("utf-8")
    other = json.loads(text)
    other["gates"][0]["evidence"]["quantities"] = "none"
    old = json.loads(text) | {"schema_version": 1}
    damaged = {
        "cut": text[:-30],
        "empty": "",
        "other": "[1, 2]",
        "shape": json.dumps(other),
        "version": json.dumps(old),
    }
    path.write_text(damaged[damage])
    found = read_history(path.parent)
    assert found.problems == (f"{path.name} was skipped: cut short, or not the document of a run",)
    assert len(found.builds) == 2
    assert lines(path.parent)[0] == f"warning: {found.problems[0]}"


def test_last_builds_are_chosen_by_their_time(append):
    for day in (3, 1, 2, 0):
        path = append(day, 2.0 + day)
    (series,) = read_history(path.parent, last=2).series.values()
    assert series.values == [4.0, 5.0]


def test_value_that_is_not_finite_is_no_point(append):
    append(0, 2.0)
    path = append(1, 3.0)
    document = json.loads(path.read_text("utf-8"))
    document["gates"][0]["evidence"]["quantities"][0].update(value="Infinity", interval=None)
    path.write_text(json.dumps(document))
    (series,) = read_history(path.parent).series.values()
    assert (series.builds, series.values) == ((0,), [2.0])


def test_folder_that_is_missing_or_cannot_be_written_is_named(append, tmp_path, document_of):
    with pytest.raises(InputError, match="no_such_folder cannot be read: No such file or directory"):
        read_history(tmp_path / "no_such_folder")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--modelserve-history: cannot write to .*file: .*; use a writable folder"):
        append_run(tmp_path / "file", document_of())


def test_empty_folder_says_what_fills_it(tmp_path):
    assert lines(tmp_path) == ["no run was found; --modelserve-history DIR adds one"]


def test_names_cannot_command_the_terminal(nasty_document, tmp_path):
    for second in range(9):
        append_run(
            tmp_path, {**nasty_document, "started": f"2026-10-01T02:30:0{second}+00:00", "commit": "\x1b[2J\n::"}
        )
    (tmp_path / "\x1b[2J\n.json").write_text("")
    shown = lines(tmp_path)
    assert any("pwned" in line for line in shown)
    assert all(line.isprintable() and not line.lstrip().startswith("::") for line in shown)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_folder_without_permission_is_named(tmp_path, document_of):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="Permission denied; use a writable folder"):
        append_run(tmp_path / "history", document_of())


def test_page_of_a_gate_draws_its_builds_and_names_the_last_change(append, tmp_path):
    for day in range(24):
        path = append(day, (2.0 if day < 14 else 3.0) + 0.01 * (day * 7 % 5))
    history = read_history(path.parent).with_changes()
    html = render_page(json.loads(path.read_text("utf-8")), history=history)
    assert "<em>changed 2026-10-15</em>" in html
    assert "p95 over 24 builds" in html
    assert "Changed: 2.02 ms → 3.02 ms from 2026-10-15 02:30 UTC on" in html
    assert "changed" not in render_page(json.loads(path.read_text("utf-8")))


def test_markdown_lists_what_changed_lately(append):
    for day in range(24):
        path = append(day, (2.0 if day < 16 else 3.0) + 0.01 * (day * 7 % 5))
    document = json.loads(path.read_text("utf-8"))
    text = markdown_report(document, history=read_history(path.parent).with_changes())
    assert "### Changed in the last 10 of 24 builds: 1" in text
    assert "- `digits_cnn / int8-static` latency p95, p95: 2.02 ms → 3.02 ms from 2026-10-17" in text
    for day in range(24, 30):
        path = append(day, 3.0 + 0.01 * (day * 7 % 5))
    assert "Changed in" not in markdown_report(document, history=read_history(path.parent).with_changes())


def test_page_of_the_history_draws_every_quantity_and_asks_for_nothing(append, nasty_document, tmp_path):
    for day in range(3):
        path = append(day, 2.0 + day)
    for second in range(2):
        append_run(path.parent, {**nasty_document, "started": f"2026-10-09T02:30:0{second}+00:00"})
    html = render_history(read_history(path.parent).with_changes())
    assert "<h1>0 of 2 quantities changed in 5 builds</h1>" in html
    assert html.count("<figure>") == 2
    assert not re.search(r"<script|<img|https?:|\x1b", html)
