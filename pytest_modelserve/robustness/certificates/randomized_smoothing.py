"""Randomized smoothing: L2 radii around rows within which the vote of a model under Gaussian noise keeps its label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtri

from pytest_modelserve.errors import InputError, UsageError
from pytest_modelserve.metrics import Output, decode
from pytest_modelserve.metrics.classification import class_labels
from pytest_modelserve.progress import progress
from pytest_modelserve.robustness.batched_predictor import BatchedPredictor, batched
from pytest_modelserve.robustness.coordinates import row_count
from pytest_modelserve.serving.inputs import select_output

if TYPE_CHECKING:
    from pytest_modelserve.serving import Inputs, Predictor

_CALL_VALUES = 2**22
"""Noisy input values of one round of calls: 32 MB of float64."""


@dataclass(frozen=True, slots=True, eq=False)
class SmoothedRadii:
    """The certificates of a smoothed model for the true labels of rows.

    Attributes:
        votes: Noisy copies of each row that got its label, (n,).
        samples: Noisy copies of each row.
        alpha: Probability that any of the certificates is wrong.
        sigma: Standard deviation of the noise, a number or an array of one row's shape.
        low: Lower bounds of the probability of the label under noise, (n,).
        high: Upper bounds of the same, (n,).
    """

    votes: NDArray[np.int64]
    samples: int
    alpha: float
    sigma: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def radii(self) -> NDArray[np.float64]:
        """The L2 radii (n,) within which the label is certified, in units of the input; 0 without a certificate.

        With one sigma for each feature, the radius of the largest ball inside the certified ellipsoid.
        """
        return float(self.sigma.min()) * self._quantiles

    @property
    def abstained(self) -> NDArray[np.bool_]:
        """The rows (n,) for which the samples decide neither for the label nor against it."""
        return (self.low <= 0.5) & (self.high >= 0.5)

    def certified(self, eps: ArrayLike) -> NDArray[np.bool_]:
        """Return the rows (n,) that keep their label under any change with an L2 norm of `eps` or less.

        `eps` as an array of one row's shape means each change d with sum((d / eps)²) of 1 or less.
        """
        reach = float(np.max(np.asarray(eps, np.float64) / self.sigma))
        certified: NDArray[np.bool_] = self._quantiles > reach
        return certified

    @property
    def _quantiles(self) -> NDArray[np.float64]:
        quantiles: NDArray[np.float64] = ndtri(np.maximum(self.low, 0.5))
        return quantiles


def smoothed_radii(
    predictor: Predictor,
    rows: Inputs,
    labels: ArrayLike,
    *,
    sigma: float | NDArray[Any],
    samples: int,
    seed: int = 0,
    alpha: float = 0.001,
    output: Output | str | None = None,
) -> SmoothedRadii:
    """Return the radii within which a smoothed model keeps the true label of each row.

    The smoothed model predicts the label that `predictor` gives most often to copies of a row with Gaussian noise. If a
    label has a probability p above 1/2 under noise, no change with an L2 norm below sigma · Φ⁻¹(p) takes the majority
    from it, whatever the model is (Cohen, Rosenfeld & Kolter 2019, ICML, theorem 1, with 1 − p for all other labels).

    p is bounded by Clopper and Pearson from `samples` copies of each row at `alpha` divided by the number of rows, so
    that all certificates hold together with probability 1 − `alpha`. The label is given and not chosen by the samples,
    so they need no first stage. A row whose bound is not above 1/2 has radius 0; it abstains if the other bound is not
    below 1/2. Values of integer inputs are rounded and clipped to their dtype after the noise, which makes rounding and
    clipping part of the model that votes.

    The certificate is one of the smoothed model, not of a single call of `predictor`. Rounding of the noisy inputs to
    their float dtype is not accounted for.

    Args:
        predictor: The model that votes.
        rows: One array (n, ...), or a mapping with one input.
        labels: The true labels (n,).
        sigma: Standard deviation of the noise in units of the input: a number, or an array of one row's shape.
        samples: Noisy copies of each row. The largest radius is sigma · Φ⁻¹((alpha/n)^(1/samples)).
        seed: Seed of the noise. Each row has a generator of its own, so the radii do not depend on batches.
        alpha: Probability that any certificate is wrong.
        output: The output to read, by name or as `ms.Output`.

    Returns:
        The votes and radii. Noisy copies for which the model returns NaN vote for no label.

    Raises:
        UsageError: For a `sigma` that is not above 0, fewer than 10 samples, or an `alpha` outside (0, 0.5).
        InputError: For several inputs, inputs that are no numbers, no rows, or NaN in the rows.

    Example:
        >>> import numpy as np
        >>> import pytest_modelserve as ms
        >>> model = ms.serve(lambda x: np.stack([-x[:, 0], x[:, 0]], axis=1))
        >>> rows = np.array([[1.0, 0.0], [-2.0, 5.0]])
        >>> smoothed_radii(model, rows, [1, 0], sigma=1.0, samples=1000).radii.round(1)
        array([0.8, 1.7])
    """
    if isinstance(samples, bool) or not isinstance(samples, (int, np.integer)) or samples < 10:
        raise UsageError(f"samples must be a whole number of at least 10, got {samples!r}")
    if not 0 < alpha < 0.5:
        raise UsageError(f"alpha must be above 0 and below 0.5, got {alpha}")
    model, feed = batched(predictor, rows)
    if len(feed) != 1:
        raise InputError(f"rows has {len(feed)} inputs ({', '.join(feed)}): randomized smoothing takes models with one")
    if not row_count(feed):
        raise InputError("rows has no rows: pass at least one")
    ((name, values),) = feed.items()
    if values.dtype.kind not in "fiu":
        raise InputError(f"rows has dtype {values.dtype}: noise can be added to numbers only")
    if not np.isfinite(values).all():
        raise InputError("rows holds NaN or infinite values: remove these rows, or impute them first")
    spread = _spread(sigma, values.shape[1:])
    truth = class_labels(np.asarray(labels), what="labels")
    if truth.shape != (len(values),):
        raise InputError(f"labels has shape {truth.shape} for {len(values)} rows: pass one label for each row")
    read = Output.of(output)
    votes = np.zeros(len(values), np.int64)
    size = max(1, min(samples, _CALL_VALUES // max(1, values[0].size)))
    together = max(1, _CALL_VALUES // (size * max(1, values[0].size)))
    for begin in progress(range(0, len(values), together), "smoothed rows"):
        chosen = np.arange(begin, min(begin + together, len(values)))
        generators = [np.random.default_rng([seed, row]) for row in chosen]
        for done in range(0, samples, size):
            copies = min(size, samples - done)
            noise = np.stack([each.normal(size=(copies, *values.shape[1:])) for each in generators])
            noisy = _as_dtype(values[chosen, np.newaxis] + spread * noise, values.dtype)
            noisy = noisy.reshape(-1, *values.shape[1:])
            votes[chosen] += (
                _votes(model, {name: noisy}, np.repeat(truth[chosen], copies), read)
                .reshape(len(chosen), copies)
                .sum(axis=1)
            )
    return SmoothedRadii(votes, samples, alpha, spread, *_proportion_bounds(votes, samples, tail=alpha / len(values)))


def _votes(
    model: BatchedPredictor, feed: dict[str, NDArray[Any]], labels: NDArray[Any], output: Output
) -> NDArray[np.bool_]:
    """Return which noisy copies get their label."""
    _, scores = select_output(model.predictor, model.predict(feed), output.name, reads_labels=True)
    decoded = decode(scores, output.decode)
    if (decoded.labels.dtype.kind == "U") != (labels.dtype.kind == "U"):
        raise InputError(
            f"labels are {labels.dtype} and predictions are {decoded.labels.dtype}: give labels of the same kind, or "
            "output=ms.Output(decode=) with a function that returns it"
        )
    same: NDArray[np.bool_] = (decoded.labels == labels) & ~decoded.invalid
    return same


def _proportion_bounds(
    votes: NDArray[np.int64], samples: int, *, tail: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the one-sided Clopper-Pearson bounds of each proportion of votes, with error rate `tail`."""
    low = np.where(votes > 0, betaincinv(np.maximum(votes, 1), samples - votes + 1, tail), 0.0)
    others = samples - votes
    high = np.where(others > 0, 1 - betaincinv(np.maximum(others, 1), votes + 1, tail), 1.0)
    return low, high


def _spread(sigma: float | NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float64]:
    spread = np.asarray(sigma)
    if spread.dtype.kind not in "fiu" or not np.isfinite(spread).all() or not (spread > 0).all():
        raise UsageError(f"sigma must be above 0 and finite, got {sigma!r}")
    if spread.shape not in ((), shape):
        raise UsageError(f"sigma has shape {spread.shape} for rows of shape {shape}: pass a number, or one a feature")
    return spread.astype(np.float64)


def _as_dtype(noisy: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind == "f":
        return noisy.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(noisy), limits.min, limits.max).astype(dtype)
