"""Threat models: rows that are placed or projected are admissible exactly, in the dtype that is served."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pytest_modelserve.robustness.attacks import ThreatModel
from pytest_modelserve.robustness.attacks.edit_distance import edit_distances

ALL = np.arange(50)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int64"])
@pytest.mark.parametrize("magnitude", [1.0, 300.0])
def test_placed_and_projected_rows_are_admissible_and_reach_the_ends(norm, dtype, magnitude):
    rng = np.random.default_rng(0)
    whole = np.dtype(dtype).kind in "iu"
    high = min(max(magnitude, 20.0), 255.0) if whole else magnitude
    base = rng.uniform(0, high, (50, 7)).astype(dtype)
    eps = 3.7 if whole else 0.1 * magnitude + 0.0123
    scale = eps * rng.uniform(0.5, 2, 7)
    threat = ThreatModel(base=base, norm=norm, eps=scale, low=0, high=high)
    for _ in range(5):
        units = rng.choice([-1.0, 1.0], (50, 7)) if norm == "linf" else rng.normal(size=(50, 7))
        for rows in (threat.place(ALL, units), threat.project(ALL, base.astype(float) + 10 * scale * units)):
            assert rows.dtype == base.dtype
            change = np.abs(rows.astype(np.float64) - base.astype(np.float64))
            assert (change <= scale).all() if norm == "linf" else (((change / scale) ** 2).sum(axis=1) <= 1).all()
            assert rows.min() >= 0
            assert rows.max() <= high
            assert threat.admissible(ALL, rows).all()
            if norm == "linf":
                inside = (rows > 0) & (rows < np.asarray(high, dtype))
                step = 1 if whole else np.spacing(base.max()).astype(np.float64)
                assert (change[inside] >= (scale * np.ones((50, 1)))[inside] - 2 * step).all()


def test_a_change_beyond_eps_or_of_a_feature_that_stays_is_not_admissible():
    base = np.ones((50, 3), np.float32)
    threat = ThreatModel(base=base, norm="linf", eps=0.1, immutable=[2], low=0.95)
    moved = base.copy()
    moved[:, 0] = np.float32(1.1)  # 1.10000002, farther away than 0.1
    assert not threat.admissible(ALL, moved).any()
    moved[:, 0] = np.nextafter(np.float32(1.1), np.float32(0))
    assert threat.admissible(ALL, moved).all()
    moved[:, 2] = 1.05
    assert not threat.admissible(ALL, moved).any()
    assert not threat.admissible(ALL, base - np.float32(0.06) * np.eye(3, dtype=np.float32)[0]).any()
    assert not threat.admissible(ALL, base * np.nan).any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_infinity_is_never_admissible(norm):
    base = np.zeros((50, 2), np.float32)
    threat = ThreatModel(base=base, norm=norm, eps=1e39)
    moved = threat.place(ALL, np.full((50, 2), 0.7))
    assert np.isfinite(moved).all()
    assert threat.admissible(ALL, moved).all()
    assert not threat.admissible(ALL, base + np.float32(np.inf)).any()


def test_integer_columns_and_categories_are_checked():
    base = np.tile(np.array([[2.0, 0.0, 0.5]]), (50, 1))
    threat = ThreatModel(base=base, norm="linf", eps=1.5, integer=[0], categories={1: [0, 4, 7]})
    assert threat.admissible(ALL, base + np.array([1, 4, 0.2])).all()
    assert not threat.admissible(ALL, base + np.array([0.5, 0, 0])).any()
    assert not threat.admissible(ALL, base + np.array([0, 5, 0])).any()
    assert (threat.project(ALL, base + np.array([1.9, 7, 9]))[0] == [3, 7, 2]).all()


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_whole_numbers_without_a_range_may_rise_and_fall(dtype):
    base = np.full((50, 2), 100, dtype)
    threat = ThreatModel(base=base, norm="linf", eps=10)
    for sign in (-1.0, 1.0):
        moved = threat.place(ALL, np.full((50, 2), sign))
        assert (moved == 100 + sign * 10).all()
        assert threat.admissible(ALL, moved).all()


def test_categories_are_those_of_the_served_dtype():
    base = np.full((50, 2), 0.5, np.float32)
    threat = ThreatModel(base=base, norm="linf", eps=0.1, categories={1: [0.1, 0.5]})
    moved = threat.project(ALL, np.tile([0.5, np.float64(np.float32(0.1))], (50, 1)))
    assert (moved[:, 1] == np.float32(0.1)).all()
    assert threat.admissible(ALL, moved).all()


def _distance(one, other):
    """Return the optimal string alignment distance by its recursive definition."""
    if not one or not other:
        return max(len(one), len(other))
    found = [
        _distance(one[:-1], other) + 1,
        _distance(one, other[:-1]) + 1,
        _distance(one[:-1], other[:-1]) + (one[-1] != other[-1]),
    ]
    if one[-2:] == other[-2:][::-1] and len(one) > 1 < len(other):
        found.append(_distance(one[:-2], other[:-2]) + 1)
    return min(found)


def test_edit_distance_is_that_of_its_definition():
    words = ["".join(letters) for n in range(5) for letters in itertools.product("ab", repeat=n)]
    rng = np.random.default_rng(0)
    pairs = [(words[i], words[j]) for i, j in rng.integers(0, len(words), (300, 2))]
    before, after = (np.array(side, dtype=object) for side in zip(*pairs, strict=True))
    expected = np.array([_distance(one, other) for one, other in pairs], float)
    assert (edit_distances(before, after, padding=None, most=4) == expected).all()
    assert (edit_distances(before, after, padding=None, most=1) == np.where(expected <= 1, expected, np.inf)).all()
