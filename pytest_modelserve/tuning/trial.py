"""A variant in a search: what was built and measured of it, what the gates found, and what became of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from pytest_modelserve.artifacts import Artifact
from pytest_modelserve.evidence import Evidence, Interval, Quantity, Subject
from pytest_modelserve.serving import OnnxPredictor
from pytest_modelserve.stats import median_bounds
from pytest_modelserve.tuning.gate import GateResult
from pytest_modelserve.tuning.variant import Variant

Outcome = Literal["open", "chosen", "passes", "not shown", "fails", "no gain", "not judged", "not built"]
"""open: while the search runs. passes: a faster one was chosen. not shown: the rows do not decide once the choice is
paid for."""

LEVEL = 0.95
"""The one-sided level of an interval's ends."""


@dataclass(slots=True, eq=False)
class Trial:
    """One row of the table.

    Attributes:
        variant: How it is built and served.
        artifact: The model; None if it could not be built.
        key: Digest of the model and its session.
        log_ratios: Logarithms of its objective over that of the original: one a block, or a single exact one.
        results: What each gate found, in the order in which they ran.
        outcome: What became of it.
        reason: Why, in one line.
        probability: Of passing, as the search rows show it, where variants are made adaptively.
    """

    variant: Variant
    artifact: Artifact | None = None
    key: str = ""
    log_ratios: list[float] = field(default_factory=list)
    results: list[GateResult] = field(default_factory=list)
    outcome: Outcome = "open"
    reason: str = ""
    probability: float | None = None

    @property
    def name(self) -> str:
        """The name of the variant."""
        return self.variant.name

    @property
    def ratio(self) -> float:
        """The median ratio of the objective to the original's; NaN before the first measurement."""
        return math.exp(float(np.median(self.log_ratios))) if self.log_ratios else math.nan

    @property
    def interval(self) -> Interval | None:
        """The sign interval of the median ratio; None where fewer than five blocks were measured."""
        if len(self.log_ratios) < 5:
            return None
        bounds = median_bounds(self.log_ratios, low_level=LEVEL, high_level=LEVEL)
        return Interval(math.exp(bounds.low), math.exp(bounds.high), LEVEL, LEVEL)

    @property
    def low(self) -> float:
        """The low end of the interval of the ratio, or the exact ratio."""
        return self.ratio if self.interval is None else self.interval.low

    @property
    def high(self) -> float:
        """The high end of the interval of the ratio, or the exact ratio."""
        return self.ratio if self.interval is None else self.interval.high

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """The evidence of its gates."""
        return tuple(evidence for result in self.results for evidence in result.evidence)

    def figure(self, gate: str) -> Quantity | None:
        """Return the main quantity of a gate; None where it did not run."""
        return next((evidence.quantities[0] for evidence in self.evidence if evidence.gate == gate), None)

    @property
    def subject(self) -> Subject:
        """The model with its session, as evidence names it."""
        assert self.artifact is not None
        return replace(self.artifact.subject, variant=self.artifact.variant + self.variant.session)

    def serve(self) -> OnnxPredictor:
        """Open a session."""
        assert self.artifact is not None
        session = self.variant
        return OnnxPredictor(
            self.artifact, threads=session.threads, optimize=session.optimize, variant=self.subject.variant
        )

    def end(self, outcome: Outcome, reason: str) -> None:
        """Note what became of it."""
        self.outcome, self.reason = outcome, reason
