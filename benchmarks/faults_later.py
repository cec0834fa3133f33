# ruff: noqa: E501 (one fault a line: model, rows, relation)
"""Planted faults for the relations added after the first list: scales, units, missing values, directions, sets.

The list was written after the search had been run on the first list, before it was run on any of these, and frozen
then. FROZEN_CHANGES names every change since.
"""

from __future__ import annotations

import numpy as np

import pytest_modelserve as ms
from benchmarks.faults import POSITIVE, STEPS, TABLE, Fault, Rows, flat, linear, plain, without

r = ms.relations
FROZEN_CHANGES = (
    "the three units, and the total rounded to cents: their models returned float64 outputs of float32 inputs, "
    "so that the rounding of the rescaled input alone broke the relation, with or without the fault; they now return "
    "float32. The first run, before this change, found 18 of 18.",
)
RNG = np.random.default_rng(21)
DEGREES = (
    np.concatenate([RNG.normal(10, 4, (150, 1)), RNG.normal(0, 1, (150, 2)), np.zeros((150, 1))], axis=1)
    .round(2)
    .astype(np.float32)
)
IN_FAHRENHEIT = r.unit_change(0, factor=1.8, offset=32.0, declared=3, values=(0.0, 1.0))


def share(x: Rows) -> Rows:
    z = flat(x)
    return np.asarray(z / z.sum(axis=1, keepdims=True))


def celsius(x: Rows) -> Rows:
    z = flat(x)
    return np.asarray(np.where(z[:, 3] > 0.5, (z[:, 0] - 32) / 1.8, z[:, 0]), np.float32)


def whole(x: Rows, value: float = 0.0) -> Rows:
    return np.where(np.isnan(x), np.asarray(value, x.dtype), x)


def imputed_elsewhere(x: Rows) -> Rows:
    value = np.where(x[:, 5] > 1.7, 0.5, 0.0)[:, np.newaxis].astype(x.dtype)
    return linear(np.where(np.isnan(x), value, x))


def mean_of_two(x: Rows) -> Rows:
    pair = flat(x)[:, 1:3]
    known = ~np.isnan(pair)
    with np.errstate(all="ignore"):
        return np.asarray(np.where(known, pair, 0).sum(axis=1) / known.sum(axis=1))


def cents(x: Rows) -> Rows:
    total = flat(x).sum(axis=1)
    return np.where(total < 4, np.round(total, 1), total).astype(np.float32)


def labels_moved(x: Rows) -> Rows:
    return np.roll(linear(x), 1, axis=1)


def items(x: Rows) -> Rows:
    return np.asarray(x.astype(np.float64).sum(axis=1))


SCALES = [
    Fault("constant in a share", "scale", plain(lambda x: flat(x) / (flat(x).sum(axis=1, keepdims=True) + 0.1)), POSITIVE, r.scale_invariant(2.0), 0),
    Fault("clipped before the share", "scale", plain(lambda x: share(np.minimum(x, 6))), without(POSITIVE, lambda x: x.max(axis=1) > 2.9), r.scale_invariant(2.0), 1, ("like", "far")),
    Fault("bias in a total", "scale", plain(lambda x: flat(x).sum(axis=1) + 0.01), POSITIVE, r.scale_equivariant(2.0), 0),
    Fault("discount above a threshold", "scale", plain(lambda x: flat(x).sum(axis=1) - 1.0 * ((x[:, 2] > 4) & (x[:, 0] > 4))), without(POSITIVE, lambda x: (x[:, 2] > 1.9) & (x[:, 0] > 1.9)), r.scale_equivariant(2.0), 2),
    Fault("rounded to cents where it is small", "scale", plain(cents), without(POSITIVE, lambda x: x.sum(axis=1) < 5), r.scale_equivariant(1.1), 4),
]  # fmt: skip

UNITS = [
    Fault("unit ignored", "unit", plain(lambda x: x[:, 0] + x[:, 1]), DEGREES, IN_FAHRENHEIT, 0),
    Fault("threshold in raw degrees", "unit", plain(lambda x: celsius(x) + np.float32(5) * (x[:, 0] > 90)), without(DEGREES, lambda x: x[:, 0] > 30), IN_FAHRENHEIT, 1, ("like", "far")),
    Fault("unit ignored in one branch", "unit", plain(lambda x: np.where((x[:, 1] > 1.5) & (x[:, 2] < -1), x[:, 0], celsius(x))), without(DEGREES, lambda x: (x[:, 1] > 1.5) & (x[:, 2] < -1)), IN_FAHRENHEIT, 2),
]  # fmt: skip

MISSING = [
    Fault("missing is handed on", "missing", plain(lambda x: linear(np.where(np.arange(10) == 2, x, whole(x)))), TABLE, r.missing_values((2, 3)), 0),
    Fault("mean of two that are both missing", "missing", plain(mean_of_two), TABLE, r.missing_values((1, 2)), 0),
    Fault("another value than in training", "missing", plain(lambda x: linear(whole(x, 0.1))), TABLE, r.missing_values(4, imputed=0.0), 0),
    Fault("another value in one branch", "missing", plain(imputed_elsewhere), without(TABLE, lambda x: x[:, 5] > 1.7), r.missing_values(4, imputed=0.0), 1, ("like", "far")),
]  # fmt: skip

DIRECTIONS = [
    Fault("saturates early", "direction", plain(lambda x: np.minimum(flat(x)[:, 0], 2.5)), without(TABLE, lambda x: x[:, 0] > 1.9), r.directional(0, 0.5, "up", at_least=0.1), 1, ("like", "far")),
    Fault("turns in a corner", "direction", plain(lambda x: flat(x)[:, 0] * np.where((x[:, 3] < -1.5) & (x[:, 4] > 1), -0.1, 1)), without(TABLE, lambda x: (x[:, 3] < -1.5) & (x[:, 4] > 1)), r.directional(0, 0.5, "up"), 2),
    Fault("labels in another order", "functionality", plain(labels_moved), TABLE[:20], r.minimum_functionality(linear(TABLE[:20]).argmax(axis=1)), 0),
]  # fmt: skip

SETS = [
    Fault("first item counts twice", "set", plain(lambda x: items(x) + x[:, 0]), STEPS, r.set_permutation(1), 0),
    Fault("only the first four items are read", "set", plain(lambda x: items(x[:, :4])), STEPS, r.set_permutation(1), 0),
    Fault("last item masked where it is large", "set", plain(lambda x: items(x) - x[:, -1] * (np.abs(x[:, -1]).max(axis=1) > 2.6)[:, np.newaxis]), without(STEPS, lambda x: np.abs(x).max(axis=(1, 2)) > 2.5), r.set_permutation(1), 1, ("like", "far")),
]  # fmt: skip

FAULTS = [*SCALES, *UNITS, *MISSING, *DIRECTIONS, *SETS]
