"""The mean of an outcome in new rows without outcomes: models of the outcome weighted by a density ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtri

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.intervals import Bounds, check_level, check_vector

Floats = NDArray[np.float64]
_RIDGE = 1.0
"""The penalty of the density ratio's squared coefficients, of standardized inputs: that of scikit-learn's default."""
_STEPS, _CLOSE, _LONGEST_STEP, _TINY = 30, 1e-7, 4.0, 1e-8
_EQUAL = 1e-9
"""Relative differences that count as none."""
_ROUNDED = 1e-6
"""The relative difference that 32-bit floats may have from 64-bit ones."""
_SMALLEST_SPREAD = 1e-4
"""The smallest standard deviation of a column that differs, as a part of its range: the Hessian stays regular."""


@dataclass(frozen=True, slots=True, eq=False)
class ShiftedMean:
    """The estimated mean outcome of new rows.

    `standard_error` is the root of two variances: of the estimate, through both fitted models, and of the outcomes of
    the new rows around their expectations. `effective_size` is Kish's number of calibration rows that count: (Σ w)²/Σ
    w², with the density ratio w. `imbalance` is the largest difference of the mean of an input between weighted
    calibration rows and new rows, in standard deviations: the weights cannot make up for new rows that are unlike any
    other. `outside` is the largest proportion of new rows that lie outside the range of the calibration rows in one
    input: a model of their outcome is an extrapolation. `unweighted` is the estimate without weights.
    """

    estimate: float
    standard_error: float
    effective_size: float
    imbalance: float
    outside: float
    unweighted: float
    is_proportion: bool

    def bounds(self, *, low_level: float, high_level: float) -> Bounds:
        """Return normal bounds, of proportions on the scale of the log odds; UsageError for levels outside (0.5, 1)."""
        low, high = (
            float(ndtri(check_level("low_level", low_level))),
            float(ndtri(check_level("high_level", high_level))),
        )
        if not self.is_proportion:
            ends = (self.estimate - low * self.standard_error, self.estimate + high * self.standard_error)
        else:
            center = float(logit(self.estimate))
            error = self.standard_error / (self.estimate * (1 - self.estimate))
            ends = (float(expit(center - low * error)), float(expit(center + high * error)))
        return Bounds(self.estimate, *ends, low_level, high_level)


def shifted_mean(
    outcomes: ArrayLike,
    predictors: Floats,
    inputs: Floats,
    new_predictors: Floats,
    new_inputs: Floats,
    *,
    is_proportion: bool,
) -> ShiftedMean:
    """Return the mean outcome of m new rows, from the `outcomes` (n,) of n rows of another distribution.

    A logistic regression distinguishes new rows from old ones by their `inputs` (n, d) and `new_inputs` (m, d); its
    odds are the density ratio, which weights the n rows. With these weights outcomes are regressed on `predictors` (n,
    p), and predicted for `new_predictors` (m, p). Outcomes of 0 and 1, whose mean `is_proportion`, have a logistic
    regression with the targets of Platt (1999), Advances in Large Margin Classifiers, 61–74; other outcomes have a
    linear one. The estimate holds if outcomes given the inputs are distributed as before, and if either model is right.

    The variance adds the squared influences of all rows on the estimate: through the second regression, and through
    the density ratio on its weights.

    Source: Shimodaira (2000), Journal of Statistical Planning and Inference 90, 227–244; the density ratio by
    classification, Bickel, Brückner and Scheffer (2009), Journal of Machine Learning Research 10, 2137–2155; the
    variance of stacked estimates, Stefanski and Boos (2002), The American Statistician 56, 29–38. UsageError for arrays
    that do not fit, and numbers that are not finite.
    """
    y = check_vector("outcomes", outcomes)
    n, m = y.size, len(new_inputs)
    _check(y, predictors, inputs, new_predictors, new_inputs, is_proportion=is_proportion)
    both = _standardized(inputs, new_inputs)
    pairs = _standardized(predictors, new_predictors)
    old, new = pairs[:n], pairs[n:]
    is_new = np.repeat([0.0, 1.0], [n, m])
    penalty = np.append(0.0, np.full(both.shape[1] - 1, _RIDGE))
    ratio, hessian = _logistic(both, is_new, np.ones(n + m), penalty)
    log_odds = both[:n] @ ratio
    weights = np.exp(log_odds - log_odds.max())
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    weights *= effective / weights.sum()  # they count as so many rows
    fit = _platt if is_proportion else _linear
    imbalance = np.abs(weights @ both[:n] / weights.sum() - both[n:].mean(axis=0)).max()
    coefficients, curvature, residuals = fit(old, y, weights)
    fitted = new @ coefficients
    chances = expit(fitted) if is_proportion else fitted
    slope = (new * (chances * (1 - chances))[:, None]).mean(axis=0) if is_proportion else new.mean(axis=0)
    direct = old * (weights * residuals)[:, None]
    towards = np.linalg.solve(curvature, slope)  # of a change of the second regression's equations, on the estimate
    through_ratio = np.linalg.solve(hessian, both[:n].T @ (direct @ towards))
    influence = (both * (is_new - expit(both @ ratio))[:, None]) @ through_ratio
    influence[:n] += direct @ towards
    spread = float(np.average(residuals**2, weights=weights)) if not is_proportion else 0.0
    noise = float((chances * (1 - chances)).mean()) / m if is_proportion else spread / m
    plain, _, _ = fit(old, y, np.ones(n))
    return ShiftedMean(
        estimate=float(chances.mean()),
        standard_error=math.sqrt(float(influence @ influence) + noise),
        effective_size=effective,
        imbalance=float(imbalance),
        outside=_outside(inputs, new_inputs),
        unweighted=float((expit(new @ plain) if is_proportion else new @ plain).mean()),
        is_proportion=is_proportion,
    )


def _check(
    y: Floats, predictors: Floats, inputs: Floats, new_predictors: Floats, new_inputs: Floats, *, is_proportion: bool
) -> None:
    for name, one, two in (("inputs", inputs, new_inputs), ("predictors", predictors, new_predictors)):
        if one.ndim != 2 or two.ndim != 2 or one.shape[1] != two.shape[1]:
            raise UsageError(f"{name} must be (rows, columns) with the same columns, got {one.shape} and {two.shape}")
        if not (np.isfinite(one).all() and np.isfinite(two).all()):
            raise UsageError(f"{name} must be finite")
    if not len(inputs) == len(predictors) == y.size or len(new_inputs) != len(new_predictors):
        raise UsageError("outcomes, inputs and predictors must have the same rows")
    if is_proportion and not ((y == 0) | (y == 1)).all():
        raise UsageError("outcomes of a proportion must be 0 or 1")
    if y.size < 2 or not len(new_inputs) or not np.isfinite(y).all():
        raise UsageError("outcomes must be finite, of at least 2 rows, and there must be new rows")


def _outside(old: Floats, new: Floats) -> float:
    """Return the largest proportion of new rows whose value in one column no old row reaches, on either side."""
    if not old.shape[1]:
        return 0.0
    low, high = old.min(axis=0), old.max(axis=0)
    margin = _ROUNDED * np.maximum(np.abs(low), np.abs(high))
    return float(((new < low - margin) | (new > high + margin)).mean(axis=0).max())


def _standardized(old: Floats, new: Floats) -> Floats:
    """Return the rows of both with an intercept, and columns in standard deviations within one of them.

    A column that is constant within both has huge values if it differs between them, and is left out if not.
    """
    largest = np.maximum(np.abs(old).max(axis=0), np.abs(new).max(axis=0))
    one, two = (values / np.where(largest > 0, largest, 1.0) for values in (old, new))
    within = np.sqrt((len(one) * one.var(axis=0) + len(two) * two.var(axis=0)) / (len(one) + len(two)))
    both = np.vstack([one, two])
    kept = np.ptp(both, axis=0) > _EQUAL
    least = np.ptp(both, axis=0)[kept] * _SMALLEST_SPREAD
    columns = (both[:, kept] - both[:, kept].mean(axis=0)) / np.maximum(within[kept], least)
    return np.column_stack([np.ones(len(both)), columns])


def _logistic(x: Floats, y: Floats, weights: Floats, penalty: Floats) -> tuple[Floats, Floats]:
    """Return the coefficients (d,) of a penalized logistic regression, and the Hessian of its loss."""
    coefficients, hessian = np.zeros(x.shape[1]), np.eye(x.shape[1])
    for _ in range(_STEPS):
        chances = expit(x @ coefficients)
        hessian = (x * (weights * chances * (1 - chances))[:, None]).T @ x + np.diag(penalty + _TINY)
        step = np.linalg.solve(hessian, x.T @ (weights * (y - chances)) - penalty * coefficients)
        size = float(np.abs(step).max())
        coefficients = coefficients + step / max(size / _LONGEST_STEP, 1.0)
        if size < _CLOSE:
            break
    return coefficients, hessian


def _platt(x: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the coefficients (p,), the Hessian and the residuals (n,) of a weighted logistic regression."""
    right, wrong = float(weights @ y), float(weights @ (1 - y))
    targets = np.where(y == 1, (right + 1) / (right + 2), 1 / (wrong + 2))
    coefficients, hessian = _logistic(x, targets, weights, np.zeros(x.shape[1]))
    return coefficients, hessian, targets - expit(x @ coefficients)


def _linear(x: Floats, y: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the coefficients (p,), the Hessian and the residuals (n,) of a weighted linear regression."""
    hessian = (x * weights[:, None]).T @ x
    hessian += np.eye(x.shape[1]) * _TINY * float(np.trace(hessian))
    coefficients = np.asarray(np.linalg.solve(hessian, x.T @ (weights * y)), dtype=np.float64)
    return coefficients, hessian, np.asarray(y - x @ coefficients)
