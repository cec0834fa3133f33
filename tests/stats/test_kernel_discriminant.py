from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.two_sample_tests import (
    discriminant,
    feature_blocks,
    held_out_scores,
    one_sided_distance,
    permutation_p_value,
)


def labelled(then, now, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.concatenate((then, now))
    return feature_blocks(rows, rng=rng), np.arange(len(rows)) >= len(then), rng


def p_value(then, now, *, seed=0, most=199):
    blocks, current, rng = labelled(then, now, seed)
    return permutation_p_value(blocks, current, most=most, rng=rng)


def test_axes_are_those_of_the_covariance():
    rows = np.random.default_rng(0).normal(size=(60, 4)) * [3, 2, 1, 0]
    block = feature_blocks(rows, rng=np.random.default_rng(1))[0]
    expected = np.sort(np.linalg.eigvalsh(np.cov(rows.T, bias=True)))[::-1][:3]
    assert block.variances == pytest.approx(expected)
    assert block.axes.T @ block.axes / 60 == pytest.approx(np.diag(expected), abs=1e-9)


def test_cosines_approximate_the_gaussian_kernel():
    rows = np.random.default_rng(2).normal(size=(40, 3))
    blocks = feature_blocks(rows, rng=np.random.default_rng(3))
    squares = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    kernel = np.exp(-squares / 2 / np.median(squares[squares > 0]))
    centre = np.eye(40) - 1 / 40
    found = blocks[2].axes @ blocks[2].axes.T * 2 / 256
    assert np.abs(found - centre @ kernel @ centre).max() < 0.35
    assert np.corrcoef(found.ravel(), (centre @ kernel @ centre).ravel())[0, 1] > 0.95


def test_statistic_is_the_ridge_mahalanobis_distance_of_the_means():
    # One linear block: constant rows but one column have no kernels of use, so its own statistic is compared.
    rng = np.random.default_rng(4)
    rows, current = rng.normal(size=(50, 3)), np.arange(50) >= 30
    block = feature_blocks(rows, rng=rng)[:1]
    centred = rows - rows.mean(axis=0)
    covariance = centred.T @ centred / 50
    largest = np.linalg.eigvalsh(covariance)[-1]
    apart = rows[current].mean(axis=0) - rows[~current].mean(axis=0)
    expected = []
    for ridge in (0.1, 0.3):
        inverse = np.linalg.inv(covariance + ridge * largest * np.eye(3))
        shares = np.linalg.eigvals(covariance @ inverse).real
        freedom = shares.sum() ** 2 / (shares**2).sum()
        ratio = apart @ inverse @ apart / ((1 / 30 + 1 / 20) * 50 / 49 * shares.sum())
        expected.append((np.cbrt(ratio) - 1 + 2 / (9 * freedom)) / np.sqrt(2 / (9 * freedom)))
    assert discriminant(block, current) == pytest.approx([max(expected)])


@pytest.mark.parametrize("tails", ["normal", "Cauchy"])
def test_unchanged_rows_have_p_values_no_smaller_than_they_say(tails):
    rng, chances = np.random.default_rng(5), []
    for seed in range(60):
        draw = rng.normal if tails == "normal" else lambda size: np.clip(rng.standard_cauchy(size), -5, 5)
        chances.append(p_value(draw(size=(60, 3)), draw(size=(40, 3)), seed=seed, most=59))
    for level in (0.05, 0.1, 0.3):
        assert np.mean(np.array(chances) <= level) <= level + 2.5 * np.sqrt(level * (1 - level) / 60)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows + 0.4,
        lambda rows: rows * 1.6,
        lambda rows: np.column_stack((rows[:, 0], rows[:, 0] * np.sign(rows[:, 1]), *rows.T[2:])),
        lambda rows: np.where(np.abs(rows[:, :1]) < 0.7, rows + np.array([2, 0, 0, 0]), rows),
    ],
    ids=["moved", "wider", "dependent", "a hole"],
)
def test_changes_of_many_kinds_are_found(change):
    rng = np.random.default_rng(6)
    assert p_value(rng.normal(size=(600, 4)), change(rng.normal(size=(400, 4))), most=999) <= 0.01


def test_equal_rows_have_not_changed():
    assert p_value(np.ones((30, 2)), np.ones((20, 2))) == 1


def test_a_value_beyond_all_labellings_is_one_in_as_many():
    rng = np.random.default_rng(7)
    assert p_value(rng.normal(size=(100, 2)), rng.normal(5, 1, size=(100, 2)), most=399) == 1 / 400


def test_one_sided_distance_is_that_of_scipy():
    rng = np.random.default_rng(8)
    then, now = rng.integers(0, 9, 70).astype(float), rng.integers(2, 11, 50).astype(float)
    assert one_sided_distance(then, now) == pytest.approx(ks_2samp(then, now, alternative="greater").statistic)
    assert one_sided_distance(now + 20, then) == 0


def test_held_out_distance_of_unchanged_rows_is_small_and_of_changed_ones_what_they_differ_by():
    rng = np.random.default_rng(9)
    blocks, current, own = labelled(rng.normal(size=(1500, 5)), rng.normal(size=(1500, 5)))
    assert held_out_scores(blocks, current, rng=own).distance < 1.36 / np.sqrt(750)
    blocks, current, own = labelled(rng.normal(size=(1500, 5)), rng.normal([1, 0, 0, 0, 0], 1, size=(1500, 5)))
    # Two normal distributions one deviation apart differ by 2Φ(½) − 1 = 0.383.
    assert held_out_scores(blocks, current, rng=own).distance == pytest.approx(0.383, abs=0.04)


def test_rows_of_a_new_kind_score_highest():
    rng = np.random.default_rng(10)
    now = rng.normal(size=(300, 3))
    now[:30] += 6
    blocks, current, own = labelled(rng.normal(size=(600, 3)), now)
    scores = held_out_scores(blocks, current, rng=own).scores[current]
    assert set(np.argsort(-scores)[:20]) <= set(range(30))


def test_rows_that_are_not_finite_are_refused():
    with pytest.raises(UsageError, match=r"^rows are finite numbers on two axes, at least two of them$"):
        feature_blocks([[1.0], [np.nan]], rng=np.random.default_rng(0))
