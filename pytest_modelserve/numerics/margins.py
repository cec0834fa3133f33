"""Agreement on the top class where the reference was sure of it, and how sure it was where the two part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.numerics.fidelity import top1_matches


@dataclass(frozen=True, slots=True)
class MarginAgreement:
    """How often both put the same class first.

    Of `rows`, `decided` have a reference margin above `min_margin`, and `agreeing` of those have the same top class.
    `flipped` rows, of all, have another one; `largest_flipped` is the largest reference margin among them, None for
    none: no threshold from there on would have let a difference through.
    """

    rows: int
    decided: int
    agreeing: int
    min_margin: float
    flipped: int
    largest_flipped: float | None

    @property
    def agreement(self) -> float:
        """The share of decided rows that agree, from 0 to 1."""
        return self.agreeing / self.decided


def decision_margins(scores: NDArray[Any]) -> NDArray[np.float64]:
    """The highest score less the second highest, for scores `(..., classes)`: `(...)`, at least 0, in their units.

    Raises InputError for fewer than two classes and for NaN and infinities.
    """
    top1_matches(scores, scores)  # refuses what has no top class
    wide = scores.astype(np.float64)
    second, first = np.moveaxis(np.partition(wide, -2, axis=-1)[..., -2:], -1, 0)
    margins: NDArray[np.float64] = first - second
    return margins


def agreement_by_margin(candidate: NDArray[Any], reference: NDArray[Any], *, min_margin: float) -> MarginAgreement:
    """The agreement of both on the top class, over rows whose reference margin exceeds `min_margin`.

    A row that the reference itself hardly decided flips under any rounding and says nothing about the candidate.
    Scores are `(..., classes)`; the margin is in their units. Raises InputError for what `top1_matches` refuses and
    where no row is decided, UsageError for a margin that is negative or not finite.
    """
    if not (math.isfinite(min_margin) and min_margin >= 0):
        raise UsageError(f"min_margin is a finite number of at least 0, not {min_margin}")
    matches, margins = top1_matches(candidate, reference), decision_margins(reference)
    decided = margins > min_margin
    if not decided.any():
        raise InputError(
            f"no row is decided by more than min_margin {min_margin:g}: the largest margin of the reference is "
            f"{margins.max():.3g}"
        )
    flipped = margins[~matches]
    return MarginAgreement(
        rows=margins.size,
        decided=int(decided.sum()),
        agreeing=int((matches & decided).sum()),
        min_margin=min_margin,
        flipped=flipped.size,
        largest_flipped=float(flipped.max()) if flipped.size else None,
    )
