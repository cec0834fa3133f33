"""The page in a real browser: filters, keyboard, print, security policy, and 2,000 gates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_modelserve.evidence import Subject
from pytest_modelserve.reporting import Row, render_page
from tests.browser import NAMES, Browser, find_browser

pytestmark = pytest.mark.skipif(find_browser() is None, reason=f"no browser is installed: {', '.join(NAMES)}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of this file."""
    found = find_browser()
    assert found is not None
    opened = Browser(found, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Callable[..., Browser]:
    """Open the page of a document."""

    def open_page(document: dict[str, Any], fragment: str = "") -> Browser:
        path = tmp_path / "page.html"
        path.write_text(render_page(document), encoding="utf-8")
        browser.messages.clear()
        browser.open(path, fragment)
        return browser

    return open_page


def shown(page: Browser) -> list[str]:
    """The tests of the gates that are not filtered out."""
    found: list[str] = page.run(
        "[...document.querySelectorAll('.gate')].filter(e => e.checkVisibility()).map(e => e.querySelector('small').textContent)"
    )
    return [text.partition("::")[2][:6] for text in found]


def test_verdict_model_gate_and_search_filter_the_gates(show: Any, run_of_all_kinds: dict[str, Any]) -> None:
    page = show(run_of_all_kinds)
    assert len(shown(page)) == 8
    page.run("document.querySelector('[data-group=failed]').click()")
    assert shown(page) == ["test_2", "test_7"]
    page.run("document.querySelector('[data-group=inconclusive]').click()")
    assert shown(page) == ["test_2", "test_7", "test_3", "test_4"]
    page.run(
        "const kind = document.querySelector('#model'); kind.value = 'digits_cnn'; kind.dispatchEvent(new Event('change'))"
    )
    assert shown(page) == ["test_2", "test_3", "test_4"]
    page.press("/", *"test_3 acc")
    assert shown(page) == ["test_3"]
    assert page.run("document.querySelector('#count').textContent") == "1 of 8 shown"
    page.press("Escape")
    page.run("document.querySelector('#reset').click()")
    assert len(shown(page)) == 8
    assert page.messages == []


def test_filter_stands_in_the_address_and_is_restored_from_it(show: Any, run_of_all_kinds: dict[str, Any]) -> None:
    page = show(run_of_all_kinds, "#show=passed.expected")
    assert shown(page) == ["test_1", "test_5"]
    page.run("document.querySelector('[data-group=passed]').click()")
    assert page.run("location.hash") == "#show=expected"


def test_address_of_a_gate_opens_it(show: Any, run_of_all_kinds: dict[str, Any]) -> None:
    page = show(run_of_all_kinds, "#g1p")
    assert page.run("document.getElementById('g1p').open") is True
    assert page.run("document.querySelector('#count').textContent") == "8 of 8 shown"


def test_keyboard_moves_and_opens(show: Any, run_of_all_kinds: dict[str, Any]) -> None:
    page = show(run_of_all_kinds, "#show=passed.expected")
    focused = "document.activeElement.closest('.gate').id"
    page.press("j")
    first = page.run(focused)
    page.press("j")
    assert page.run(focused) != first
    page.press("k")
    assert page.run(focused) == first
    is_open = f"document.getElementById('{first}').open"
    page.press("o")
    assert page.run(is_open) is True
    page.press("Enter")
    assert page.run(is_open) is False


def test_what_needs_a_decision_is_open_and_all_others_open_at_once(show: Any, run_of_all_kinds: dict[str, Any]) -> None:
    page = show(run_of_all_kinds)
    opened = "document.querySelectorAll('.gate[open]').length"
    assert page.run(opened) == 4
    page.run("document.querySelector('#open').click()")
    assert page.run(opened) == 8
    page.run("document.querySelector('#close').click()")
    assert page.run(opened) == 0


def test_print_has_the_gates_without_the_filter(show: Any, run_of_all_kinds: dict[str, Any]) -> None:
    page = show(run_of_all_kinds)
    page("Emulation.setEmulatedMedia", media="print")
    assert page.run("document.querySelector('#tools').checkVisibility()") is False
    assert len(shown(page)) == 8
    page("Emulation.setEmulatedMedia", media="")
    pdf = page.print()
    assert pdf.startswith(b"%PDF-")
    assert re.search(rb"/Count [1-9]", pdf)


def test_closed_failures_open_for_the_print_alone(show: Any, record_of: Any, document_of: Any) -> None:
    rows = [Row(f"t::{i}", "FAIL", record_of(0.02, 0.03, node_id=f"t::{i}"), "failed") for i in range(11)]
    page = show(document_of(*rows))
    opened = "document.querySelectorAll('.gate[open]').length"
    assert page.run(opened) == 0
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run(opened) == 11
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run(opened) == 0


def test_names_run_nothing_and_the_page_asks_for_nothing(show: Any, nasty_document: dict[str, Any]) -> None:
    page = show(nasty_document)
    page.run("document.querySelector('#open').click()")
    assert page.run("document.images.length + document.scripts.length") == 1
    assert page.messages == []
    text = page.run("document.body.innerText")
    assert "<img src=x onerror=alert(1)>" in text
    page.run(
        "const m = document.querySelector('#model'); m.value = m.options[1].value; m.dispatchEvent(new Event('change'))"
    )
    assert page.run("document.querySelector('#count').textContent") == "1 of 2 shown"


def test_security_policy_stops_other_scripts(show: Any, run_of_all_kinds: dict[str, Any]) -> None:
    page = show(run_of_all_kinds)
    page.run("const s = document.createElement('script'); s.textContent = 'window.pwned = 1'; document.body.append(s)")
    assert page.run("window.pwned === undefined") is True
    page.run("new Image().src = 'http://127.0.0.1:9/x.png'")
    assert any("Content Security Policy" in message for message in page.messages)


def test_two_thousand_gates_are_filtered(show: Any, record_of: Any, document_of: Any) -> None:
    record = record_of(node_id="tests/test_x.py::test_a")
    other = record_of(node_id="tests/test_x.py::test_b", subject=Subject("other"))
    row, last = Row("test_a", "PASS", record, "passed"), Row("test_b", "PASS", other, "passed")
    page = show(document_of(*[row] * 1999, last))
    assert page.run("document.querySelector('#count').textContent") == "2000 of 2000 shown"
    page.run("const m = document.querySelector('#model'); m.value = 'other'; m.dispatchEvent(new Event('change'))")
    assert page.run("document.querySelector('#count').textContent") == "1 of 2000 shown"
