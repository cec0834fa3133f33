from __future__ import annotations

import itertools

import numpy as np
import pytest

from pytest_modelserve.errors import UsageError
from pytest_modelserve.stats.proportions import fisher_p_value, unseen_p_value


def exact(then, now):
    """The share of all ways to deal the rows out that leave at least as many rows unseen."""
    totals, drawn = np.add(then, now), sum(now)
    rows = np.repeat(np.arange(len(totals)), totals)
    seen = int(np.asarray(now)[np.asarray(then) == 0].sum())
    deals = [
        np.bincount(rows[list(deal)], minlength=len(totals)) for deal in itertools.combinations(range(len(rows)), drawn)
    ]
    return np.mean([deal[deal == totals].sum() >= seen for deal in deals])


@pytest.mark.parametrize(
    ("then", "now"),
    [([5, 3, 0], [2, 2, 2]), ([9, 0], [1, 3]), ([4, 1, 1, 0, 0], [2, 1, 0, 1, 3]), ([6, 2, 0, 0, 0], [3, 0, 1, 1, 1])],
)
def test_bound_is_never_below_the_exact_chance(then, now):
    chance = exact(then, now)
    assert chance <= unseen_p_value(then, now) + 1e-12
    assert unseen_p_value(then, now) <= 20 * chance


def test_one_new_category_has_its_exact_chance():
    # All five rows of it among the 2,000 of 12,000: hypergeometric, 1.28e-4.
    rows = np.arange(5)
    expected = np.prod((2000 - rows) / (12_000 - rows))
    assert unseen_p_value([10_000, 0], [1995, 5]) == pytest.approx(expected, rel=0.01)


def test_categories_that_come_in_clumps_are_not_taken_for_evidence_as_fisher_would():
    rng, shares = np.random.default_rng(7), 1 / np.arange(1, 91) ** 0.7
    shares /= shares.sum()
    ours, fishers = [], []
    for _ in range(400):
        then, now = rng.multinomial(300, shares), rng.multinomial(3000, shares)
        ours.append(unseen_p_value(then, now))
        fishers.append(fisher_p_value(int(now[then == 0].sum()), 3000, int((then == 1).sum()), 300))
    assert np.mean(np.array(ours) <= 0.05) <= 0.05
    assert np.mean(np.array(fishers) <= 0.01) > 0.03


def test_no_unseen_row_is_no_evidence_and_many_are_certain():
    assert unseen_p_value([5, 5], [5, 5]) == 1
    assert unseen_p_value([10_000, 0], [500, 500]) < 1e-25


@pytest.mark.parametrize(
    ("then", "now", "message"),
    [
        ([1, 2], [1], "both samples are counted in the same categories, not in 2 and 1"),
        ([1, 2], [0, 0], "current_counts are counts of at least one row"),
        ([1, -2], [1, 0], "reference_counts are counts of at least one row"),
    ],
)
def test_impossible_counts_are_refused(then, now, message):
    with pytest.raises(UsageError) as caught:
        unseen_p_value(then, now)
    assert str(caught.value) == message
