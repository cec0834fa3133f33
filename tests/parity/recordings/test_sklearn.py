"""Converted scikit-learn models against scikit-learn: exactly the listed deviations, each with its reason."""

import hashlib
import json

import pytest_modelserve as ms
from benchmarks import sklearn_cases


def test_deviations_are_exactly_the_listed_ones():
    assert sklearn_cases.changes(sklearn_cases.deviations(), sklearn_cases.listed()) == []


def test_each_deviation_has_a_reason_and_most_conversions_have_none():
    known, cases = sklearn_cases.listed(), list(sklearn_cases.recordings())
    assert all(len(entry.why) > 40 for entry in known.values())
    assert len(cases) >= 38
    assert len(known) < len(cases) / 3


def test_a_difference_in_one_probability_of_a_map_is_found():
    """An error in one row of a ZipMap's probabilities: no output agrees because it was skipped."""
    recording = ms.open_recording(sklearn_cases.FOLDER / "logistic_digits_zipmap.held_out.npz")
    (exchange,) = recording.exchanges
    with ms.serve(sklearn_cases.FOLDER / "logistic_digits_zipmap.onnx") as served:
        outputs = served.predict(exchange.inputs)
    outputs["output_probability"][7, 3] += 0.01
    evidence = ms.measure_output_parity(
        ms.serve(lambda x: outputs), recording, recording.inputs, rtol=sklearn_cases.RTOL, atol=sklearn_cases.ATOL
    )
    (finding, *_) = evidence.findings
    assert finding.startswith(
        "output 'output_probability' channel 3 of axis 1: 1 of 1000 elements are beyond rtol 0.0001"
    )
    assert "at [7, 3]" in finding


def test_committed_files_are_those_that_were_made():
    made = json.loads((sklearn_cases.FOLDER / "made.json").read_text(encoding="utf-8"))
    files = [path for suffix in ("onnx", "npz") for path in sklearn_cases.FOLDER.glob(f"*.{suffix}")]
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files} == made["files"]
    assert sum(path.stat().st_size for path in files) < 600_000
