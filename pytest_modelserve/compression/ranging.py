"""How calibration turns the values that it sees into a range: the user's choice, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from pytest_modelserve.errors import UsageError, unknown_choice

CalibrationMethod = Literal["min-max", "entropy", "percentile"]
"""See `compress`. Of the two that clip, "entropy" loses up to 19 dB against "min-max" where outputs are unbounded."""
METHODS: tuple[CalibrationMethod, ...] = get_args(CalibrationMethod)

# onnxruntime's default, and that of NVIDIA's pytorch-quantization.
DEFAULT_PERCENTILE = 99.999


@dataclass(frozen=True, slots=True)
class Ranging:
    """A range method; `percentile` is a number for "percentile" alone."""

    method: CalibrationMethod = "min-max"
    percentile: float | None = None


MIN_MAX = Ranging()


def ranging_of(method: CalibrationMethod, percentile: float | None) -> Ranging:
    """`method` with its percentile, 99.999 where none is given.

    UsageError for an unknown method, a percentile without that method, and one that is not above 0 and at most 100.
    """
    if method not in METHODS:
        raise UsageError(unknown_choice("calibration method", method, METHODS))
    if method != "percentile":
        if percentile is not None:
            raise UsageError(
                f"percentile={percentile} is given, and calibration_method={method!r} takes none: leave it out, or use "
                "calibration_method='percentile'"
            )
        return Ranging(method)
    chosen = DEFAULT_PERCENTILE if percentile is None else float(percentile)
    if not 0 < chosen <= 100:
        raise UsageError(f"percentile={percentile} is no share of the values: give a number above 0 and at most 100")
    return Ranging(method, chosen)
