"""onnx's own recorded cases through output parity: exactly the listed deviations, no more and no less."""

import subprocess

import pytest

from benchmarks import onnx_cases


def test_deviations_are_exactly_the_listed_ones():
    if onnx_cases.listed_versions() != onnx_cases.versions():
        pytest.skip(
            f"the list was written for {onnx_cases.listed_versions()}, installed are {onnx_cases.versions()}: "
            "`python benchmarks/onnx_cases.py --update` writes it again"
        )
    # onnx computes the outputs of these in Python for 4 s; none of their cases is listed.
    found = onnx_cases.outcomes(without=("averagepool", "lppool", "maxpool"))
    assert onnx_cases.changes(found) == []
    assert len(found) > 1900
    assert sum(text == onnx_cases.AGREES for text in found.values()) / len(found) > 0.9


def test_new_and_vanished_deviations_are_described():
    everywhere, by_machine = onnx_cases.listed()
    gone = next(iter(everywhere))
    found = {**everywhere, **dict.fromkeys(by_machine, onnx_cases.AGREES), gone: onnx_cases.AGREES, "node/x": "differs"}
    assert onnx_cases.changes(found) == ["new: node/x: differs", f"vanished: {gone}: {everywhere[gone]}"]


@pytest.fixture
def children(monkeypatch):
    """Child processes that end with these codes after this output; returns their inputs."""

    def replace(*runs):
        inputs = []
        left = list(runs)

        def run(*_, input, **__):
            inputs.append(input)
            code, output = left.pop(0)
            return subprocess.CompletedProcess([], code, output, "Traceback")

        monkeypatch.setattr(onnx_cases.subprocess, "run", run)
        return inputs

    return replace


def test_case_that_crashes_its_process_is_an_outcome_and_the_rest_continues(children):
    inputs = children((-6, '["a", null]\n["a", ""]\n["b", null]\n'), (0, '["c", null]\n["c", "differs"]\n'))
    assert onnx_cases.outcomes() == {"a": "", "b": onnx_cases.CRASHES, "c": "differs"}
    assert inputs == ["", "a\nb"]


def test_exception_of_the_package_is_no_outcome(children):
    children((1, '["a", null]\n'))
    with pytest.raises(RuntimeError, match="the cases could not be replayed:\nTraceback"):
        onnx_cases.outcomes()
