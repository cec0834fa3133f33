"""What the accuracy gates share: two error rates, and evidence whose words follow its verdict."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

from pytest_modelserve.evidence import (
    Budget,
    Evidence,
    Method,
    Quantity,
    Subject,
    Verdict,
    check_error_rates,
    levels_for,
)

ROWS_LISTED = 50
"""Row numbers kept in the details: enough to look at, few enough to travel."""


class Levels(TypedDict):
    """The one-sided levels of an interval's ends."""

    low_level: float
    high_level: float


@dataclass(frozen=True, slots=True)
class ErrorRates:
    """PASS is said at `confidence`, FAIL at error rate `alpha`; UsageError for what is no probability of its kind."""

    confidence: float
    alpha: float

    def __post_init__(self) -> None:
        check_error_rates(confidence=self.confidence, alpha=self.alpha)

    def levels(self, budget: Budget) -> Levels:
        """The levels that an interval needs to be held against `budget`."""
        low, high = levels_for(budget, confidence=self.confidence, alpha=self.alpha)
        return Levels(low_level=low, high_level=high)


@dataclass(frozen=True, slots=True)
class Words:
    """What is said of one verdict: the summary, and what to do next."""

    summary: str
    advice: str = ""


class Judged(Protocol):
    """A judged headline and judged slices, worst first; see `parity.slice_verdicts.Verdicts`."""

    @property
    def headline(self) -> Quantity:
        """What is judged over all rows."""

    @property
    def slices(self) -> tuple[Quantity, ...]:
        """What is judged over slices of them."""

    @property
    def findings(self) -> tuple[str, ...]:
        """Sentences on slices that are not shown."""

    @property
    def of_slices(self) -> Verdict | None:
        """The worst verdict of the slices where it is worse than the headline's."""


def evidence_of(
    gate: str,
    subject: Subject,
    judged: Judged,
    *,
    n: int,
    method: Method,
    rates: ErrorRates,
    words: Mapping[Verdict, Words],
    started: float,
    reference: Subject | None = None,
    context: Sequence[Quantity] = (),
    findings: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
) -> Evidence:
    """The evidence on `n` rows whose headline is judged, begun at `started` (of `time.perf_counter`).

    Where a slice has a worse verdict than the whole, the words are about the slice.
    """
    headline = judged.headline
    assert headline.verdict is not None
    said = words[headline.verdict] if judged.of_slices is None else _words_on(judged.slices[0], judged.of_slices)
    return Evidence(
        gate=gate,
        subject=subject,
        reference=reference,
        quantities=(headline, *context, *judged.slices),
        n=n,
        n_unit="rows",
        method=method,
        summary=said.summary,
        confidence=rates.confidence,
        alpha=rates.alpha,
        findings=(*findings, *judged.findings),
        advice=said.advice,
        details=details or {},
        duration_s=time.perf_counter() - started,
    )


def _words_on(worst: Quantity, verdict: Verdict) -> Words:
    if verdict is Verdict.FAIL:
        return Words(f"a slice is outside its budget: {worst.name}", "look at the rows of this slice first")
    return Words(
        f"a slice cannot be told from its budget with these rows: {worst.name}",
        "label more rows of this slice, merge it with another, or leave it out",
    )
