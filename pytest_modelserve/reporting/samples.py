"""The raw samples behind a quantity, from the evidence or from the files beside the document."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from pytest_modelserve.evidence import Evidence, Quantity

_MEDIAN = 0.5
_DRAWN = ("log_ratios", "wall_ms", "cpu_ms", "undisturbed_ms", "latency_ms", "service_ms")
_FILE = re.compile(r"samples/([0-9a-f]{64})\.npz")


class UnreadableSamplesError(Exception):
    """Samples cannot be drawn; the message is one sentence for the page."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Sorted values in the unit of the quantity, whose quantile `level` has the budget.

    `of` names the observations ("calls"), `that` completes "the share of calls that …" ("took at most this long").
    `second` are the values by `second_clock`, or () if they were not measured.
    """

    of: str
    that: str
    level: float
    values: tuple[float, ...]
    second: tuple[float, ...] = ()
    second_clock: str = "CPU time"


@dataclass(frozen=True, slots=True)
class Readings:
    """Resident memory in bytes after every `calls_each` calls, in order."""

    resident: tuple[float, ...]
    calls_each: int


def samples_of(evidence: Evidence, quantity: Quantity, *, folder: Path | None) -> Sample | Readings | None:
    """Return the samples behind `quantity`, or None if there are none.

    `folder` is the folder of the document, which holds the sample files. Raises UnreadableSamplesError for a file that
    is missing or whose content does not match the sha256 in its name.
    """
    details = evidence.details
    try:
        if "resident_bytes" in details:
            return _readings(details)
        sample = _sample(details, quantity, evidence.n_unit, folder)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnreadableSamplesError("The samples have an unknown format.") from error
    return sample if sample is not None and sample.values else None


def _sample(details: Mapping[str, Any], quantity: Quantity, unit: str, folder: Path | None) -> Sample | None:
    if "added_bytes" in details:
        return Sample(unit, "added at most this much memory", _MEDIAN, _ascending(details["added_bytes"]))
    if "first call CPU" in details:
        return _starts(details, quantity, unit)
    return _timing_sample(details, unit, folder) if "samples" in details else None


def _readings(details: Mapping[str, Any]) -> Readings | None:
    resident = tuple(map(float, details["resident_bytes"]))
    return Readings(resident, int(details["calls_per_segment"])) if len(resident) > 1 else None


def _starts(details: Mapping[str, Any], quantity: Quantity, unit: str) -> Sample:
    """Return session creation plus first call, by the clock of the budget."""
    cpu = _ascending(map(sum, zip(details["session CPU"], details["first call CPU"], strict=True)))
    if quantity.name == "start CPU":
        return Sample(unit, "took at most this CPU time", _MEDIAN, cpu)
    wall = list(map(sum, zip(details["session"], details["first call"], strict=True)))
    if "run delay" in details:
        undisturbed = _ascending(time - delay for time, delay in zip(wall, details["run delay"], strict=True))
        return Sample(unit, "took at most this long undisturbed", _MEDIAN, undisturbed, _ascending(wall), "wall time")
    return Sample(unit, "took at most this long", _MEDIAN, _ascending(wall), cpu)


def _timing_sample(details: Mapping[str, Any], unit: str, folder: Path | None) -> Sample | None:
    entry = details["samples"]
    if "not_written" in entry:
        raise UnreadableSamplesError(f"The samples were not written: {entry['not_written']}.")
    arrays = _arrays(str(entry["file"]), folder)
    if "log_ratios" in arrays:
        ratios = tuple(map(math.exp, arrays["log_ratios"]))
        return Sample(unit, "had at most this ratio of candidate to reference time", _MEDIAN, ratios)
    if "latency_ms" in arrays:
        that, level = "were answered at most this long after they were due", details["quantile"]
        return Sample(unit, that, level, arrays["latency_ms"], arrays["service_ms"], second_clock="service time")
    if "wall_ms" not in arrays:
        return None
    level, wall = details["quantile"], arrays["wall_ms"]
    if "undisturbed_ms" in arrays:
        return Sample(
            unit, "took at most this long undisturbed", level, arrays["undisturbed_ms"], wall, second_clock="wall time"
        )
    return Sample(unit, "took at most this long", level, wall, arrays.get("cpu_ms", ()))


def _arrays(file: str, folder: Path | None) -> dict[str, tuple[float, ...]]:
    """Return the arrays to draw from a sample file, sorted and finite."""
    name = _FILE.fullmatch(file)
    if name is None:
        raise ValueError(file)
    if folder is None:
        raise UnreadableSamplesError(f"The samples are only available with --modelserve-json: {file}.")
    try:
        content = (folder / file).read_bytes()
    except OSError as error:
        raise UnreadableSamplesError(f"The samples cannot be read: {file}: {error.strerror or error}.") from error
    if hashlib.sha256(content).hexdigest() != name[1]:
        raise UnreadableSamplesError(f"The samples are damaged: the content of {file} does not match its sha256.")
    import numpy as np

    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files if key in _DRAWN}
    except (BadZipFile, EOFError, OSError) as error:
        raise ValueError(file) from error
    return {key: tuple(np.sort(array[np.isfinite(array)]).tolist()) for key, array in found.items()}


def _ascending(values: Any) -> tuple[float, ...]:
    return tuple(sorted(value for value in map(float, values) if math.isfinite(value)))
