"""How many rows tell a share from a limit below or above it."""

from __future__ import annotations

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.share_planning import rows_for_excess


def share_rows_needed(share: float, limit: float, *, confidence: float, alpha: float, power: float = 0.9) -> int | None:
    """About how many rows decide, with probability `power`, on a true `share` held against "at least `limit`".

    PASS, at `confidence`, for a share above the limit; FAIL, at error rate `alpha`, for one below; None where they are
    equal. The bounds are those of `binomial_bounds`. UsageError for a share outside [0, 1], a limit outside (0, 1) and
    rates that `rows_for_excess` refuses.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"share lies from 0 to 1, not {share}")
    if not 0 < limit < 1:
        raise UsageError(f"limit lies between 0 and 1, not {limit}")
    if share == limit:
        return None
    if share > limit:
        return rows_for_excess(share=1 - share, limit=1 - limit, confidence=confidence, power=power)
    return rows_for_excess(share=share, limit=limit, confidence=1 - alpha, power=power)
