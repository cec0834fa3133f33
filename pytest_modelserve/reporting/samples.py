"""The raw samples of a gate: from the file beside the document, or from the evidence itself where they are few."""

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
_DRAWN = ("log_ratios", "judged", "cpu_ms")
_FILE = re.compile(r"samples/([0-9a-f]{64})\.npz")


class UnreadableSamplesError(Exception):
    """Samples that were announced and cannot be drawn; the text is one sentence for the page."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Values of which one quantile is judged, in ascending order and in the unit of the judged quantity.

    `of` is what each belongs to ("calls"), `that` what is said of those up to a value ("took at most this long").
    `level` is the quantile. `cpu` is the same by CPU time, () where that was not kept.
    """

    of: str
    that: str
    level: float
    values: tuple[float, ...]
    cpu: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Readings:
    """Resident bytes after every `calls_each` calls, in order."""

    resident: tuple[float, ...]
    calls_each: int


def samples_of(evidence: Evidence, quantity: Quantity, *, beside: Path | None) -> Sample | Readings | None:
    """What `quantity` was judged from; None where nothing was kept, or where that is no sample (an accuracy).

    `beside` is the folder of the document, in which files of samples are looked up. UnreadableSamplesError for a file
    that is missing, or not what was written: its name is its sha256.
    """
    details = evidence.details
    try:
        if "resident_bytes" in details:
            return _readings(details)
        sample = _sample(details, quantity, evidence.n_unit, beside)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnreadableSamplesError("Its samples are not in a form that this page can draw.") from error
    return sample if sample is not None and sample.values else None


def _sample(details: Mapping[str, Any], quantity: Quantity, unit: str, beside: Path | None) -> Sample | None:
    if "added_bytes" in details:
        return Sample(unit, "added at most this much memory", _MEDIAN, _ascending(details["added_bytes"]))
    if "first call CPU" in details:
        return _starts(details, quantity, unit)
    return _kept(details, quantity, unit, beside) if "samples" in details else None


def _readings(details: Mapping[str, Any]) -> Readings | None:
    resident = tuple(map(float, details["resident_bytes"]))
    return Readings(resident, int(details["calls_per_stretch"])) if len(resident) > 1 else None


def _starts(details: Mapping[str, Any], quantity: Quantity, unit: str) -> Sample:
    """Opening the session and the first call together, by the clock of the budget."""
    cpu = _ascending(map(sum, zip(details["session CPU"], details["first call CPU"], strict=True)))
    if quantity.name == "start CPU":
        return Sample(unit, "answered within this CPU time", _MEDIAN, cpu)
    wall = _ascending(map(sum, zip(details["session"], details["first call"], strict=True)))
    return Sample(unit, "answered within this time", _MEDIAN, wall, cpu)


def _kept(details: Mapping[str, Any], quantity: Quantity, unit: str, beside: Path | None) -> Sample | None:
    entry = details["samples"]
    if "not_written" in entry:
        raise UnreadableSamplesError(f"Its samples were not written: {entry['not_written']}.")
    arrays = _arrays(str(entry["file"]), beside)
    if "log_ratios" in arrays:
        ratios = tuple(map(math.exp, arrays["log_ratios"]))
        return Sample(unit, "had at most this ratio of candidate to reference time", _MEDIAN, ratios)
    if "judged" not in arrays:
        return None
    values = arrays["judged"]
    if quantity.unit != "ms":
        return Sample(unit, "took at most so many calibration kernels", details["quantile"], values)
    return Sample(unit, "took at most this long", details["quantile"], values, arrays["cpu_ms"])


def _arrays(file: str, beside: Path | None) -> dict[str, tuple[float, ...]]:
    """The arrays of a file that are drawn, each in ascending order without what is not finite."""
    name = _FILE.fullmatch(file)
    if name is None:
        raise ValueError(file)
    if beside is None:
        raise UnreadableSamplesError(f"Its samples are not beside this page: {file}.")
    try:
        content = (beside / file).read_bytes()
    except OSError as error:
        raise UnreadableSamplesError(f"Its samples cannot be read: {file}: {error.strerror or error}.") from error
    if hashlib.sha256(content).hexdigest() != name[1]:
        raise UnreadableSamplesError(f"Its samples are damaged: {file} is not what was written.")
    import numpy as np

    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            found = {key: arrays[key] for key in arrays.files if key in _DRAWN}
    except (BadZipFile, EOFError, OSError) as error:
        raise ValueError(file) from error
    return {key: tuple(np.sort(array[np.isfinite(array)]).tolist()) for key, array in found.items()}


def _ascending(values: Any) -> tuple[float, ...]:
    return tuple(sorted(value for value in map(float, values) if math.isfinite(value)))
