from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pytest_modelserve.evidence import Budget, Interval, Quantity, Verdict, holm_step_down
from pytest_modelserve.stats import holm


def significant_at(p_value: float) -> Callable[[float], Quantity]:
    """A quantity whose interval lies above its budget as soon as the error rate reaches its p-value."""

    def at(alpha: float) -> Quantity:
        low = 1.5 if p_value <= alpha else 0.5
        return Quantity("q", 2.0, "", Interval(low, 3.0, 1 - alpha, 0.95), Budget("at_most", 1.0))

    return at


@pytest.mark.parametrize("seed", range(50))
def test_exactly_those_fail_that_holm_rejects(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p_values = rng.beta(0.2, 1, size=rng.integers(1, 12))
    found = holm_step_down({index: significant_at(p) for index, p in enumerate(p_values)}, alpha=0.05)
    failed = [found[index].verdict is Verdict.FAIL for index in range(len(p_values))]
    assert failed == (holm(p_values) <= 0.05).tolist()


def test_nothing_to_judge_is_nothing_judged() -> None:
    assert holm_step_down({}, alpha=0.05) == {}
