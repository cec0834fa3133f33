"""Several questions asked at once: what one error rate for all of them costs each."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats import _arguments


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p-values (tests,), in the order given: those at most `alpha` may be rejected together.

    The probability that any true hypothesis is rejected is then at most `alpha`, however the tests depend on each
    other. Adjusted values are never above 1 and keep the order of the p-values; equal p-values stay equal. No
    p-values give an empty array. Source: Holm (1979), Scandinavian Journal of Statistics 6, 65–70.

    UsageError for NaN, a value outside [0, 1] or more than one axis.
    """
    values = _arguments.vector("p_values", p_values)
    possible = (values >= 0) & (values <= 1)
    if not possible.all():
        raise UsageError(f"a p-value lies from 0 to 1, unlike {values[~possible][0]}")
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return adjusted


def spend(error: float, looks: int) -> float:
    """The error rate that each of `looks` looks at growing data may take, so that all of them together keep `error`.

    An equal Bonferroni split, `error / looks`: conservative, because looks at growing data depend on each other. With
    looks after 50, 100, 200, 400 and 800 pairs, one end of a sign interval misses the median in 3.2 % of runs for an
    `error` of 5 % and in 0.07 % for 0.1 %; unsplit it would be 13.6 % and 0.32 % (enumerated, see
    benchmarks/error_rates.py). Alpha spending (Lan and DeMets 1983, Biometrika 70, 659–663) wastes less and needs to
    know how the looks depend on each other; this needs nothing.

    UsageError for an error rate outside (0, 0.5) or no looks.
    """
    return _arguments.error_rate("error", error) / _arguments.count("looks", looks, minimum=1)
