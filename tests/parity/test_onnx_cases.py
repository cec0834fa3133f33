"""onnx's own recorded cases through output parity: what deviates is known by name, no more and no less."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from benchmarks import onnx_cases


def test_every_deviation_is_in_the_list_and_every_entry_of_the_list_deviates() -> None:
    if onnx_cases.listed_versions() != onnx_cases.versions():
        pytest.skip(
            f"the list was written for {onnx_cases.listed_versions()}, installed are {onnx_cases.versions()}: "
            "`python benchmarks/onnx_cases.py --update` writes it anew"
        )
    found = onnx_cases.outcomes()
    assert onnx_cases.changes(found) == []
    assert len(found) > 2000
    assert sum(told == onnx_cases.AGREES for told in found.values()) / len(found) > 0.9


def test_what_is_new_and_what_has_vanished_is_told() -> None:
    everywhere, by_machine = onnx_cases.listed()
    gone = next(iter(everywhere))
    found = {**everywhere, **dict.fromkeys(by_machine, onnx_cases.AGREES), gone: onnx_cases.AGREES, "node/x": "differs"}
    assert onnx_cases.changes(found) == ["new: node/x: differs", f"vanished: {gone}: {everywhere[gone]}"]


def _children(monkeypatch: pytest.MonkeyPatch, *runs: tuple[int, str]) -> list[str]:
    """Child processes that end with these codes after this output; gives what they were handed."""
    handed: list[str] = []
    left = list(runs)

    def run(*_: Any, input: str, **__: Any) -> subprocess.CompletedProcess[str]:
        handed.append(input)
        code, output = left.pop(0)
        return subprocess.CompletedProcess([], code, output, "Traceback")

    monkeypatch.setattr(onnx_cases.subprocess, "run", run)
    return handed


def test_a_case_that_ends_its_process_is_an_outcome_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    handed = _children(
        monkeypatch, (-6, '["a", null]\n["a", ""]\n["b", null]\n'), (0, '["c", null]\n["c", "differs"]\n')
    )
    assert onnx_cases.outcomes() == {"a": "", "b": onnx_cases.ENDS, "c": "differs"}
    assert handed == ["", "a\nb"]


def test_an_exception_of_the_package_is_no_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    _children(monkeypatch, (1, '["a", null]\n'))
    with pytest.raises(RuntimeError, match="the cases could not be replayed:\nTraceback"):
        onnx_cases.outcomes()
