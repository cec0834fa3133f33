"""Raw samples: found where they were kept, in the unit of what is judged, and refused in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_modelserve.evidence import Budget, Evidence, Interval, Quantity, Record, Recorder, keep_samples, recording
from pytest_modelserve.evidence.evidence import Unit
from pytest_modelserve.reporting.html_report import Readings, Sample, UnreadableSamplesError, samples_of

Maker = Callable[..., Record]


def kept(folder: Path, **arrays: Any) -> dict[str, Any]:
    """The entry for `details` that a gate of a run with a document in `folder` gets."""
    with recording(Recorder("t", "t", samples=folder / "samples")):
        return keep_samples(**{name: np.array(values, dtype=float) for name, values in arrays.items()})


def evidence(make: Maker, details: dict[str, Any], *, name: str = "p95", unit: Unit = "ms") -> Evidence:
    quantity = Quantity(name, 2.0, unit, Interval(1.0, 3.0, 0.999, 0.95), Budget("at_most", 4.0))
    return make(quantities=(quantity,), n_unit="calls", details=details).evidence


def found(it: Evidence, folder: Path | None = None) -> Sample | Readings | None:
    return samples_of(it, it.quantities[0], folder=folder)


def test_latency_is_read_from_beside_the_document_by_both_clocks(record_of: Maker, tmp_path: Path) -> None:
    details = {"quantile": 0.95, **kept(tmp_path, judged=[3, 1, 2], wall_ms=[3, 1, 2], cpu_ms=[2, 1, 1])}
    sample = found(evidence(record_of, details), tmp_path)
    assert sample == Sample("calls", "took at most this long", 0.95, (1.0, 2.0, 3.0), (1.0, 1.0, 2.0))


def test_latency_in_machine_units_has_no_cpu_time_in_them(record_of: Maker, tmp_path: Path) -> None:
    details = {"quantile": 0.95, **kept(tmp_path, judged=[3, 1, 2], wall_ms=[30, 10, 20], cpu_ms=[2, 1, 1])}
    sample = found(evidence(record_of, details, unit="ratio"), tmp_path)
    assert sample == Sample("calls", "took at most so many calibration kernels", 0.95, (1.0, 2.0, 3.0))


def test_log_ratios_become_ratios(record_of: Maker, tmp_path: Path) -> None:
    details = kept(tmp_path, log_ratios=[math.log(2), 0.0])
    sample = found(evidence(record_of, details, unit="ratio"), tmp_path)
    assert isinstance(sample, Sample)
    assert (sample.level, sample.values) == (0.5, pytest.approx((1.0, 2.0)))


def test_starts_are_told_by_the_clock_of_their_budget(record_of: Maker) -> None:
    details = {"session": [3, 4], "first call": [1, 1], "session CPU": [2, 3], "first call CPU": [1, 0.5]}
    wall = found(evidence(record_of, details, name="start"))
    assert wall == Sample("calls", "answered within this time", 0.5, (4.0, 5.0), (3.0, 3.5))
    cpu = found(evidence(record_of, details, name="start CPU"))
    assert cpu == Sample("calls", "answered within this CPU time", 0.5, (3.0, 3.5))


def test_memory_and_leaks_travel_in_the_evidence(record_of: Maker) -> None:
    added = found(evidence(record_of, {"added_bytes": [3, 1]}, unit="bytes"))
    assert added == Sample("calls", "added at most this much memory", 0.5, (1.0, 3.0))
    resident = found(evidence(record_of, {"resident_bytes": [3, 1, 4], "calls_per_stretch": 5}, unit="bytes"))
    assert resident == Readings((3.0, 1.0, 4.0), 5)


@pytest.mark.parametrize(
    "details",
    [{}, {"looks": [20]}, {"added_bytes": []}, {"resident_bytes": [1], "calls_per_stretch": 5}],
    ids=["nothing", "no sample", "no process", "one reading"],
)
def test_gate_without_samples_has_none(record_of: Maker, details: dict[str, Any]) -> None:
    assert found(evidence(record_of, details)) is None


def test_time_that_was_up_before_the_first_pair_leaves_no_sample(record_of: Maker, tmp_path: Path) -> None:
    assert found(evidence(record_of, kept(tmp_path, log_ratios=[]), unit="ratio"), tmp_path) is None


def refusal(it: Evidence, folder: Path | None) -> str:
    with pytest.raises(UnreadableSamplesError) as caught:
        found(it, folder)
    return str(caught.value)


def test_file_that_is_missing_damaged_or_was_not_written_is_a_sentence(record_of: Maker, tmp_path: Path) -> None:
    entry = kept(tmp_path, log_ratios=[0.0, 0.1])
    it, file = evidence(record_of, entry, unit="ratio"), entry["samples"]["file"]
    assert refusal(it, None) == f"Its samples are not beside this page: {file}."
    assert refusal(it, tmp_path / "x") == f"Its samples cannot be read: {file}: No such file or directory."
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(it, tmp_path) == f"Its samples are damaged: {file} is not what was written."
    full = evidence(record_of, {"samples": {"not_written": "No space left on device"}})
    assert refusal(full, tmp_path) == "Its samples were not written: No space left on device."


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
def test_details_of_another_form_are_a_sentence_and_no_file_elsewhere_is_read(
    record_of: Maker, tmp_path: Path, details: dict[str, Any]
) -> None:
    told = refusal(evidence(record_of, details), tmp_path)
    assert told == "Its samples are not in a form that this page can draw."
