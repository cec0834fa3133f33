"""Are two samples of many columns from one distribution? A statistic of random features, its chance by permutation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pytest_modelserve.errors import UsageError

Floats = NDArray[np.float64]

BANDWIDTHS = (0.5, 1.0, 2.0)
"""Of the Gaussian kernels, in medians of the distance between two rows: fine, usual and coarse structure."""
FEATURES = 256
"""Random features a bandwidth; of linear ones as many columns at most, and of more as many random sums."""
RIDGES = (0.1, 0.3)
"""In largest eigenvalues. Of digits with one class missing 0.1 to 0.3 find most, 0.03 and 1 about a tenth less."""
_NEIGHBOURS = 500
"""Rows whose distances give the median: 124,750 of them."""
_LEAST = 1e-3
"""Of the largest variance: a ridge of a tenth leaves a hundredth of an axis with less."""
_BATCH = 200
_SAME = 1e-3
"""Statistics nearer than this count as equal: single precision gives the same labelling two values 1e-5 apart."""
_EXCEEDANCES = 20
"""A p-value from 20 exceedances is known to a fifth of itself; nobody needs to know a large one better."""


@dataclass(frozen=True, slots=True)
class Block:
    """Features of one kind for all rows, turned to their principal axes: `axes` (rows, k), of `variances` (k,)."""

    axes: NDArray[np.floating]
    variances: Floats


def feature_blocks(rows: ArrayLike, *, rng: np.random.Generator) -> tuple[Block, ...]:
    """The columns of `rows` (n, columns) themselves, and random Fourier features of three Gaussian kernels.

    Columns should be of like scale. Nothing here knows which sample a row is of. Source of the features: Rahimi and
    Recht (2007), NIPS 20. UsageError for anything but two axes, fewer than two rows, and values that are not finite.
    """
    values = np.asarray(rows, dtype=np.float64)
    if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all():
        raise UsageError("rows are finite numbers on two axes, at least two of them")
    blocks = [_principal(values if values.shape[1] <= FEATURES else values @ _sums(values.shape[1], rng))]
    scale = _median_distance(values, rng)
    for bandwidth in BANDWIDTHS if scale else ():
        directions = rng.normal(size=(values.shape[1], FEATURES)) / (bandwidth * scale)
        waves = values @ directions
        waves += rng.uniform(0, 2 * math.pi, FEATURES)
        blocks.append(_principal(np.cos(waves, out=waves)))
    return tuple(blocks)


def _sums(columns: int, rng: np.random.Generator) -> Floats:
    return rng.normal(size=(columns, FEATURES)) / math.sqrt(columns)


def _median_distance(values: Floats, rng: np.random.Generator) -> float:
    """The median distance between two different rows of a sample of them; 0 where all are the same."""
    few = values[rng.choice(len(values), min(_NEIGHBOURS, len(values)), replace=False)]
    squares = (few**2).sum(axis=1)
    apart = squares[:, np.newaxis] + squares - 2 * few @ few.T
    different = apart[apart > 1e-9 * squares.max(initial=1.0)]
    return float(np.sqrt(np.median(different))) if different.size else 0.0


def _principal(features: Floats) -> Block:
    """Axes in the order of their variance, the largest first; those with a thousandth of it or less are left out."""
    centred = features - features.mean(axis=0)
    if centred.shape[0] < centred.shape[1]:  # of fewer rows than features, the rows' own products are the smaller table
        variances, axes = np.linalg.eigh(centred @ centred.T / len(centred))
        order = np.flatnonzero(variances > _LEAST * max(variances[-1], 1e-300))[::-1]
        return Block(axes[:, order] * np.sqrt(len(centred) * variances[order]), variances[order])
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    order = np.flatnonzero(variances > _LEAST * max(variances[-1], 1e-300))[::-1]
    return Block(centred @ directions[:, order], variances[order])


def discriminant(blocks: tuple[Block, ...], current: NDArray[np.bool_]) -> Floats:
    """How far the current rows' mean lies from the others', in about standard units, for each of several labellings.

    `current` (labellings, n) marks the current rows. Of each block, the squared distance of the two means under ridge
    covariances of all rows together is turned by Wilson and Hilferty's cube root to about a standard normal quantity,
    and the largest over blocks and ridges taken. Kernel Fisher discriminant analysis: Harchaoui, Bach and Moulines
    (2007), NIPS 20; the largest over several kernels as in Schrab et al. (2023), JMLR 24.
    """
    labels = np.atleast_2d(current)
    n = labels.shape[1]
    of_current = labels.sum(axis=1, keepdims=True)
    weights = np.where(labels, 1 / of_current, -1 / (n - of_current))
    spread = (1 / of_current + 1 / (n - of_current))[:, 0] * n / (n - 1)
    largest = np.full(len(labels), -math.inf)
    for block in blocks:
        if not block.variances.size:
            continue
        squares = (weights.astype(block.axes.dtype, copy=False) @ block.axes) ** 2
        for ridge in RIDGES:
            inverse = 1 / (block.variances + ridge * block.variances[0])
            shares = block.variances * inverse
            freedom = shares.sum() ** 2 / (shares**2).sum()
            distance = squares @ inverse / (spread * shares.sum())
            np.maximum(largest, _standard(distance, freedom), out=largest)
    return largest


def _standard(ratio: Floats, freedom: float) -> Floats:
    """The quantity, about standard normal, that rises with a chi-squared over its degrees of freedom."""
    variance = 2 / (9 * freedom)
    standard: Floats = (np.cbrt(ratio) - (1 - variance)) / math.sqrt(variance)
    return standard


def permutation_p_value(
    blocks: tuple[Block, ...], current: NDArray[np.bool_], *, most: int, rng: np.random.Generator
) -> float:
    """The chance of so large a `discriminant` if the rows had been labelled at random, by at most `most` labellings.

    Exact: unchanged, exchangeable rows give a value of at most p with probability at most p. Ends early with the
    twentieth labelling that is at least as far apart. Source: Besag and Clifford (1991), Biometrika 78, 301-304.
    1 where all rows are the same.
    """
    if not any(block.variances.size for block in blocks):
        return 1.0
    # Half the bits are half the time, and all labellings lose the same ones.
    light = tuple(Block(block.axes.astype(np.float32), block.variances) for block in blocks)
    observed = discriminant(light, current)[0]
    exceeding = done = 0
    while done < most:
        batch = rng.permuted(np.broadcast_to(current, (min(_BATCH, most - done), current.size)), axis=1)
        above = discriminant(light, batch) >= observed - _SAME
        if exceeding + above.sum() >= _EXCEEDANCES:
            last = int(np.flatnonzero(above)[_EXCEEDANCES - exceeding - 1])
            return _EXCEEDANCES / (done + last + 1)
        exceeding += int(above.sum())
        done += len(batch)
    return (exceeding + 1) / (most + 1)
