"""Numbers as people read them: one place that knows how each unit is written."""

from __future__ import annotations

import math
from collections.abc import Callable

from pytest_modelserve.evidence import Budget, Interval, Quantity, Unit, Verdict


def _significant(value: float) -> str:
    """Three significant digits, without an exponent between 0.001 and a million."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def _milliseconds(value: float) -> str:
    """With its unit, as a quantity far below a millisecond is read in microseconds."""
    return f"{_significant(1000 * value)} µs" if 0 < abs(value) < 0.1 else f"{_significant(value)} ms"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(value) >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


_BARE: dict[Unit, Callable[[float], str]] = {
    "share": lambda value: f"{100 * value:.2f}",
    "share difference": lambda value: f"{100 * value:.2f}",
    "ratio": lambda value: f"{value:.2f}",
    "tolerance": _significant,
    "cosine": lambda value: f"{value:.5f}",
    "dB": lambda value: f"{value:.1f}",
    "ms": _milliseconds,
    "bytes": _bytes,
    "count": lambda value: f"{value:.0f}" if math.isfinite(value) else str(value),
    "": _significant,
}
_WITH_UNIT: dict[Unit, str] = {
    "share": "{} %",
    "share difference": "{} pt",
    "ratio": "× {}",
    "tolerance": "{} × tolerance",
    "dB": "{} dB",
}


def bare(value: float, unit: Unit) -> str:
    """`value` without its unit, as it stands in an interval."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return _BARE[unit](value)


def told(value: float, unit: Unit) -> str:
    """`value` with its unit: "94.20 %", "2.60 pt", "× 0.83", "38.2 dB"."""
    return _WITH_UNIT.get(unit, "{}").format(bare(value, unit))


def worded(value: float, unit: Unit) -> str:
    """As `told`, with words where there is room for them: "2.60 points"."""
    return told(value, unit).replace(" pt", " points") if unit == "share difference" else told(value, unit)


def told_interval(interval: Interval, unit: Unit) -> str:
    """Both ends without unit: "[1.42, 3.33]"."""
    return f"[{bare(interval.low, unit)}, {bare(interval.high, unit)}]"


def told_budget(budget: Budget, unit: Unit) -> str:
    """The budget in its short form: "≤ 1.00 pt"."""
    return f"{'≤' if budget.kind == 'at most' else '≥'} {told(budget.limit, unit)}"


def percentage(probability: float) -> str:
    """A probability in per cent: two digits of a small one ("3.4 %"), what a level near 1 lacks ("99.98 %")."""
    digits = 2 if probability < 0.5 else 6
    return f"{float(f'{100 * probability:.{digits}g}'):g} %"


def verdict_reason(quantity: Quantity) -> str:
    """Why the verdict is what it is, in the words of the interval."""
    assert quantity.budget is not None
    beyond = "above" if quantity.budget.kind == "at most" else "below"
    what = "the value lies" if quantity.interval is None else "the whole interval lies"
    match quantity.verdict:
        case Verdict.PASS:
            return f"{what} inside the budget"
        case Verdict.FAIL:
            return f"{what} {beyond} the budget"
        case _:
            return "the interval straddles the budget"
