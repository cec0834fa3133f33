"""The verdict on data quality in words: broken rules, rates beyond the budget, and what is undecided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_modelserve.evidence import Verdict
from pytest_modelserve.monitoring.judging import CONFIDENCE, Judgement
from pytest_modelserve.monitoring.quality.rates import Rate
from pytest_modelserve.stats.share_planning import rows_for_excess

_TOLD = 10
_KEPT = 100
_POWER = 0.95
"""With the rows that are asked for, data like the profile's pass 19 times in 20."""

SUMMARIES = {
    Verdict.PASS: "the data are as whole as the profile's, within the budget",
    Verdict.FAIL: "the data are not whole",
    Verdict.INCONCLUSIVE: "whether the data are whole cannot be told with these rows",
}


def findings(
    broken: Sequence[str], judgement: Judgement[Rate] | None, rates: Sequence[Rate], *, max_share: float
) -> tuple[str, ...]:
    """Broken rules first, then the rates beyond the budget, then those that are undecided."""
    found = list(broken)
    if judgement is not None:
        found += [rate.told for rate in judgement.beyond]
        undecided = sorted(
            (rate for rate in rates if rate.high > max_share and rate not in judgement.beyond),
            key=lambda rate: -rate.high,
        )
        if undecided:
            worst = undecided[0]
            found.append(
                f"{len(undecided)} of {len(rates)} rates undecided, {worst.where} up to "
                f"{100 * worst.high:.2f} points above the profile: {worst.told}"
            )
    return (*found[:_TOLD], f"and {len(found) - _TOLD} more") if len(found) > _TOLD else tuple(found)


def advice(verdict: Verdict, rates: Sequence[Rate], *, max_share: float, rows: int, block: int) -> str:
    """What to do next; empty after PASS."""
    if verdict is Verdict.PASS:
        return ""
    if verdict is Verdict.FAIL:
        return "mend what writes these columns, or profile the data anew where the change is wanted"
    power = 1 - (1 - _POWER) / len(rates)
    needed = [_rows_needed(rate, max_share, power) for rate in rates]
    if None in needed:
        return "profile more rows: so few do not tell the shares of faulty rows to max_share"
    most = max(count for count in needed if count is not None) * block
    if most <= rows:
        return "data like the profile's pass with so many rows 19 times in 20: look at what is undecided, or give more"
    return f"give about {most:,} rows, or raise max_share"


def details(broken: Sequence[str], rates: Sequence[Rate]) -> Mapping[str, Any]:
    """The broken rules, and the figures of the highest rates: value, upper bound, chance."""
    ranked = sorted(rates, key=lambda rate: -rate.high)[:_KEPT]
    return {
        "broken": list(broken[:_TOLD]),
        "rates": {
            rate.key: [round(rate.value, 5), round(rate.high, 5), float(f"{rate.p_value:.3g}")] for rate in ranked
        },
    }


def _rows_needed(rate: Rate, max_share: float, power: float) -> int | None:
    """The rows with which data like the profile's pass; None where the profile is too small for that."""
    return rows_for_excess(
        share=rate.usual, base=rate.base, below=rate.below, limit=max_share, confidence=CONFIDENCE, power=power
    )
