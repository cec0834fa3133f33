"""The Markdown of a pull request."""

import re

from markdown_it import MarkdownIt

from pytest_modelserve.reporting import Row, markdown_report


def rendered(text):
    """The HTML that a reader of GitHub's Markdown makes of it."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def test_what_failed_stands_first_and_what_passed_is_folded(run_of_all_kinds):
    text = markdown_report(run_of_all_kinds)
    places = [
        text.index(part)
        for part in (
            "### Failed: 2",
            "### Inconclusive: 2",
            "### Measured, without a budget: 1",
            "Passed: 1",
            "Failed as expected: 1",
        )
    ]
    assert places == sorted(places)
    assert text.startswith(
        "## ❌ Model gates: 1 PASS, 2 FAIL (1 expected), 2 INCONCLUSIVE, 1 ERROR · 1 measured · 1 not judged\n"
    )
    assert "<details><summary>Passed: 1</summary>" in text
    assert "| p95 **2.50 ms** [2.00 ms, 3.00 ms] |  |" in text.replace("\u00a0", " ")
    assert "- `tests/test_release.py::test_8`: there are no labels" in text
    assert "at most 0.5 %" in text


def test_row_shows_value_interval_budget_model_and_test(run_of_all_kinds):
    html = rendered(markdown_report(run_of_all_kinds))
    row = next(row for row in re.findall(r"<tr>.*?</tr>", html, re.DOTALL) if "test_2" in row)
    assert re.findall(r"<td>(.*)</td>", row) == [
        "<strong>FAIL</strong>",
        "accuracy parity",
        "<code>digits_cnn / int8-static</code><br>vs <code>digits_cnn / fp32</code>",
        "drop <strong>2.50\u00a0pt</strong>\u00a0[2.00,\u00a03.00]",
        "≤\u00a01.00\u00a0pt",
        "<code>test_2</code>",
    ]


def test_incomplete_run_says_so(record_of, document_of):
    row = Row("test_a", "PASS", record_of(), "passed")
    assert "1 of 2 selected tests ended, 1 were deselected" in markdown_report(document_of(row, complete=False))
    assert "not complete" not in markdown_report(document_of(row))


def test_large_run_keeps_its_failures_within_the_limit(record_of, document_of):
    passed = [Row(f"test_{i}", "PASS", record_of(node_id=f"test_{i}"), "passed") for i in range(1000)]
    failed = [Row(f"bad_{i}", "FAIL", record_of(0.02, 0.03, node_id=f"bad_{i}"), "failed") for i in range(30)]
    text = markdown_report(document_of(*passed, *failed))
    assert len(text.encode()) <= 64 * 1024
    assert all(f"`bad_{i}`" in text for i in range(30))
    assert re.search(r"\n\d+ more rows and texts did not fit", text)
    assert text.count("<details>") == text.count("</details>")


def test_names_stay_text_in_one_cell(nasty_document):
    text = markdown_report(nasty_document)
    html = rendered(text)
    assert "<script" not in html
    assert "<img" not in html
    assert "\x1b" not in text
    outside_code = re.sub(r"<(code|pre)[^>]*>.*?</\1>", "", html, flags=re.DOTALL)
    assert not re.search(r"@team|#1\b|<strong>b", outside_code)
    assert not re.search(r"^\s*::|##\[", text, re.MULTILINE)
    assert {row.count("<td>") for row in re.findall(r"<tr>\s*<td>.*?</tr>", html, re.DOTALL)} == {6}
