"""What every interval of this room returns: an estimate between two one-sided bounds."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import _arguments


@dataclass(frozen=True, slots=True)
class Bounds:
    """An estimate and a bound on either side, each with a one-sided level of its own.

    `low` lies at or below the true value with probability `low_level`, `high` at or above it with probability
    `high_level`; together they cover it with probability at least `low_level + high_level - 1`. An end that the data
    cannot bound is infinite. UsageError for NaN, for ends in the wrong order and for levels outside (0.5, 1).
    """

    estimate: float
    low: float
    high: float
    low_level: float
    high_level: float

    def __post_init__(self) -> None:
        if not self.low <= self.estimate <= self.high:
            raise UsageError(f"bounds hold their estimate, unlike {self.low} <= {self.estimate} <= {self.high}")
        _arguments.level("low_level", self.low_level)
        _arguments.level("high_level", self.high_level)
